// Shared by the CUDA kernels of interpolation: bounds on the cells that a tile reads, and weighted
// sums.
#pragma once

#include "upsample/params.hpp"

#include "cuda/device.cuh"

namespace stripctx::cuda {

// An upper bound on the cells of an axis that `span` consecutive positions read.
STRIPCTX_HOST_DEVICE inline int64_t cells_read(int64_t cells, int64_t extent, int64_t span) {
  const int64_t most = (span - 1) * cells / (extent > 1 ? extent - 1 : 1) + 3;
  return most < cells ? most : cells;
}

// The cells of one channel of a level, over all taps.
STRIPCTX_HOST_DEVICE inline int64_t tap_cells(const Taps& taps, const View& level) {
  return taps.kernel[0] * taps.kernel[1] * level.size[2] * level.size[3];
}

// sum + weight * value, but `sum` for a weight of 0: its product with an infinite value would be
// NaN.
template <class A>
__device__ inline A add_weighted(A sum, A weight, A value) {
  return weight != 0 ? weight * value + sum : sum;
}

}  // namespace stripctx::cuda
