// Interpolation along the fastest dimension on the CPU: W outputs from a row of a level, summed
// over a row of taps, in whole vectors. Unless the level is larger than the output, the cells that
// a vector of outputs reads span at most two vectors, so with AVX-512 one permutation gathers them.
#pragma once

#include "upsample/weights_cpu.hpp"

namespace stripctx::cpu {

namespace detail {

#if defined(__AVX512F__)
constexpr bool kPermutes = true;
#else
constexpr bool kPermutes = false;
#endif

}  // namespace detail

// A row of taps: out[w] = sum over taps of the tap's cells interpolated at w.
template <class A>
class ColumnInterpolation {
 public:
  ColumnInterpolation(const std::vector<Samples<A>>& taps, int64_t W) : taps_(taps) {
    for (int64_t w = 0; w < W; w += kLanes<A>) {
      for (const Samples<A>& columns : taps) blocks_.push_back(block(columns, w));
    }
  }

  // Interpolates `rows` rows of cells, at most kRowsTogether, to whole vectors of outputs. The
  // cells of adjacent taps are `tap_stride` elements apart.
  template <class T>
  void write(const T* cells, int64_t tap_stride, int64_t stride, int64_t rows, A* out,
             int64_t out_stride) const {
    static_assert(kRowsTogether == 4);
    // not with_count: g++ would contract other products in the label losses, which changes bits
    switch (rows) {
      case 1:
        return write<1>(cells, tap_stride, stride, out, out_stride);
      case 2:
        return write<2>(cells, tap_stride, stride, out, out_stride);
      case 3:
        return write<3>(cells, tap_stride, stride, out, out_stride);
      default:
        return write<4>(cells, tap_stride, stride, out, out_stride);
    }
  }

 private:
  // How many vectors from `base` on contain the cells that a vector of outputs reads: none, one,
  // two or more.
  enum class Reach { kNone, kOne, kTwo, kFar };

  struct Block {
    int64_t base;
    int low, high;  // valid cells in the first and in the second vector
    Reach reach;
    bool whole;          // every lane reads a cell
    IndexVec<A> inside;  // 0 for lanes that read no cell
    IndexVec<A> first, second;
    Vec<A> first_weight, second_weight;
  };

  static Block block(const Samples<A>& columns, int64_t w) {
    constexpr int64_t lanes = kLanes<A>;
    Block block{};
    const int64_t begin = std::max(w, columns.begin), end = std::min(w + lanes, columns.end);
    if (begin >= end) return block;
    block.base = columns[begin].first;
    block.low = static_cast<int>(std::min(lanes, columns.cells - block.base));
    block.high = static_cast<int>(std::min(lanes, columns.cells - block.base - block.low));
    block.whole = end - begin == lanes;
    const int64_t reach = columns[end - 1].second - block.base;
    if (detail::kPermutes) {
      block.reach = reach < lanes ? Reach::kOne : reach < 2 * lanes ? Reach::kTwo : Reach::kFar;
    } else {
      block.reach = Reach::kFar;
    }
    for (int64_t i = begin; i < end; ++i) {
      const Sample<A>& sample = columns[i];
      block.inside[i - w] = -1;
      block.first[i - w] = static_cast<Index<A>>(sample.first - block.base);
      block.second[i - w] = static_cast<Index<A>>(sample.second - block.base);
      block.first_weight[i - w] = sample.first_weight;
      block.second_weight[i - w] = sample.second_weight;
    }
    return block;
  }

  template <int kRows, class T>
  void write(const T* cells, int64_t tap_stride, int64_t stride, A* out, int64_t out_stride) const {
    const int64_t taps = taps_.size();
    const Block* block = blocks_.data();
    for (int64_t w = 0; block != blocks_.data() + blocks_.size(); w += kLanes<A>) {
      Vec<A> sum[kRows]{};
      const T* tap_cells = cells;
      for (int64_t tap = 0; tap < taps; ++tap, ++block, tap_cells += tap_stride) {
        if (block->reach == Reach::kFar) {
          for (int r = 0; r < kRows; ++r) sum[r] += far(taps_[tap], w, tap_cells + r * stride);
        } else if (block->reach == Reach::kOne) {
          add_near<false>(*block, tap_cells + block->base, stride, sum);
        } else if (block->reach == Reach::kTwo) {
          add_near<true>(*block, tap_cells + block->base, stride, sum);
        }
      }
      for (int r = 0; r < kRows; ++r) store(out + r * out_stride + w, sum[r]);
    }
  }

  template <bool kTwo, int kRows, class T>
  [[gnu::always_inline]] static void add_near(const Block& block, const T* cells, int64_t stride,
                                              Vec<A> (&sum)[kRows]) {
    const IndexVec<A> first = block.first, second = block.second;
    const Vec<A> first_weight = block.first_weight, second_weight = block.second_weight;
    for (int r = 0; r < kRows; ++r, cells += stride) {
      const Vec<A> low = block.low == kLanes<A> ? load(cells) : load(cells, block.low);
      Vec<A> value;
      if constexpr (kTwo) {
        const Vec<A> high = load(cells + kLanes<A>, block.high);
        value = first_weight * permute<A>(low, high, first) +
                second_weight * permute<A>(low, high, second);
      } else {
        value = first_weight * permute<A>(low, first) + second_weight * permute<A>(low, second);
      }
      sum[r] += block.whole ? value : block.inside ? value : Vec<A>{};
    }
  }

  template <class T>
  static Vec<A> far(const Samples<A>& columns, int64_t w, const T* cells) {
    Vec<A> value{};
    const int64_t end = std::min(w + kLanes<A>, columns.end);
    for (int64_t i = std::max(w, columns.begin); i < end; ++i) {
      const Sample<A>& sample = columns[i];
      value[i - w] = sample.first_weight * value_of(cells + sample.first) +
                     sample.second_weight * value_of(cells + sample.second);
    }
    return value;
  }

  const std::vector<Samples<A>>& taps_;
  std::vector<Block> blocks_;
};

}  // namespace stripctx::cpu
