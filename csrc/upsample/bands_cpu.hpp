// The adjoint of interpolation along one axis on the CPU, as a product with a banded matrix: for
// each block of neighbouring cells, the positions that read any of them and their weights.
#pragma once

#include "upsample/weights_cpu.hpp"

namespace stripctx::cpu {

// Blocks of a vector of cells. Block b sums positions [first_[b], first_[b] + count_[b]); each
// position has a vector of weights.
template <class A>
class Bands {
  static constexpr int kCells = kLanes<A>;

 public:
  explicit Bands(const Samples<A>& samples) {
    int64_t begin = samples.begin;
    for (int64_t cell = 0; cell < samples.cells; cell += kCells) {
      while (begin < samples.end && samples[begin].second < cell) ++begin;
      int64_t end = begin;
      while (end < samples.end && samples[end].first < cell + kCells) ++end;
      first_.push_back(begin);
      count_.push_back(end - begin);
      weights_at_.push_back(weights_.size());
      for (int64_t i = begin; i < end; ++i) {
        const size_t row = weights_.size();
        weights_.resize(row + kCells);
        const Sample<A>& sample = samples[i];
        const int64_t low = sample.first - cell, high = sample.second - cell;
        if (low >= 0) weights_[row + low] += sample.first_weight;
        if (high < kCells) weights_[row + high] += sample.second_weight;
      }
    }
  }

  // Reduces `rows` rows of sums (at most kRowsTogether) to rows of cells.
  template <class T>
  void apply(const A* sums, int64_t stride, int64_t rows, T* out, int64_t out_stride,
             int64_t cells) const {
    with_count<kRowsTogether>(
        rows, [&]<int kRows>() { apply<kRows>(sums, stride, out, out_stride, cells); });
  }

 private:
  // At least four independent sums hide the latency of the additions.
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
      Vec<A> total[kRows];
      for (int r = 0; r < kRows; ++r) {
        total[r] = sum[r][0] + sum[r][1];
        if constexpr (kSums == 4) total[r] += sum[r][2] + sum[r][3];
      }
      without_zeros<A>(total, [&](int r) { return exact(block, sums + r * stride); });
      for (int r = 0; r < kRows; ++r) store_some(out + r * out_stride + cell, total[r]);
      ++block;
    });
  }

  Vec<A> exact(size_t block, const A* sums) const {
    Vec<A> sum{};
    for (int64_t k = 0; k < count_[block]; ++k) {
      const Vec<A> weights = load(weights_.data() + weights_at_[block] + k * kLanes<A>);
      sum += weights != 0 ? weights * sums[first_[block] + k] : Vec<A>{};
    }
    return sum;
  }

  std::vector<int64_t> first_, count_;
  std::vector<size_t> weights_at_;
  std::vector<A> weights_;
};

}  // namespace stripctx::cpu
