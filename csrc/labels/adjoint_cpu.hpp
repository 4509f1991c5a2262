// The gradient of small logits from a loss's gradient by the interpolated logits ("slopes") on the
// CPU. Slopes are computed for a tile of pixels and a few classes, then reduced along H over the
// rows that read the same two rows of logits, then along W. Neither the interpolated logits nor the
// slopes are stored as a whole.
//
// A work item is a block of rows of logits, a block of classes and one image. It also recomputes
// the slopes of the image rows just above its block, which contribute to its first row of logits,
// so no two items write the same gradient. The terms of a gradient and their order do not depend on
// the division.
#pragma once

#include "labels/tiles_cpu.hpp"

namespace stripctx::cpu {

constexpr int64_t kMostRowBlocks = 32;  // work items wanted: row blocks * images * class blocks
constexpr int64_t kFewestRows = 8;      // rows of logits per block

// The adjoint of the interpolation along W. Rows of sums are collected until there is one for every
// lane, then transposed and reduced cell by cell in registers.
template <class A>
class ColumnAdjoint {
  static constexpr int64_t lanes = kLanes<A>;

 public:
  ColumnAdjoint(const WideLogits& logits, const View& grad)
      : grad_(grad),
        W_(logits.image[1]),
        pitch_(padded<A>(W_)),
        columns_(logits.axis<A>(1), 0, W_),
        rows_(lanes * pitch_),
        cells_(padded<A>(grad.size[3]) * lanes) {}

  int64_t pitch() const { return pitch_; }

  // Returns space for `count` rows, at most kLanes. The caller fills them, and names the
  // destination of each by close().
  A* open(int64_t count) {
    if (held_ + count > lanes) flush();
    A* row = rows_.data() + held_ * pitch_;
    return row;
  }
  void close(int64_t n, int64_t k, int64_t i) { to_[held_++] = {n, k, i}; }

  void flush() {
    if (held_ == 0) return;
    add_cells();
    dispatch_elements<A>(grad_.dtype, [&]<class T>() { write<T>(); });
    held_ = 0;
  }

 private:
  struct Row {
    int64_t n, k, i;
  };

  template <class T>
  void write() {
    const int64_t w = grad_.size[3];
    T* to[lanes];
    for (int64_t r = 0; r < held_; ++r) to[r] = at<T>(grad_, to_[r].n, to_[r].k, to_[r].i, 0);
    for (int64_t j = 0; j < w; j += lanes) {
      const int some = static_cast<int>(std::min(lanes, w - j));
      Vec<A> square[lanes];
      for (int64_t i = 0; i < lanes; ++i) square[i] = load(cells_.data() + (j + i) * lanes);
      if (grad_.stride[3] == 1 || w == 1) {
        transpose(square);
        for (int64_t r = 0; r < held_; ++r) store(to[r] + j, square[r], some);
      } else {
        for (int64_t i = 0; i < some; ++i) {
          for (int64_t r = 0; r < held_; ++r) {
            store(to[r] + (j + i) * grad_.stride[3], splat(square[i][r]), 1);
          }
        }
      }
    }
  }

  void add_cells() {
    A* cell = cells_.data();
    int64_t place = 0;
    Vec<A> here{}, next{};
    const auto reach = [&](int64_t wanted) {
      for (; place < wanted; ++place, cell += lanes) {
        store(cell, here);
        here = next;
        next = Vec<A>{};
      }
    };
    for (int64_t w = 0; w < W_; w += lanes) {
      Vec<A> square[lanes]{};
      for (int64_t r = 0; r < held_; ++r) square[r] = load(rows_.data() + r * pitch_ + w);
      transpose(square);
      const int64_t some = std::min(lanes, W_ - w);
      for (int64_t i = 0; i < some; ++i) {
        const Sample<A>& sample = columns_[w + i];
        reach(sample.first);
        here += sample.first_weight * square[i];
        Vec<A>& second = sample.second == sample.first ? here : next;
        second += sample.second_weight * square[i];
      }
    }
    reach(padded<A>(grad_.size[3]));
  }

  const View& grad_;
  int64_t W_, pitch_;
  Samples<A> columns_;
  Buffer<A> rows_, cells_;
  Row to_[lanes];
  int64_t held_ = 0;
};

// The division of the gradient into work items: blocks of classes, fastest, then blocks of rows,
// then images, so that adjacent items cost the same.
template <class A>
struct LogitItems {
  int64_t blocks, row_blocks, rows, classes_each, items;

