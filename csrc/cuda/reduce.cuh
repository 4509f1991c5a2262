// Sums over a warp and over a block, for float and double. The order of additions depends only on
// the shape of the block, so equal inputs give equal bits. Every participating thread receives the
// sum.
#pragma once

#include "cuda/device.cuh"

namespace stripctx::cuda {

// Sum over groups of kWidth adjacent lanes, a power of two, by a butterfly. Both lanes of an
// exchange add the same two values, so all lanes get the same bits. All 32 lanes of the warp must
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

// The maximum likewise; NaN is passed over.
template <int kWidth = 32>
__device__ inline float warp_max(float value) {
  static_assert(kWidth >= 1 && kWidth <= 32 && (kWidth & (kWidth - 1)) == 0);
#pragma unroll
  for (int distance = kWidth / 2; distance > 0; distance /= 2) {
    value = fmaxf(value, __shfl_xor_sync(kFullMask, value, distance));
  }
  return value;
}

// Sum over the block: over each warp, then over the warps. Every thread must call it, and the block
// must consist of whole warps. scratch holds one value per warp (at most 32). The call begins with
// a barrier, so scratch may be reused.
template <class T>
__device__ inline T block_sum(T value, Shared<T> scratch) {
  const int warps = static_cast<int>(blockDim.x * blockDim.y * blockDim.z / kWarpSize);
  value = warp_sum(value);
  __syncthreads();
  if (lane_index() == 0) scratch[warp_index()] = value;
  __syncthreads();
  return warp_sum(lane_index() < warps ? scratch[lane_index()] : T(0));
}

// The first steps of N sums over lanes `distance`, distance / 2, ... apart. In each step a lane
// sends half of its values to its partner and receives the partner's share of the other half. One
// sum is left in values[0]. All lanes of the warp must call it.
template <int N, class A>
__device__ inline void exchange_sums(A (&values)[N], int lane, int distance) {
#pragma unroll
  for (int half = N / 2; half > 0; half /= 2, distance >>= 1) {
    const bool upper = (lane & distance) != 0;
#pragma unroll
    for (int i = 0; i < half; ++i) {
      const A given = upper ? values[i] : values[i + half];
      const A kept = upper ? values[i + half] : values[i];
      values[i] = kept + __shfl_xor_sync(kFullMask, given, distance);
    }
  }
}

// The index of the sum that exchange_sums leaves in this lane.
template <int N>
__device__ inline int exchanged_to(int lane, int distance) {
  int kept = 0;
#pragma unroll
  for (int half = N / 2; half > 0; half /= 2, distance >>= 1) {
    if (lane & distance) kept += half;
  }
  return kept;
}

// Sums of kRows rows over groups of `lanes` lanes, a power of two and at least kRows, with few more
// shuffles than for one row.
template <int kRows>
struct RowSum {
  int lanes, lane, row;  // row: the row whose sum this lane gets
  bool writes;

  __device__ RowSum(int lanes, int lane)
      : lanes(lanes),
        lane(lane),
        row(exchanged_to<kRows>(lane, lanes >> 1)),
        writes((lane & (lanes / kRows - 1)) == 0) {}

  // All lanes of the warp must call it.
  template <class A>
  __device__ A add_up(A (&values)[kRows]) const {
    exchange_sums(values, lane, lanes >> 1);
#pragma unroll
    for (int step = kWarpSize / 2 / kRows; step > 0; step /= 2) {
      if (2 * step * kRows <= lanes) values[0] += __shfl_xor_sync(kFullMask, values[0], step);
    }
    return values[0];
  }
};

// Per channel, adds the values of all slots of a block of (lanes, slots) threads in the order of
// the slots. Calls store(k, sum) for each channel k = x * N + i of the block, where lane x holds
// values[i]. Every thread of the block must call it. scratch holds N values per thread.
template <int N, class T, class Store>
__device__ inline void for_slot_sums(const T (&values)[N], Shared<T> scratch, Store&& store) {
  const int channels = static_cast<int>(blockDim.x) * N;
  for (int i = 0; i < N; ++i) {
    scratch[static_cast<int>(threadIdx.y) * channels + static_cast<int>(threadIdx.x) * N + i] =
        values[i];
  }
  __syncthreads();
  const int threads = static_cast<int>(blockDim.x * blockDim.y);
  for (int k = static_cast<int>(thread_rank()); k < channels; k += threads) {
    T sum = 0;
    for (int y = 0; y < static_cast<int>(blockDim.y); ++y) sum += scratch[y * channels + k];
    store(k, sum);
  }
}

// Stores these sums in row blockIdx.x of partials (P, channels); blockIdx.y is the channel tile.
template <int N, class T>
__device__ inline void store_slot_sums(const T (&values)[N], const Global<T>& partials,
                                       int64_t channels) {
  SharedMemory memory;
  const int64_t tile = int64_t(blockDim.x) * N;
  for_slot_sums<N>(values, memory.take<T>(blockDim.y * tile), [&](int k, T sum) {
    const int64_t channel = blockIdx.y * tile + k;
    if (channel < channels) partials.store(blockIdx.x * channels + channel, sum);
  });
}

}  // namespace stripctx::cuda
