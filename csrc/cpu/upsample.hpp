// What the interpolating CPU kernels share: tables of where the outputs of an axis read, made once
// for all planes, and the sum of weighted rows that every output row is.
#pragma once

#include <vector>

#include "core/upsample.hpp"
#include "cpu/simd.hpp"

namespace stripctx::cpu {

// One tap along one axis: output i reads position i + offset. Outputs outside [begin, end) read
// nothing.
template <class A>
struct Samples {
  int64_t cells, begin, end;
  std::vector<Sample<A>> sample;  // of outputs begin, begin + 1, ...

  Samples(const Axis<A>& axis, int64_t offset, int64_t outputs)
      : cells(axis.cells),
        begin(std::min(outputs, std::max<int64_t>(0, -offset))),
        end(std::max(begin, std::min(outputs, axis.extent - offset))) {
    sample.reserve(end - begin);
    for (int64_t i = begin; i < end; ++i) sample.push_back(axis.at(i + offset));
  }

  bool contain(int64_t i) const { return i >= begin && i < end; }
  const Sample<A>& operator[](int64_t i) const { return sample[i - begin]; }
};

// The tables of one level: one for each row of taps, one for each column of taps.
template <class A>
struct LevelSamples {
  std::vector<Samples<A>> rows, columns;

  LevelSamples(const Taps& taps, const View& level, int64_t H, int64_t W) {
    for (int64_t tap = 0; tap < taps.kernel[0]; ++tap) {
      rows.emplace_back(taps.axis<A>(level, 0), taps.offset(0, tap), H);
    }
    for (int64_t tap = 0; tap < taps.kernel[1]; ++tap) {
      columns.emplace_back(taps.axis<A>(level, 1), taps.offset(1, tap), W);
    }
  }
};

template <class A>
std::vector<LevelSamples<A>> level_samples(const Levels& levels, const Taps& taps,
                                           const View& map) {
  std::vector<LevelSamples<A>> result;
  for (int64_t l = 0; l < levels.count; ++l) {
    result.emplace_back(taps, levels.level[l], map.size[2], map.size[3]);
  }
  return result;
}

// Rows of a buffer are this long, so that whole vectors may be read and written at their ends.
template <class A>
int64_t padded(int64_t length) {
  return ceil_div(length, kLanes<A>) * kLanes<A>;
}

template <class A>
struct WeightedRow {
  A weight;
  const A* row;
};

// The terms of one sum, as many as an output can have.
template <class A>
struct WeightedRows {
  std::vector<WeightedRow<A>> storage;
  int64_t count = 0;

  explicit WeightedRows(int64_t most) : storage(most) {}

  void add(A weight, const A* row) { storage[count++] = {weight, row}; }
  const WeightedRow<A>* begin() const { return storage.data(); }
  const WeightedRow<A>* end() const { return storage.data() + count; }
};

// kVectors vectors of out = x + sum of weight * row, the last one of `count` elements: they share
// the reading of a term. x may be null.
template <bool kRelu, int kVectors, class T, class A = Accumulate<T>>
inline void write_vectors(const T* x, const WeightedRows<A>& rows, int64_t begin, T* out,
                          int count) {
  constexpr int lanes = kLanes<A>, last = (kVectors - 1) * lanes;
  Vec<A> sum[kVectors]{};
  if (x) {
    for (int v = 0; v < kVectors - 1; ++v) sum[v] = load(x + v * lanes);
    sum[kVectors - 1] = count == lanes ? load(x + last) : load(x + last, count);
  }
  for (const WeightedRow<A>& term : rows) {
    for (int v = 0; v < kVectors; ++v) sum[v] += term.weight * load(term.row + begin + v * lanes);
  }
  if constexpr (kRelu) {
    for (int v = 0; v < kVectors; ++v) sum[v] = sum[v] < 0 ? Vec<A>{} : sum[v];  // NaN stays
  }
  for (int v = 0; v < kVectors - 1; ++v) store(out + v * lanes, sum[v]);
  count == lanes ? store(out + last, sum[kVectors - 1])
                 : store(out + last, sum[kVectors - 1], count);
}

// out = x + sum of weight * row, rectified if so asked; x may be null. The sum runs in the rows'
// order.
template <bool kRelu, class T, class A = Accumulate<T>>
void write_row(const T* x, const WeightedRows<A>& rows, T* out, int64_t length) {
  constexpr int64_t lanes = kLanes<A>;
  for (int64_t i = 0; i < length; i += 4 * lanes) {
    const T* from = x ? x + i : nullptr;
    const int64_t rest = std::min(length - i, 4 * lanes);
    const int count = static_cast<int>((rest - 1) % lanes + 1);
    switch ((rest - 1) / lanes) {
      case 0:
        write_vectors<kRelu, 1>(from, rows, i, out + i, count);
        break;
      case 1:
        write_vectors<kRelu, 2>(from, rows, i, out + i, count);
        break;
      case 2:
        write_vectors<kRelu, 3>(from, rows, i, out + i, count);
        break;
      default:
        write_vectors<kRelu, 4>(from, rows, i, out + i, count);
    }
  }
}

}  // namespace stripctx::cpu
