// One row of the gradient in the adjoint of interpolation: its mask, and its share of the sums of
// the two rows of cells that it lies between.
#pragma once

#include "cuda/widen.cuh"
#include "upsample/weights.cuh"

namespace stripctx::cuda {

// The gradient of the relu: 0 where out <= 0, not where it is NaN.
template <class T, int N>
__device__ inline void mask_pack(Pack<T, N>& grad, const Pack<T, N>& out) {
  Accumulate<T> rectified[N];
  widen(out, rectified);
#pragma unroll
  for (int i = 0; i < N; ++i) {
    if (rectified[i] <= 0) grad[i] = from_accumulate<T>(0);
  }
}

template <int N>
__device__ inline void add_row(float (&upper)[N], float (&lower)[N], const Pack<float, 2>& weights,
                               const float (&value)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) {
    upper[i] = add_weighted(upper[i], weights[0], value[i]);
    lower[i] = add_weighted(lower[i], weights[1], value[i]);
  }
}

}  // namespace stripctx::cuda
