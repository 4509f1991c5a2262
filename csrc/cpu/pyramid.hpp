// The walk that mean and max pooling share on the CPU: x is read once, row by row. Rows of one cell
// are gathered position by position; at the cell's end the positions are gathered into cells of
// columns, these into the bins of each level, and every bin that ends here is written.
//
// What is gathered is the caller's: `Row` is an array of running results (sums, maxima), read and
// written a vector (Row::Lanes) or an element (Row::Lane) at a time; `take` adds an element that
// stands behind all earlier ones, and `merge` puts two results together.
#pragma once

#include <algorithm>
#include <vector>

#include "core/pyramid.hpp"
#include "cpu/kernels.hpp"
#include "cpu/simd.hpp"

namespace stripctx::cpu {

constexpr int64_t kPoolChannels = 128;  // of one work item on the channels_last path
constexpr int kPoolRows = 4;            // rows that share one pass over the columns
constexpr int64_t kLongestCell = 64;    // rows: sums of sums are more exact than one long sum

// The columns of a map as all levels cut them: cells, and the run of cells of each bin.
struct PoolColumns {
  Cells cells;
  std::vector<std::vector<Span>> spans;

  PoolColumns(int64_t width, const Levels& levels) : cells(width, levels.bins(3)) {
    for (const int64_t bins : levels.bins(3)) {
      auto& level = spans.emplace_back();
      for (int64_t j = 0; j < bins; ++j) level.push_back(cells.of(window(j, bins, width)));
    }
  }
};

// The widths of each level's bins, padded to whole vectors.
template <class A>
std::vector<std::vector<A>> bin_widths(const Levels& levels, int64_t width) {
  std::vector<std::vector<A>> result;
  for (const int64_t bins : levels.bins(3)) {
    auto& level = result.emplace_back(bins + kLanes<A>, A(1));
    for (int64_t j = 0; j < bins; ++j) level[j] = A(window(j, bins, width).size());
  }
  return result;
}

template <class T>
T* row_of(const View& view, int64_t n, int64_t c, int64_t h) {
  return static_cast<T*>(view.data) + n * view.stride[0] + c * view.stride[1] + h * view.stride[2];
}

// merge of row[begin], ..., row[end - 1]; at least one.
template <class A, class Row>
typename Row::Lane gather(const Row& row, const Span& span) {
  constexpr int64_t lanes = kLanes<A>;
  int64_t i = span.begin;
  auto result = row.get(i++);
  if (span.size() >= 2 * lanes) {
    auto some = row.load(span.begin);
    for (i = span.begin + lanes; i + lanes <= span.end; i += lanes) some = merge(some, row.load(i));
    result = some.lane(0);
    for (int lane = 1; lane < lanes; ++lane) result = merge(result, some.lane(lane));
  }
  for (; i < span.end; ++i) result = merge(result, row.get(i));
  return result;
}

// Takes a finished row of cells to the bins of one level. `ready` holds the level's results for the
// rows of this cell, `open` for the bin that began in an earlier cell: there is never more than
// one, for neighbouring bins share at most one row. Calls finish(i, results) for every bin that
// ends.
template <class A, class Row, class Finish>
void close_bins(const Span& rows, const Span& bins, int64_t bin_count, int64_t height, Row& ready,
                Row& open, int64_t count, Finish&& finish) {
  for (int64_t i = bins.begin; i < bins.end; ++i) {
    const Span bin = window(i, bin_count, height);
    const bool begins = bin.begin == rows.begin, ends = bin.end == rows.end;
    if (begins && ends) {
      finish(i, ready);
      continue;
    }
    for (int64_t k = 0; k < count; k += kLanes<A>) {
      open.store(k, begins ? ready.load(k) : merge(open.load(k), ready.load(k)));
    }
    if (ends) finish(i, open);
  }
}

// The rows of one level: results of this cell, and of the bin that is still open.
template <class Row>
struct LevelRows {
  Row ready, open;
};

template <class Row>
std::vector<LevelRows<Row>> level_rows(const Levels& levels, int64_t width) {
  std::vector<LevelRows<Row>> rows;
  for (const int64_t bins : levels.bins(3)) rows.push_back({Row(bins * width), Row(bins * width)});
  return rows;
}

// finish(level, n, c, i, results): element j of the results is bin (i, j).
template <class T, class Row, class Finish>
void pool_planes(const View& x, const Levels& levels, int64_t begin, int64_t end, Finish&& finish) {
  using A = Accumulate<T>;
  const int64_t C = x.size[1], H = x.size[2], W = x.size[3];
  const Cells rows(H, levels.bins(2), kLongestCell);
  const PoolColumns columns(W, levels);
  auto level_results = level_rows<Row>(levels, 1);
  Row column_results(W), cell_results(columns.cells.count());
  for (int64_t plane = begin; plane < end; ++plane) {
    const int64_t n = plane / C, c = plane % C;
    const T* map = static_cast<const T*>(x.data) + n * x.stride[0] + c * x.stride[1];
    const auto take_rows = [&]<int kRows>(int64_t h) {
      for_vectors<A>(W, [&](int64_t w, auto load_some, auto) {
        auto lanes = column_results.load(w);
        for (int r = 0; r < kRows; ++r) {
          lanes.take(load_some(map + (h + r) * x.stride[2] + w), Row::along(W, h + r, w));
        }
        column_results.store(w, lanes);
      });
    };
    for (int64_t r = 0; r < rows.count(); ++r) {
      int64_t h = rows[r].begin;
      for (int64_t w = 0; w < W; w += kLanes<A>) {
        column_results.store(w, Row::nothing(Row::along(W, h, w)));
      }
      for (; h + kPoolRows <= rows[r].end; h += kPoolRows) {
        take_rows.template operator()<kPoolRows>(h);
      }
      for (; h < rows[r].end; ++h) take_rows.template operator()<1>(h);
      for (int64_t k = 0; k < columns.cells.count(); ++k) {
        cell_results.set(k, gather<A>(column_results, columns.cells[k]));
      }
      for (int level = 0; level < levels.count; ++level) {
        auto& [ready, open] = level_results[level];
        const int64_t bins = levels[level].size[2], width = levels[level].size[3];
        for (int64_t j = 0; j < width; ++j) {
          ready.set(j, gather<A>(cell_results, columns.spans[level][j]));
        }
        close_bins<A>(rows[r], bins_at(rows[r].begin, bins, H), bins, H, ready, open, width,
                      [&](int64_t i, Row& results) { finish(level, n, c, i, results); });
      }
    }
  }
}

// finish(level, n, c, count, i, results): elements j * kPoolChannels + (0 ... count - 1) of the
// results are bin (i, j) of channels c, c + 1, ...
template <class T, class Row, class Finish>
void pool_channel_blocks(const View& x, const Levels& levels, int64_t begin, int64_t end,
                         Finish&& finish) {
  using A = Accumulate<T>;
  const int64_t C = x.size[1], H = x.size[2], W = x.size[3];
  const int64_t blocks = ceil_div(C, kPoolChannels);
  const Cells rows(H, levels.bins(2), kLongestCell);
  const PoolColumns columns(W, levels);
  auto level_results = level_rows<Row>(levels, kPoolChannels);
  Row cell_results(columns.cells.count() * kPoolChannels);
  for (int64_t item = begin; item < end; ++item) {
    const int64_t n = item / blocks, c = item % blocks * kPoolChannels;
    const int64_t count = std::min(kPoolChannels, C - c);
    const T* map = static_cast<const T*>(x.data) + n * x.stride[0] + c * x.stride[1];
    for (int64_t r = 0; r < rows.count(); ++r) {
      for (int64_t k = 0; k < columns.cells.count(); ++k) {
        const auto nothing = Row::nothing(Row::same(W, rows[r].begin, columns.cells[k].begin));
        for (int64_t i = 0; i < count; i += kLanes<A>) {
          cell_results.store(k * kPoolChannels + i, nothing);
        }
      }
      for (int64_t h = rows[r].begin; h < rows[r].end; ++h) {
        for (int64_t k = 0; k < columns.cells.count(); ++k) {
          for (int64_t w = columns.cells[k].begin; w < columns.cells[k].end; ++w) {
            const T* pixel = map + h * x.stride[2] + w * x.stride[3];
            for_vectors<A>(count, [&](int64_t i, auto load_some, auto) {
              auto lanes = cell_results.load(k * kPoolChannels + i);
              lanes.take(load_some(pixel + i), Row::same(W, h, w));
              cell_results.store(k * kPoolChannels + i, lanes);
            });
          }
        }
      }
      for (int level = 0; level < levels.count; ++level) {
        auto& [ready, open] = level_results[level];
        const int64_t bins = levels[level].size[2], width = levels[level].size[3];
        for (int64_t j = 0; j < width; ++j) {
          const Span span = columns.spans[level][j];
          for (int64_t i = 0; i < count; i += kLanes<A>) {
            auto lanes = cell_results.load(span.begin * kPoolChannels + i);
            for (int64_t k = span.begin + 1; k < span.end; ++k) {
              lanes = merge(lanes, cell_results.load(k * kPoolChannels + i));
            }
            ready.store(j * kPoolChannels + i, lanes);
          }
        }
        close_bins<A>(rows[r], bins_at(rows[r].begin, bins, H), bins, H, ready, open,
                      width * kPoolChannels,
                      [&](int64_t i, Row& results) { finish(level, n, c, count, i, results); });
      }
    }
  }
}

inline bool pools_channels_last(const View& x, const Levels& levels) {
  return x.channels_last() && levels.channels_last();
}

inline Work pool_work(const View& x, const Levels& levels) {
  const int64_t C = x.size[1];
  const int64_t blocks = pools_channels_last(x, levels) ? ceil_div(C, kPoolChannels) : C;
  return share(x.size[0] * blocks, x.numel());
}

}  // namespace stripctx::cpu
