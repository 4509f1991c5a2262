// Interpolation along the fastest dimension on the CPU: W outputs from the cells of a level's row,
// under one tap. Outputs come in whole vectors. While a level is not shrunk, those of one vector
// read cells that lie in two, so that with AVX-512 one permutation fetches a vector of them.
#pragma once

#include "cpu/shuffle.hpp"
#include "upsample/weights_cpu.hpp"

namespace stripctx::cpu {

namespace detail {

#if defined(__AVX512F__)
constexpr bool kPermutes = true;
#else
constexpr bool kPermutes = false;
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
      block.low = std::min(lanes, columns.cells - block.base);
      block.high = std::min(lanes, columns.cells - block.base - block.low);
      block.near = detail::kPermutes;
      for (int64_t i = begin; i < end; ++i) {
        const Sample<A>& sample = columns[i];
        block.near = block.near && sample.second - block.base < 2 * lanes;
        block.inside[i - w] = -1;
        block.first[i - w] = static_cast<Index<A>>(sample.first - block.base);
        block.second[i - w] = static_cast<Index<A>>(sample.second - block.base);
        block.first_weight[i - w] = sample.first_weight;
        block.second_weight[i - w] = sample.second_weight;
      }
      blocks_.push_back(block);
    }
  }

  // out = the outputs of `rows` rows of cells, or `out` += them: whole vectors.
  template <class T>
  void write(const T* cells, int64_t stride, int64_t rows, A* out, int64_t out_stride,
             bool add) const {
    int64_t w = 0;
    for (const Block& block : blocks_) {
      if (block.near) {
        write_near(block, cells + block.base, stride, rows, out + w, out_stride, add);
      } else {
        for (int64_t row = 0; row < rows; ++row) {
          const Vec<A> value = far(w, cells + row * stride);
          A* target = out + row * out_stride + w;
          store(target, add ? load(target) + value : value);
        }
      }
      w += kLanes<A>;
    }
  }

 private:
  // A vector of outputs: the cells it reads, counted from `base`, whether they lie `near`, in two
  // vectors, and how many cells those hold. `inside` is 0 for lanes that read nothing.
  struct Block {
    int64_t base;
    int low, high;
    bool near;
    IndexVec<A> inside, first, second;
    Vec<A> first_weight, second_weight;
  };

  template <class T>
  [[gnu::always_inline]] static void write_near(const Block& block, const T* cells, int64_t stride,
                                                int64_t rows, A* out, int64_t out_stride,
                                                bool add) {
    const IndexVec<A> inside = block.inside, first = block.first, second = block.second;
    const Vec<A> first_weight = block.first_weight, second_weight = block.second_weight;
    const int low_count = block.low, high_count = block.high;
    for (int64_t row = 0; row < rows; ++row, cells += stride, out += out_stride) {
      const Vec<A> low = load(cells, low_count), high = load(cells + kLanes<A>, high_count);
      Vec<A> value = first_weight * permute<A>(low, high, first) +
                     second_weight * permute<A>(low, high, second);
      value = inside ? value : Vec<A>{};
      store(out, add ? load(out) + value : value);
    }
  }

  template <class T>
  Vec<A> far(int64_t w, const T* cells) const {
    Vec<A> value{};
    const int64_t end = std::min(w + kLanes<A>, columns_.end);
    for (int64_t i = std::max(w, columns_.begin); i < end; ++i) {
      const Sample<A>& sample = columns_[i];
      value[i - w] = sample.first_weight * static_cast<A>(cells[sample.first]) +
                     sample.second_weight * static_cast<A>(cells[sample.second]);
    }
    return value;
  }

  const Samples<A>& columns_;
  std::vector<Block> blocks_;
};

}  // namespace stripctx::cpu
