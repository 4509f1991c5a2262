// What the interpolating CPU kernels share: tables of where the outputs of an axis read, made once
// for all planes, and the sum of weighted rows that every output row is.
#pragma once

#include <vector>

#include "core/upsample.hpp"
#include "cpu/simd.hpp"

namespace stripctx::cpu {

template <class T>
T* at(const View& view, int64_t n, int64_t c, int64_t h, int64_t w) {
  return static_cast<T*>(view.data) + n * view.stride[0] + c * view.stride[1] + h * view.stride[2] +
         w * view.stride[3];
}

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

// out = x + sum of weight * row, rectified if so asked; x may be null. The sum runs in the rows'
// order.
template <bool kRelu, class T, class A = Accumulate<T>>
void write_row(const T* x, const std::vector<WeightedRow<A>>& rows, T* out, int64_t length) {
  for_vectors<A>(length, [&](int64_t i, auto load_some, auto store_some) {
    Vec<A> sum = x ? load_some(x + i) : Vec<A>{};
    for (const WeightedRow<A>& term : rows) sum += term.weight * load(term.row + i);
    if constexpr (kRelu) sum = sum < 0 ? Vec<A>{} : sum;  // NaN stays
    store_some(out + i, sum);
  });
}

}  // namespace stripctx::cpu
