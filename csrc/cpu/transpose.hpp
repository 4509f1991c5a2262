// Turns a square of vectors over: what stood side by side stands one behind the other. It lets rows
// of as many planes as a vector has lanes be worked on together.
#pragma once

#include "cpu/simd.hpp"

namespace stripctx::cpu {

// Lane j of rows[i] and lane i of rows[j] change places. Each round merges the first half of the
// rows with the second, element by element, as a card player shuffles; log2(lanes) rounds do.
template <class V, int kCount>
inline void transpose(V (&rows)[kCount]) {
  using Element = std::decay_t<decltype(rows[0][0])>;
  static_assert(kCount * sizeof(Element) == sizeof(V));
  using Choice =
      typename VectorOf<std::conditional_t<sizeof(Element) == 8, int64_t, int32_t>>::type;
  Choice low, high;
  for (int i = 0; i < kCount; ++i) {
    low[i] = i / 2 + i % 2 * kCount;
    high[i] = low[i] + kCount / 2;
  }
  for (int round = 1; round < kCount; round *= 2) {
    V merged[kCount];
    for (int i = 0; i < kCount / 2; ++i) {
      merged[2 * i] = __builtin_shuffle(rows[i], rows[i + kCount / 2], low);
      merged[2 * i + 1] = __builtin_shuffle(rows[i], rows[i + kCount / 2], high);
    }
    for (int i = 0; i < kCount; ++i) rows[i] = merged[i];
  }
}

}  // namespace stripctx::cpu
