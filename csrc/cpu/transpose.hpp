// In-register transposition of a square of vectors. With it, a kernel processes as many planes
// together as a vector has lanes.
#pragma once

#include "cpu/shuffle.hpp"

namespace stripctx::cpu {

// Exchanges lane j of rows[i] with lane i of rows[j]. Each of the log2(lanes) rounds interleaves
// the first half of the rows with the second half.
template <class V, int kCount>
inline void transpose(V (&rows)[kCount]) {
  using Element = std::decay_t<decltype(rows[0][0])>;
  static_assert(kCount * sizeof(Element) == sizeof(V));
  for (int round = 1; round < kCount; round *= 2) {
    V merged[kCount];
    for (int i = 0; i < kCount / 2; ++i) {
      merged[2 * i] = interleave_low<Element>(rows[i], rows[i + kCount / 2]);
      merged[2 * i + 1] = interleave_high<Element>(rows[i], rows[i + kCount / 2]);
    }
    for (int i = 0; i < kCount; ++i) rows[i] = merged[i];
  }
}

// Lane i of the result is the sum of all lanes of rows[i]: adds neighbouring pairs until one vector
// is left, in half the steps of a transposition.
template <int kCount, class V>
inline V sum_each(const V* rows) {
  using Element = std::decay_t<decltype(rows[0][0])>;
  if constexpr (kCount == 1) {
    return rows[0];
  } else {
    const V first = sum_each<kCount / 2>(rows), second = sum_each<kCount / 2>(rows + kCount / 2);
    return even_lanes<Element>(first, second) + odd_lanes<Element>(first, second);
  }
}

// to[j][i] = from[i][j], converted, for i < rows and j < columns, one square at a time. Elements
// outside `from` count as zero; nothing is written past `rows` along i.
template <class To, class From>
void transpose(const From* from, int64_t from_stride, int64_t rows, int64_t columns, To* to,
               int64_t to_stride) {
  using A = Accumulate<From>;
  constexpr int64_t lanes = kLanes<A>;
  for (int64_t i = 0; i < rows; i += lanes) {
    const int height = static_cast<int>(std::min(lanes, rows - i));
    for (int64_t j = 0; j < columns; j += lanes) {
      const int width = static_cast<int>(std::min(lanes, columns - j));
      Vec<A> square[lanes];
      for (int r = 0; r < lanes; ++r) {
        const From* row = from + (i + r) * from_stride + j;
        square[r] = r >= height ? Vec<A>{} : width == lanes ? load(row) : load(row, width);
      }
      transpose(square);
      for (int r = 0; r < width; ++r) {
        To* column = to + (j + r) * to_stride + i;
        height == lanes ? store(column, square[r]) : store(column, square[r], height);
      }
    }
  }
}

}  // namespace stripctx::cpu
