// The sigmoid function and its derivative.
#pragma once

#include "cuda/device.cuh"

namespace stripctx::cuda {

// 1 / x for x in [1, 2]; for float by the hardware's approximation, to 1 unit in the last place.
__device__ inline float reciprocal(float x) {
#if defined(__CUDA_ARCH__)
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
#else
  return 1 / x;
#endif
}
__device__ inline double reciprocal(double x) {
  return 1 / x;
}

template <class A>
struct Sigmoid {
  A gate, slope;
};

// sigmoid(z) and its derivative, without cancellation: with e = exp(-|z|), the sigmoid is 1 / (1 +
// e) or e / (1 + e), the derivative e / (1 + e)^2.
template <class A>
__device__ Sigmoid<A> sigmoid(A z) {
  const A e = exp(z < 0 ? z : -z);
  const A inverse = reciprocal(1 + e), small = e * inverse;
  return {z < 0 ? small : inverse, small * inverse};
}

}  // namespace stripctx::cuda
