// `launch` for nvcc, the only code that starts a kernel.
//
//   launch({.kernel = "strip_pool_rows", .grid = {blocks}, .block = {256}, .stream = stream},
//          strip_pool_rows<T>, op);
#pragma once

#include <cuda_runtime.h>

#include <map>
#include <mutex>
#include <type_traits>
#include <utility>

#include "cuda/launch.hpp"

namespace stripctx::cuda {

inline void check(cudaError_t status, const Launch& launch) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // clears the error, which a later check would report again
  throw std::runtime_error(std::string(launch.kernel) + ": " + cudaGetErrorString(status));
}

// More than 48 KB of dynamic shared memory must be requested, once per kernel and device.
inline void allow_shared_memory(const void* kernel, const Launch& launch) {
  constexpr int64_t kWithoutAsking = 48 * 1024;
  if (launch.shared_bytes <= kWithoutAsking) return;
  static std::mutex mutex;
  static std::map<std::pair<const void*, int>, int64_t> allowed;
  int device = 0;
  check(cudaGetDevice(&device), launch);
  const std::lock_guard lock(mutex);
  int64_t& bytes = allowed[{kernel, device}];
  if (launch.shared_bytes <= bytes) return;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(launch.shared_bytes)),
        launch);
  bytes = launch.shared_bytes;
}

// An attribute of the current device, or 0 where there is no device.
inline int device_attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return 0;
  return cudaDeviceGetAttribute(&value, attribute, device) == cudaSuccess ? value : 0;
}

// The largest shared memory of a block on the current device, in bytes.
inline int64_t most_shared_bytes() {
  return device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
}

template <class... Params>
void launch(const Launch& how, void (*kernel)(Params...),
            const std::type_identity_t<Params>&... params) {
  static_assert(fits_parameters<Params...>);
  if (!has_work(how)) return;
  const auto dimensions = [](const Extent3& extent) {
    return dim3(static_cast<unsigned>(extent.x), static_cast<unsigned>(extent.y),
                static_cast<unsigned>(extent.z));
  };
  const void* function = reinterpret_cast<const void*>(kernel);
  allow_shared_memory(function, how);
  void* arguments[] = {const_cast<void*>(static_cast<const void*>(&params))..., nullptr};
  check(cudaLaunchKernel(function, dimensions(how.grid), dimensions(how.block), arguments,
                         static_cast<size_t>(how.shared_bytes),
                         static_cast<cudaStream_t>(how.stream)),
        how);
}

}  // namespace stripctx::cuda
