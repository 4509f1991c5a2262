// Columns in shared memory such that those 2, 4, 8 or 16 apart are in different banks.
#pragma once

#include "cuda/device.cuh"

namespace stripctx::cuda {

// The index of a column.
STRIPCTX_HOST_DEVICE constexpr int skewed(int column) {
  return column + column / static_cast<int>(kWarpSize);
}

}  // namespace stripctx::cuda
