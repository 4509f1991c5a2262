// The exponential of softmax.
#pragma once

#include "cuda/device.cuh"

namespace stripctx::cuda {

// exp(x) for x <= 0; for float by the hardware's base-2 exponential, with an absolute error below
// 2^-21 and results below 2^-126 flushed to zero.
__device__ inline float exponential(float x) {
#if defined(__CUDA_ARCH__)
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x * 1.4426950408889634f));
  return result;
#else
  return exp(x);
#endif
}
__device__ inline double exponential(double x) {
  return exp(x);
}

}  // namespace stripctx::cuda
