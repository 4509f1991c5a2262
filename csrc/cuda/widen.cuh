// Converts the values of a pack to the accumulation type.
#pragma once

#include "cuda/device.cuh"

namespace stripctx::cuda {

// Half types are read as 32-bit words: with separate values the compiler would move each one by
// itself, from the load on.
template <class T, int N>
__device__ inline void widen(const Pack<T, N>& pack, Accumulate<T> (&values)[N]) {
  constexpr bool kHalf = std::is_same_v<T, __half>, kBrain = std::is_same_v<T, __nv_bfloat16>;
  if constexpr ((kHalf || kBrain) && N % 2 == 0) {
    unsigned words[N / 2];
    memcpy(words, &pack, sizeof(pack));
#pragma unroll
    for (int i = 0; i < N; i += 2) {
      if constexpr (kBrain) {
        const unsigned low = words[i / 2] << 16, high = words[i / 2] & 0xffff0000u;
        memcpy(&values[i], &low, sizeof(low));
        memcpy(&values[i + 1], &high, sizeof(high));
      } else {
        Pack<T, 2> pair;
        memcpy(&pair, &words[i / 2], sizeof(pair));
        values[i] = to_accumulate(pair[0]);
        values[i + 1] = to_accumulate(pair[1]);
      }
    }
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) values[i] = to_accumulate(pack[i]);
  }
}

}  // namespace stripctx::cuda
