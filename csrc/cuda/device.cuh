// The one header that every CUDA kernel includes. Compiled by nvcc it is CUDA; compiled by g++ it
// is the emulator of tests/simt, which runs the same kernels on a CPU. Kernels live in this
// namespace and keep to what stands here:
//
//   Global<T>, SharedMemory, Shared<T>   all memory (cuda/memory.cuh, simt/memory.hpp)
//   launch({.kernel = ...}, kernel<T>, op)   every launch (cuda/launch.cuh, simt/launch.hpp)
//   threadIdx, blockIdx, blockDim, gridDim, __syncthreads, __syncwarp, __shfl_sync,
//   __shfl_xor_sync,
//   __shfl_down_sync, __ballot_sync (full mask), CUDA's float and double mathematics
#pragma once

#include "core/dispatch.hpp"
#include "core/pack.hpp"
#include "core/view.hpp"

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "cuda/launch.cuh"
#include "cuda/memory.cuh"
#else
#include "simt.hpp"
#endif

namespace stripctx::cuda {

constexpr unsigned kWarpSize = 32;
constexpr unsigned kFullMask = 0xffffffffu;

// What `dispatch` calls the half types here.
struct Types {
  using float16 = __half;
  using bfloat16 = __nv_bfloat16;
};

// From storage to the type that sums run in: exact.
template <class T>
STRIPCTX_HOST_DEVICE inline Accumulate<T> to_accumulate(T value) {
  if constexpr (std::is_same_v<T, __half>) {
    return __half2float(value);
  } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    return __bfloat162float(value);
  } else {
    return value;
  }
}

// Back to storage, rounding to the nearest, ties to even.
template <class T>
STRIPCTX_HOST_DEVICE inline T from_accumulate(Accumulate<T> value) {
  if constexpr (std::is_same_v<T, __half>) {
    return __float2half_rn(value);
  } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    return __float2bfloat16_rn(value);
  } else {
    return value;
  }
}

// Two values, by the one instruction that converts two to a half type.
template <class T>
STRIPCTX_HOST_DEVICE inline Pack<T, 2> pair_from_accumulate(Accumulate<T> first,
                                                            Accumulate<T> second) {
  if constexpr (std::is_same_v<T, __half>) {
    const __half2 pair = __floats2half2_rn(first, second);
    return {{pair.x, pair.y}};
  } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
    return {{pair.x, pair.y}};
  } else {
    return {{first, second}};
  }
}

// N values, two at a time.
template <class T, int N>
STRIPCTX_HOST_DEVICE inline Pack<T, N> pack_from_accumulate(const Accumulate<T> (&values)[N]) {
  Pack<T, N> pack;
  if constexpr (N == 1) {
    pack[0] = from_accumulate<T>(values[0]);
  } else {
#pragma unroll
    for (int i = 0; i < N; i += 2) {
      const Pack<T, 2> pair = pair_from_accumulate<T>(values[i], values[i + 1]);
      pack[i] = pair[0];
      pack[i + 1] = pair[1];
    }
  }
  return pack;
}

// a * b, rounded: never fused with what is added to it.
__device__ inline float rounded_product(float a, float b) {
  return __fmul_rn(a, b);
}
__device__ inline double rounded_product(double a, double b) {
  return __dmul_rn(a, b);
}

// A block's threads in one row, x fastest; each 32 of them are a warp.
__device__ inline unsigned thread_rank() {
  return threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
}
__device__ inline int lane_index() {
  return static_cast<int>(thread_rank() % kWarpSize);
}
__device__ inline int warp_index() {
  return static_cast<int>(thread_rank() / kWarpSize);
}

}  // namespace stripctx::cuda
