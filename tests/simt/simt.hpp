// CUDA's names for g++: cuda/device.cuh includes this header if the compiler is not nvcc. Kernels
// then run on a CPU, thread by thread (scheduler.hpp). Half types and vector types are those of
// CUDA's own headers, which g++ can compile.
//
//   fiber      stacks that code can leave and resume      order     the order of threads
//   scheduler  threads, warps, blocks, barriers           counters  traffic in bytes, by kernel
//   memory     Global, Shared: bounds, alignment, counts  warp      barriers and shuffles
//   launch     runs a kernel                              mma       products by a whole warp
//   trace      requests, sectors, banks, by warp          control   C functions for the tests
//   async      asynchronous copies, performed in the wait
//   wgmma      products by a whole warpgroup, performed in the wait
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <vector_types.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "async.hpp"
#include "launch.hpp"
#include "memory.hpp"
#include "mma.hpp"
#include "warp.hpp"
#include "wgmma.hpp"

// Limits registers on a GPU; no effect here.
#if !defined(__launch_bounds__)
#define __launch_bounds__(...)
#endif

namespace stripctx::cuda {

using std::max;
using std::min;

// CUDA's fast approximation. The C library declares a function of this name, which this one hides.
inline float __expf(float x) {
  return std::exp(x);
}

// Products that g++ must not contract to fused multiply-adds.
inline float __fmul_rn(float a, float b) {
  const volatile float product = a * b;
  return product;
}
inline double __dmul_rn(double a, double b) {
  const volatile double product = a * b;
  return product;
}

}  // namespace stripctx::cuda