  explicit LogitItems(const WideLogits& logits)
      : blocks(ceil_div(logits.classes(), kLanes<A>)),
        classes_each(ceil_div(logits.classes(), blocks)) {
    const int64_t wanted =
        std::max<int64_t>(1, kMostRowBlocks / std::max<int64_t>(1, blocks * logits.size[0]));
    rows = std::max(kFewestRows, ceil_div(logits.size[2], wanted));
    row_blocks = ceil_div(logits.size[2], rows);
    items = logits.size[0] * row_blocks * blocks;
  }
};

inline Work gradient_work(const WideLogits& logits) {
  int64_t items = 0;
  dispatch_wide(logits.dtype, [&]<class A>() { items = LogitItems<A>(logits).items; });
  return share(items, logits.pixels() * logits.classes());
}

// For each tile of a group, calls slopes.prepare<kRows>(n, group, w, width, k), then
// slopes.slope(c, r, w, z) for each vector: the slopes of class k + c at row r of the group and
// pixel w of the tile, where the logits are z.
template <class A, class Slopes>
void logit_gradients(const WideLogits& logits, const View& grad, Slopes&& slopes, int64_t begin,
                     int64_t end) {
  constexpr int64_t lanes = kLanes<A>;
  const LogitItems<A> cut(logits);
  const auto groups = row_groups<A>(logits);
  LogitTiles<A> tiles(logits, cut.classes_each);
  ColumnAdjoint<A> adjoint(logits, grad);
  const int64_t pitch = adjoint.pitch();
  // the previous rows' contribution to the next row of logits
  Buffer<A> carry(cut.classes_each * pitch);
  for (int64_t item = begin; item < end; ++item) {
    const int64_t k = item % cut.blocks * cut.classes_each,
                  row_block = item / cut.blocks % cut.row_blocks;
    const int64_t n = item / cut.blocks / cut.row_blocks;
    const int64_t count = std::min(cut.classes_each, logits.classes() - k);
    const int64_t first = row_block * cut.rows, last = std::min(first + cut.rows, logits.size[2]);
    carry.clear();
    auto group = std::lower_bound(groups.begin(), groups.end(), first - 1,
                                  [](const auto& group, int64_t row) { return group.first < row; });
    for (int64_t row = std::max<int64_t>(0, first - 1); row < last; ++row) {
      A* sums = adjoint.open(count);
      for (int64_t c = 0; c < count; ++c) {
        std::copy_n(carry.data() + c * pitch, pitch, sums + c * pitch);
      }
      carry.clear();
      for (; group != groups.end() && group->first == row; ++group) {
        for (int64_t tile = 0; tile < tiles.count(); ++tile) {
          const int64_t at = tiles.begin(tile), width = tiles.width(tile);
          tiles.read(n, *group, tile, k, count);
          with_rows(group->count(), [&]<int kRows>() {
            slopes.template prepare<kRows>(n, *group, at, width, k);
            for (int64_t c = 0; c < count; ++c) {
              const A* low = tiles.low() + c * tiles.pitch();
              const A* high = tiles.high() + c * tiles.pitch();
              for (int64_t w = 0; w < width; w += lanes) {
                const Vec<A> below = load(low + w), above = load(high + w);
                Vec<A> to_first{}, to_second{};
                for (int r = 0; r < kRows; ++r) {
                  const Vec<A> z = group->low[r] * below + group->high[r] * above;
                  const Vec<A> slope = slopes.slope(c, r, w, z);
                  to_first += group->low[r] * slope;
                  to_second += group->high[r] * slope;
                }
                A *here = sums + c * pitch + at + w, *next = carry.data() + c * pitch + at + w;
                store(here, load(here) + to_first);
                store(next, load(next) + to_second);
              }
            }
          });
        }
      }
      for (int64_t c = 0; c < count && row >= first; ++c) adjoint.close(n, k + c, row);
    }
    adjoint.flush();
  }
}

// Per pixel of a tile of a group's rows: the label, -1 if ignored, and kNumbers numbers.
template <class A, int kNumbers>
struct PixelTile {
  static constexpr int64_t kWidth = 8 * kLanes<A>;
  alignas(kVectorBytes) A label[kMostRows][kWidth], number[kNumbers][kMostRows][kWidth];
};

}  // namespace stripctx::cpu
