// The header that every CUDA kernel includes. With nvcc it is CUDA; with g++ it is the emulator of
// tests/simt, which runs the same kernels on a CPU. Kernels are in this namespace and use only:
//
//   Global<T>, SharedMemory, Shared<T>      for all memory (cuda/memory.cuh, simt/memory.hpp)
//   launch({.kernel = ...}, kernel<T>, op)  for every launch (cuda/launch.cuh, simt/launch.hpp)
//   threadIdx, blockIdx, blockDim, gridDim, __syncthreads, __syncwarp, __shfl_sync,
//   __shfl_xor_sync, __shfl_down_sync, __ballot_sync (full mask), CUDA's float and double functions
//   cuda/mma.cuh, cuda/wgmma.cuh            for tensor-core products
//   cuda/async_copy.cuh, cuda/warp_ring.cuh for asynchronous copies
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

// The half types for `dispatch`.
struct Types {
  using float16 = __half;
  using bfloat16 = __nv_bfloat16;
};

// Converts from the storage type to the accumulation type; exact.
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

// Converts to the storage type, rounding to nearest, ties to even.
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

// Converts two values with the one instruction that converts a pair to a half type.
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

// Converts N values, in pairs.
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

// a * b, rounded; never contracted to a fused multiply-add.
__device__ inline float rounded_product(float a, float b) {
  return __fmul_rn(a, b);
}
__device__ inline double rounded_product(double a, double b) {
  return __dmul_rn(a, b);
}

// Index of a thread in its block, x fastest; each 32 consecutive threads are a warp.
__device__ inline unsigned thread_rank() {
  return threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
}
__device__ inline int lane_index() {
  return static_cast<int>(thread_rank() % kWarpSize);
}
__device__ inline int warp_index() {
  return static_cast<int>(thread_rank() / kWarpSize);
}

// The same number, 0 to 1023, but what follows from it is computed where it is used: the compiler
// cannot move it out of a loop, where it would take registers throughout.
__device__ inline int recompute(int value) {
#if defined(__CUDA_ARCH__)
  asm volatile("" : "+r"(value));
  __builtin_assume(value >= 0 && value < 1024);
#endif
  return value;
}

}  // namespace stripctx::cuda
