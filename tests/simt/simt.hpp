// CUDA's vocabulary for g++: what cuda/device.cuh includes where there is no nvcc. Kernels compiled
// against it run on a CPU, thread by thread (scheduler.hpp); half types and vector types are those
// of CUDA's own headers, which g++ compiles as they are.
//
//   fiber      a stack that can be left and entered        order     which thread goes first
//   scheduler  threads, warps, blocks, barriers            counters  bytes moved, by kernel
//   memory     Global, Shared: bounds, alignment, counts   warp      barriers and shuffles
//   launch     runs a kernel                               mma       products by a whole warp
//   trace      requests, sectors, banks, by warp           control   the C functions of tests
//   async      copies that land when waited for
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

// Says how many registers a thread may have.
#if !defined(__launch_bounds__)
#define __launch_bounds__(...)
#endif

namespace stripctx::cuda {

using std::max;
using std::min;

// A GPU's fast approximation; the C library declares a function of this name and hides it.
inline float __expf(float x) {
  return std::exp(x);
}

// Products that g++ may not fuse with what is added to them.
inline float __fmul_rn(float a, float b) {
  const volatile float product = a * b;
  return product;
}
inline double __dmul_rn(double a, double b) {
  const volatile double product = a * b;
  return product;
}

}  // namespace stripctx::cuda
