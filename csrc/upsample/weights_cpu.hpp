// Shared by the interpolating CPU kernels: tables of the cells that each output of an axis reads,
// computed once for all planes, and the weighted sum of rows.
#pragma once

#include "upsample/params.hpp"

#include <span>
#include <vector>

#include "cpu/loops.hpp"
#include "cpu/shuffle.hpp"

namespace stripctx::cpu {

// Rows of a level processed together along W, because they share its weights.
constexpr int64_t kRowsTogether = 4;

// One tap along one axis: output i reads position i + offset of the interpolated level. Outputs
// outside [begin, end) read nothing.
template <class A>
struct Samples {
  int64_t cells, begin, end;
  std::vector<Sample<A>> sample;  // for outputs begin, begin + 1, ...

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

// The tables of one level, for each row of taps and each column of taps.
template <class A>
struct LevelSamples {
  std::vector<Samples<A>> rows, columns;

  LevelSamples(const Taps& taps, const Level& level, int64_t H, int64_t W) {
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

// Lists of variable length, one per output, stored contiguously.
template <class Item>
class Lists {
 public:
  void add(const Item& item) { items_.push_back(item); }
  void close() { ends_.push_back(items_.size()); }

  [[gnu::always_inline]] std::span<const Item> operator[](int64_t i) const {
    const size_t begin = i == 0 ? 0 : ends_[i - 1];
    return {items_.data() + begin, ends_[i] - begin};
  }

 private:
  std::vector<Item> items_;
  std::vector<size_t> ends_;
};

// Replaces the lanes of sums of products that are NaN by exact(r), the sum of row r without terms
// of weight 0: a weight of 0 times an infinite value must not count.
template <class A, int kRows, class Exact>
[[gnu::always_inline]] inline void without_zeros(Vec<A> (&sum)[kRows], Exact&& exact) {
  Vec<A> poison{};
  for (const Vec<A>& each : sum) poison += each - each;  // NaN unless finite
  if (sum_lanes<A>(poison) == 0) [[likely]]
    return;
  for (int r = 0; r < kRows; ++r) sum[r] = sum[r] != sum[r] ? exact(r) : sum[r];
}

// One term of a sum of rows: a weight, and where the row begins.
template <class A>
struct Term {
  A weight;
  int64_t offset;
};

// Adds the terms of the cells that a sample reads, as rows of `length` elements from row `first`
// on.
template <class A>
void add_terms(Lists<Term<A>>& terms, const Sample<A>& sample, int64_t first, int64_t length) {
  terms.add({sample.first_weight, (first + sample.first) * length});
  terms.add({sample.second_weight, (first + sample.second) * length});
}

// For each cell, the positions that read it, as rows that are `stride` elements apart.
template <class A>
Lists<Term<A>> readers(const Samples<A>& samples, int64_t stride) {
  Lists<Term<A>> result;
  int64_t begin = samples.begin;
  for (int64_t cell = 0; cell < samples.cells; ++cell) {
    while (begin < samples.end && samples[begin].second < cell) ++begin;
    for (int64_t i = begin; i < samples.end && samples[i].first <= cell; ++i) {
      const Sample<A>& sample = samples[i];
      const A low = sample.first == cell ? sample.first_weight : A(0);
      const A high = sample.second == cell ? sample.second_weight : A(0);
      result.add({low + high, i * stride});
    }
    result.close();
  }
  return result;
}

// Rows [begin, end) of out = x + sum of weight * row over the terms, in their order, then relu if
// `rectify`. Without x, it counts as 0.
template <class T, class A = Accumulate<T>>
void add_rows(const A* rows, const Lists<Term<A>>& terms, int64_t begin, int64_t end, T* out,
              int64_t out_stride, int64_t length, const T* x = nullptr, int64_t x_stride = 0,
              bool rectify = false) {
  for_four_vectors<A>(
      length, [=, &terms]<int kVectors>(int64_t i, int count) __attribute__((always_inline)) {
        const T* from = x ? x + i : nullptr;
        T* to = out + i;
        for (int64_t row = begin; row < end; ++row, to += out_stride) {
          Vec<A> sum[kVectors]{};
          if (from) load_vectors(from, count, sum), from += x_stride;
          for (const Term<A>& term : terms[row]) {
            for (int v = 0; v < kVectors; ++v) {
              sum[v] += term.weight * load(rows + term.offset + i + v * kLanes<A>);
            }
          }
          for (Vec<A>& each : sum) each = rectify ? relu<A>(each) : each;
          store_vectors(to, count, sum);
        }
      });
}

}  // namespace stripctx::cpu
