// Interpolation along the fastest dimension on the CPU: W outputs from the cells of a level's row,
// under one tap. Outputs come in whole vectors. While a level is not shrunk, those of one vector
// read cells that lie in two, so that with AVX-512 one permutation fetches a vector of them.
#pragma once

#include "cpu/upsample.hpp"

namespace stripctx::cpu {

// Cells are read to this many beyond the row's last.
template <class A>
constexpr int64_t kCellMargin = 2 * kLanes<A>;

namespace detail {

// An integer for every lane of Vec<A>.
template <class A>
using Index = std::conditional_t<sizeof(A) == 8, int64_t, int32_t>;
template <class A>
using IndexVec = typename VectorOf<Index<A>>::type;

#if defined(__AVX512F__)
constexpr bool kPermutes = true;
inline Vec<float> pick(const float* cells, const IndexVec<float>& index) {
  return (Vec<float>)_mm512_permutex2var_ps((__m512)load(cells), (__m512i)index,
                                            (__m512)load(cells + kLanes<float>));
}
inline Vec<double> pick(const double* cells, const IndexVec<double>& index) {
  return (Vec<double>)_mm512_permutex2var_pd((__m512d)load(cells), (__m512i)index,
                                             (__m512d)load(cells + kLanes<double>));
}
#else
constexpr bool kPermutes = false;
template <class A>
inline Vec<A> pick(const A*, const IndexVec<A>&) {
  return Vec<A>{};
}
#endif

}  // namespace detail

template <class A>
class ColumnInterpolation {
 public:
  ColumnInterpolation(const Samples<A>& columns, int64_t W) : columns_(columns) {
    constexpr int64_t lanes = kLanes<A>;
    for (int64_t w = 0; w < W; w += lanes) {
      Block block{};
      const int64_t begin = std::max(w, columns.begin), end = std::min(w + lanes, columns.end);
      if (begin < end) block.base = columns[begin].first;
      block.near = detail::kPermutes;
      for (int64_t i = begin; i < end; ++i) {
        const Sample<A>& sample = columns[i];
        block.near = block.near && sample.second - block.base < 2 * lanes;
        block.inside[i - w] = -1;
        block.first[i - w] = static_cast<detail::Index<A>>(sample.first - block.base);
        block.second[i - w] = static_cast<detail::Index<A>>(sample.second - block.base);
        block.first_weight[i - w] = sample.first_weight;
        block.second_weight[i - w] = sample.second_weight;
      }
      blocks_.push_back(block);
    }
  }

  // out += the row's outputs.
  void add(const A* cells, A* out) const {
    int64_t w = 0;
    for (const Block& block : blocks_) {
      if (block.near) {
        const A* base = cells + block.base;
        const Vec<A> value = block.first_weight * detail::pick(base, block.first) +
                             block.second_weight * detail::pick(base, block.second);
        store(out + w, load(out + w) + (block.inside ? value : Vec<A>{}));
      } else {
        const int64_t end = std::min(w + kLanes<A>, columns_.end);
        for (int64_t i = std::max(w, columns_.begin); i < end; ++i) {
          const Sample<A>& sample = columns_[i];
          out[i] += sample.first_weight * cells[sample.first] +
                    sample.second_weight * cells[sample.second];
        }
      }
      w += kLanes<A>;
    }
  }

 private:
  // A vector of outputs: the cells it reads, counted from `base`. `inside` is 0 for lanes that read
  // nothing, `near` false where the cells do not lie in two vectors.
  struct Block {
    int64_t base;
    detail::IndexVec<A> inside, first, second;
    Vec<A> first_weight, second_weight;
    bool near;
  };

  const Samples<A>& columns_;
  std::vector<Block> blocks_;
};

}  // namespace stripctx::cpu
