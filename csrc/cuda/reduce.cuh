// Sums over a warp and over a block, for float and double. The order of additions depends on the
// block's shape alone, so equal inputs give equal bits, and every thread that takes part gets the
// sum.
#pragma once

#include "cuda/device.cuh"

namespace stripctx::cuda {

// Sum over groups of kWidth neighbouring lanes (a power of two): a butterfly, whose two operands
// meet in both lanes and commute, hence the same bits in each lane. All 32 lanes of the warp must
// call it.
template <int kWidth = 32, class T>
__device__ inline T warp_sum(T value) {
  static_assert(kWidth >= 1 && kWidth <= 32 && (kWidth & (kWidth - 1)) == 0);
#pragma unroll
  for (int distance = kWidth / 2; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(kFullMask, value, distance);
  }
  return value;
}

// Sum over the block: over each warp, then over the warps. Every thread of the block must call it,
// the block must be whole warps, and scratch holds one value a warp (32 always do). It starts with
// a barrier, so scratch may be what an earlier call used.
template <class T>
__device__ inline T block_sum(T value, Shared<T> scratch) {
  const int warps = static_cast<int>(blockDim.x * blockDim.y * blockDim.z / kWarpSize);
  value = warp_sum(value);
  __syncthreads();
  if (lane_index() == 0) scratch[warp_index()] = value;
  __syncthreads();
  return warp_sum(lane_index() < warps ? scratch[lane_index()] : T(0));
}

}  // namespace stripctx::cuda
