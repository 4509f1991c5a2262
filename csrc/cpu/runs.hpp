// Writing runs of memory whose elements repeat: rows of a plane, a constant, a pixel. Nothing but
// whole vectors is stored where there is room for one; the last overlaps the one before it.
#pragma once

#include <algorithm>
#include <cstring>

#include "cpu/planes.hpp"
#include "cpu/simd.hpp"

namespace stripctx::cpu {

// Writes a row to rows `stride` apart. Vectors stay in registers.
template <class T>
void repeat_row(const T* row, int64_t W, int64_t rows, T* out, int64_t stride) {
  using Bytes = VectorOf<char>::type;
  constexpr int64_t kElements = kVectorBytes / sizeof(T);
  if (W < kElements) {
    for (int64_t h = 0; h < rows; ++h) std::memcpy(out + h * stride, row, W * sizeof(T));
    return;
  }
  for_whole_columns(W, kElements, [&]<int kVectors>(auto column) {
    Bytes vectors[kVectors];
    for (int v = 0; v < kVectors; ++v) std::memcpy(&vectors[v], row + column(v), kVectorBytes);
    for (int64_t h = 0; h < rows; ++h) {
      for (int v = 0; v < kVectors; ++v) {
        std::memcpy(out + h * stride + column(v), &vectors[v], kVectorBytes);
      }
    }
  });
}

template <class T>
void fill_run(Accumulate<T> value, int64_t count, T* out) {
  constexpr int64_t lanes = kLanes<Accumulate<T>>;
  const Vec<Accumulate<T>> vector = splat(value);
  if (count < lanes) return store(out, vector, static_cast<int>(count));
  T* const last = out + count - lanes;
  for (; out < last; out += lanes) store(out, vector);
  store(last, vector);
}

// In whole vectors: the library's own copy, of as many bytes, is slower than plain stores.
template <class T>
void copy(const T* from, int64_t count, T* to) {
  using Bytes = VectorOf<char>::type;
  constexpr int64_t lanes = kVectorBytes / sizeof(T);
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    Bytes vector;
    std::memcpy(&vector, from + i, kVectorBytes);
    std::memcpy(to + i, &vector, kVectorBytes);
  }
  std::memcpy(to + i, from + i, (count - i) * sizeof(T));
}

}  // namespace stripctx::cpu
