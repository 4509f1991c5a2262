// The adjoint of interpolation along the fastest dimension on the CPU: a level's cells from W sums,
// under one tap, by a product with a matrix of weights that is banded. A few rows at a time share
// the reading of a weight.
#pragma once

#include "upsample/weights_cpu.hpp"

namespace stripctx::cpu {

// The weights of one tap along W, for cells in whole vectors: cell block b sums the outputs
// [first_[b], first_[b] + count_[b]), each times a vector of weights.
template <class A>
class Bands {
 public:
  Bands(const Samples<A>& columns) {
    constexpr int64_t lanes = kLanes<A>;
    int64_t w = columns.begin;
    for (int64_t cell = 0; cell < columns.cells; cell += lanes) {
      while (w < columns.end && columns[w].second < cell) ++w;
      int64_t end = w;
      while (end < columns.end && columns[end].first < cell + lanes) ++end;
      first_.push_back(w);
      count_.push_back(end - w);
      for (int64_t i = w; i < end; ++i) {
        const size_t row = weights_.size();
        weights_.resize(row + lanes);
        const Sample<A>& sample = columns[i];
        const int64_t low = sample.first - cell, high = sample.second - cell;
        if (low >= 0) weights_[row + low] += sample.first_weight;
        if (high < lanes) weights_[row + high] += sample.second_weight;
      }
    }
  }

  // `rows` rows of cells, at most kRowsTogether, from as many rows of sums.
  template <class T>
  void apply(const A* sums, int64_t stride, int64_t rows, T* out, int64_t out_stride,
             int64_t cells) const {
    static_assert(kRowsTogether == 4);
    switch (rows) {
      case 1:
        return apply<1>(sums, stride, out, out_stride, cells);
      case 2:
        return apply<2>(sums, stride, out, out_stride, cells);
      case 3:
        return apply<3>(sums, stride, out, out_stride, cells);
      default:
        return apply<4>(sums, stride, out, out_stride, cells);
    }
  }

 private:
  // Four sums or more run side by side, because one would wait for itself.
  template <int kRows, class T>
  void apply(const A* sums, int64_t stride, T* out, int64_t out_stride, int64_t cells) const {
    constexpr int kSums = kRows == 1 ? 4 : 2;
    const A* weight = weights_.data();
    size_t block = 0;
    for_vectors<A>(cells, [&](int64_t cell, auto, auto store_some) {
      Vec<A> sum[kRows][kSums]{};
      const A* value = sums + first_[block];
      const auto add = [&](int s) {
        const Vec<A> weights = load(weight);
        for (int r = 0; r < kRows; ++r) sum[r][s] += value[r * stride] * weights;
        ++value, weight += kLanes<A>;
      };
      int64_t k = 0;
      for (; k + kSums <= count_[block]; k += kSums) {
        for (int s = 0; s < kSums; ++s) add(s);
      }
      for (; k < count_[block]; ++k) add(0);
      for (int r = 0; r < kRows; ++r) {
        Vec<A> total = sum[r][0] + sum[r][1];
        if constexpr (kSums == 4) total += sum[r][2] + sum[r][3];
        store_some(out + r * out_stride + cell, total);
      }
      ++block;
    });
  }

  std::vector<int64_t> first_, count_;
  std::vector<A> weights_;
};

}  // namespace stripctx::cpu
