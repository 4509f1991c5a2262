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

// Sums of a map's rows for one level and one row of taps, in a ring buffer of rows. At most two
// rows are being added to at a time; completed rows are delivered `together` at a time.
template <class T>
class RowSums {
  using A = Accumulate<T>;

 public:
  RowSums(const Samples<A>& rows, int64_t together, int64_t runs, int64_t length)
      : rows_(&rows),
        together_(together),
        run_(padded<A>(length)),
        row_(runs * run_),
        buffer_(2 * together * row_) {}

  // Starts with another map.
  void start() { next_ = rows_->begin, done_ = open_ = 0; }

  // Adds the map's rows up to `end` that have not been added. Calls finished(i, count, sums,
  // stride) for all rows of the level, each once it is complete.
  template <class Finished>
  void advance(const Rows<T>& map, int64_t end, Finished&& finished) {
    const auto finish = [&](int64_t end) {
      for (int64_t next; done_ < end; done_ = next) {
        next = std::min(end, (done_ / together_ + 1) * together_);
        finished(done_, next - done_, row(done_), row_);
      }
    };
    const auto open = [&](int64_t i) {
      if (i < open_) return false;
      for (; open_ <= i; ++open_) {
        if (open_ % together_ == 0) finish(open_ - together_);
        if (open_ < i) std::fill(row(open_), row(open_) + row_, A(0));
      }
      return true;
    };
    const Samples<A>& rows = *rows_;
    while (next_ < std::min(end, rows.end)) {
      const Sample<A>& between = rows[next_];
      int64_t last = next_ + 1;
      while (last < std::min(end, rows.end) && rows[last].first == between.first) ++last;
      const bool low_is_new = open(between.first);
      if (between.first == between.second) {
        add<true>(map, last, low_is_new, false);
      } else {
        add<false>(map, last, low_is_new, open(between.second));
      }
      next_ = last;
    }
    if (next_ < rows.end) return;
    if (open_ < rows.cells && open(rows.cells - 1)) {
      std::fill(row(rows.cells - 1), row(rows.cells - 1) + row_, A(0));
    }
    finish(rows.cells);
  }

 private:
  A* row(int64_t i) { return buffer_.data() + i % (2 * together_) * row_; }

  // Adds rows [next_, end), which all read the same two cells, or the same single cell (kOne).
  template <bool kOne>
  void add(const Rows<T>& map, int64_t end, bool low_is_new, bool high_is_new) {
    const Samples<A>& rows = *rows_;
    A* low = row(rows[next_].first);
    A* high = row(rows[next_].second);
    for (int64_t run = 0; run < map.runs; ++run, low += run_, high += run_) {
      const T* source = map.data + next_ * map.row_stride + run * map.run_stride;
      for_four_vectors<A>(map.length, [&]<int kVectors>(int64_t k, int count) {
        constexpr int whole = kLanes<A>;
        Vec<A> low_sum[kVectors]{}, high_sum[kVectors]{}, gradient[kVectors];
        if (!low_is_new) load_vectors(low + k, whole, low_sum);
        if (!kOne && !high_is_new) load_vectors(high + k, whole, high_sum);
        const T* value = source + k;
        for (int64_t i = next_; i < end; ++i, value += map.row_stride) {
          const A first = rows[i].first_weight, second = rows[i].second_weight;
          load_vectors(value, count, gradient);
          for (int v = 0; v < kVectors; ++v) {
            low_sum[v] += (kOne ? first + second : first) * gradient[v];
            if constexpr (!kOne) high_sum[v] += second * gradient[v];
          }
        }
        store_vectors(low + k, whole, low_sum);
        if constexpr (!kOne) store_vectors(high + k, whole, high_sum);
      });
    }
  }

  const Samples<A>* rows_;
  int64_t together_, run_, row_;
  Buffer<A> buffer_;
  // ends: of the map's rows added, of the level's rows delivered, of those started
  int64_t next_ = 0, done_ = 0, open_ = 0;
};

}  // namespace stripctx::cpu
