// The adjoint of interpolation along H on the CPU: weighted sums of rows.
#pragma once

#include "upsample/weights_cpu.hpp"

namespace stripctx::cpu {

// Rows in memory: each consists of `runs` runs of `length` elements, `run_stride` apart. A row of a
// plane is one run; a row of a channels_last map has one run of channels per pixel.
template <class T>
struct Rows {
  const T* data;
  int64_t row_stride, runs, run_stride, length;
};

// Sums of a map's rows for one level and one row of taps. Each row of the map is added to one row
// of sums or to two neighbouring ones. Completed rows of sums are delivered `together` at a time,
// from a ring buffer that holds twice as many.
template <class T>
class RowSums {
  using A = Accumulate<T>;

 public:
  RowSums(const Samples<A>& rows, int64_t together, int64_t runs, int64_t length)
      : rows_(rows),
        together_(together),
        run_(padded<A>(length)),
        row_(runs * run_),
        buffer_(2 * together * row_) {}

  // Starts with another map.
  void start() { next_ = rows_.begin, cell_ = open_ = 0; }

  // Adds the map's rows up to `end` that have not been added. Calls finished(i, count, sums,
  // stride) for all rows of the level, each once it is complete.
  template <class Finished>
  void advance(const Rows<T>& map, int64_t end, Finished&& finished) {
    end = std::min(end, rows_.end);
    for (; cell_ < rows_.cells; ++cell_) {
      const int64_t first = next_;
      while (next_ < end && rows_[next_].first == cell_) ++next_;
      if (first < next_) {
        rows_[first].second == cell_ ? add<true>(map, first, next_) : add<false>(map, first, next_);
      }
      if (next_ >= end && end < rows_.end) return;                // later rows may read this cell
      if (cell_ == open_) std::fill_n(row(open_++), row_, A(0));  // no row reads it
      const int64_t group = cell_ % together_;
      if (group + 1 == together_ || cell_ + 1 == rows_.cells) {
        finished(cell_ - group, group + 1, row(cell_ - group), row_);
      }
    }
  }

 private:
  A* row(int64_t i) { return buffer_.data() + i % (2 * together_) * row_; }

  // Adds rows [first, last), which read one cell (kOne) or that and the next.
  template <bool kOne>
  void add(const Rows<T>& map, int64_t first, int64_t last) {
    const Samples<A>& rows = rows_;
    A *low = row(cell_), *high = row(cell_ + 1);
    const bool low_is_open = cell_ < open_, high_is_open = cell_ + 1 < open_;
    for (int64_t run = 0; run < map.runs; ++run, low += run_, high += run_) {
      const T* source = map.data + first * map.row_stride + run * map.run_stride;
      for_four_vectors<A>(map.length, [&]<int kVectors>(int64_t k, int count) {
        constexpr int whole = kLanes<A>;
        Vec<A> low_sum[kVectors]{}, high_sum[kVectors]{}, gradient[kVectors];
        if (low_is_open) load_vectors(low + k, whole, low_sum);
        if (!kOne && high_is_open) load_vectors(high + k, whole, high_sum);
        const T* value = source + k;
        for (int64_t i = first; i < last; ++i, value += map.row_stride) {
          const A weight = rows[i].first_weight, second = rows[i].second_weight;
          load_vectors(value, count, gradient);
          for (int v = 0; v < kVectors; ++v) {
            low_sum[v] += (kOne ? weight + second : weight) * gradient[v];
            if constexpr (!kOne) high_sum[v] += second * gradient[v];
          }
        }
        store_vectors(low + k, whole, low_sum);
        if constexpr (!kOne) store_vectors(high + k, whole, high_sum);
      });
    }
    open_ = cell_ + (kOne ? 1 : 2);
  }

  const Samples<A>& rows_;
  const int64_t together_, run_, row_;
  Buffer<A> buffer_;
  // The first row of the map not yet added, of sums not yet complete, of sums not yet begun.
  int64_t next_ = 0, cell_ = 0, open_ = 0;
};

}  // namespace stripctx::cpu
