// The walk that mean and max pooling share on the CPU: x is read once, a row of cells after
// another. Cells are gathered into the bins of each level, and every bin that ends here is written.
//
// This works on whole vectors of channels: those of a channels_last map as they lie, and as many
// planes of a contiguous map as a vector has lanes, turned over (transpose.hpp) when the rows of a
// cell have been gathered position by position.
//
// What is gathered is the caller's: `Row` is an array of running results (sums, maxima), read and
// written a vector, Row::Lanes, at a time; `take` adds elements that stand behind all earlier ones,
// and `merge` puts two results together.
#pragma once

#include <algorithm>
#include <vector>

#include "core/pyramid.hpp"
#include "cpu/kernels.hpp"
#include "cpu/planes.hpp"
#include "cpu/simd.hpp"

namespace stripctx::cpu {

constexpr int64_t kPoolChannels = 128;  // of one work item on the channels_last path
constexpr int kPoolVectors = 8;         // of them, whose running results stay in registers
constexpr int64_t kLongestCell = 64;    // rows: sums of sums are more exact than one long sum

// The cells of a map and the bins of its levels, each axis by itself.
struct PoolGrid {
  struct Axis {
    std::vector<Span> windows;  // the positions of each bin
    std::vector<Span> cells;    // and its cells
    std::vector<Span> over;     // the bins over each cell
  };

  Cells rows, columns;
  std::vector<Axis> down, across;  // a level's bins along H and along W

  PoolGrid(const View& map, const Levels& levels)
      : rows(map.size[2], levels.bins(2), kLongestCell), columns(map.size[3], levels.bins(3)) {
    for (const int64_t bins : levels.bins(2)) down.push_back(axis(rows, bins));
    for (const int64_t bins : levels.bins(3)) across.push_back(axis(columns, bins));
  }

 private:
  static Axis axis(const Cells& cells, int64_t bins) {
    Axis result;
    for (int64_t i = 0; i < bins; ++i) {
      result.windows.push_back(window(i, bins, cells.length()));
      result.cells.push_back(cells.of(result.windows.back()));
    }
    for (int64_t k = 0; k < cells.count(); ++k) {
      result.over.push_back(bins_at(cells[k].begin, bins, cells.length()));
    }
    return result;
  }
};

// How many positions each bin of each level has along H (dimension 2) or W (3).
template <class A>
std::vector<std::vector<A>> bin_sizes(const Levels& levels, const View& map, int dimension) {
  std::vector<std::vector<A>> result;
  for (const int64_t bins : levels.bins(dimension)) {
    auto& level = result.emplace_back();
    for (int64_t i = 0; i < bins; ++i) {
      level.push_back(A(window(i, bins, map.size[dimension]).size()));
    }
  }
  return result;
}

// And each bin of each level, row after row.
template <class A>
std::vector<std::vector<A>> bin_sizes(const Levels& levels, const View& map) {
  const auto heights = bin_sizes<A>(levels, map, 2), widths = bin_sizes<A>(levels, map, 3);
  std::vector<std::vector<A>> result(levels.count);
  for (int k = 0; k < levels.count; ++k) {
    for (const A height : heights[k]) {
      for (const A width : widths[k]) result[k].push_back(height * width);
    }
  }
  return result;
}

// From a row of cells to the bins of all levels, for kWidth channels side by side.
template <class A, class Row, int64_t kWidth>
class Pooler {
 public:
  PoolGrid grid;
  Row cells;  // kWidth results for each cell of the row

  Pooler(const View& map, const Levels& levels)
      : grid(map, levels), cells(grid.columns.count() * kWidth) {
    for (const int64_t bins : levels.bins(3)) {
      levels_.push_back({Row(bins * kWidth), Row(bins * kWidth)});
    }
  }

  // Row cell r is complete: calls finish(level, i, results) for every bin row that ends with it.
  template <class Finish>
  void close(int64_t r, Finish&& finish) {
    for (size_t k = 0; k < levels_.size(); ++k) {
      auto& [ready, open] = levels_[k];
      const auto& across = grid.across[k].cells;
      for (size_t j = 0; j < across.size(); ++j) {
        for (int64_t i = 0; i < kWidth; i += kLanes<A>) {
          auto lanes = cells.load(across[j].begin * kWidth + i);
          for (int64_t cell = across[j].begin + 1; cell < across[j].end; ++cell) {
            lanes = merge(lanes, cells.load(cell * kWidth + i));
          }
          ready.store(j * kWidth + i, lanes);
        }
      }
      const PoolGrid::Axis& down = grid.down[k];
      for (int64_t i = down.over[r].begin; i < down.over[r].end; ++i) {
        const bool begins = down.cells[i].begin == r, ends = down.cells[i].end == r + 1;
        if (begins && ends) {
          finish(static_cast<int>(k), i, ready);
          continue;
        }
        for (size_t q = 0; q < across.size() * kWidth; q += kLanes<A>) {
          open.store(q, begins ? ready.load(q) : merge(open.load(q), ready.load(q)));
        }
        if (ends) finish(static_cast<int>(k), i, open);
      }
    }
  }

 private:
  // Results of this row cell, and of the bin that began in an earlier one: there is never more than
  // one, for neighbouring bins share at most one row.
  struct Level {
    Row ready, open;
  };
  std::vector<Level> levels_;
};

// Gathers the rows of a cell of one plane position by position, in `out` from `to` on. Running
// results stay in registers while rows pass by.
template <class T, class Row>
void gather_row(const View& x, const T* map, const Span& rows, Row& out, int64_t to) {
  constexpr int64_t lanes = kLanes<Accumulate<T>>;
  const int64_t W = x.size[3];
  for_columns(W, lanes, [&]<int kVectors>(int64_t w) {
    const int64_t last = W - w - (kVectors - 1) * lanes;  // columns of the last vector
    typename Row::Lanes gathered[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      gathered[v] = Row::nothing(Row::along(W, rows.begin, w + v * lanes));
    }
    for (int64_t h = rows.begin; h < rows.end; ++h) {
      const T* row = map + h * x.stride[2] + w;
      for (int v = 0; v < kVectors; ++v, row += lanes) {
        const bool whole = v < kVectors - 1 || last >= lanes;
        gathered[v].take(whole ? load(row) : load(row, static_cast<int>(last)),
                         Row::along(W, h, w + v * lanes));
      }
    }
    for (int v = 0; v < kVectors; ++v) out.store(to + w + v * lanes, gathered[v]);
  });
}

// finish(level, plane, count, results): lane p of results[i * bins_w + j] is bin (i, j) of plane p
// of `count`.
template <class T, class Row, class Finish>
void pool_planes(const View& x, const Levels& levels, int64_t begin, int64_t end, Finish&& finish) {
  using A = Accumulate<T>;
  constexpr int64_t kPlanes = kLanes<A>;
  const int64_t C = x.size[1], W = x.size[3];
  Pooler<A, Row, kPlanes> pooler(x, levels);
  const Cells& rows = pooler.grid.rows;
  const Shortening<A> shorten(pooler.grid.columns);
  const bool shortens = shorten.length < W;
  const int64_t length = ceil_div(shorten.length, kPlanes) * kPlanes;
  const int64_t pitch = length + (shortens ? kPlanes : 0);
  const int64_t at_a_time = std::min(rows.count(), row_cells_at_a_time(kPlanes * pitch));
  Row positions(at_a_time * kPlanes * pitch), turned(kPlanes * length), line(W + kPlanes);
  std::vector<Row> bins;
  for (int k = 0; k < levels.count; ++k) {
    const int64_t count = levels[k].size[2] * levels[k].size[3];
    bins.emplace_back(ceil_div(count, kPlanes) * kPlanes * kPlanes);  // to be turned over whole
  }

  for (int64_t item = begin; item < end; ++item) {
    const int64_t plane = item * kPlanes, count = std::min(kPlanes, x.size[0] * C - plane);
    for (int64_t first = 0; first < rows.count(); first += at_a_time) {
      const int64_t last = std::min(first + at_a_time, rows.count());
      for_planes<const T>(x, plane, count, 0, [&](int64_t p, const T* map) {
        for (int64_t r = first; r < last; ++r) {
          const int64_t to = ((r - first) * kPlanes + p) * pitch;
          gather_row(x, map, rows[r], shortens ? line : positions, shortens ? 0 : to);
          if (shortens) shorten(line, positions, to);
        }
      });
      for (int64_t r = first; r < last; ++r) {
        for (int64_t w = 0; w < length; w += kPlanes) {
          turned.turn(w * kPlanes, positions, (r - first) * kPlanes * pitch + w, pitch);
        }
        for (int64_t k = 0; k < pooler.grid.columns.count(); ++k) {
          const Span cell = shorten.cells[k];
          auto lanes = turned.load(cell.begin * kPlanes);
          for (int64_t w = cell.begin + 1; w < cell.end; ++w) {
            lanes = merge(lanes, turned.load(w * kPlanes));
          }
          pooler.cells.store(k * kPlanes, lanes);
        }
        pooler.close(r, [&](int level, int64_t i, const Row& results) {
          const int64_t width = levels[level].size[3] * kPlanes;
          for (int64_t q = 0; q < width; q += kPlanes) {
            bins[level].store(i * width + q, results.load(q));
          }
        });
      }
    }
    for (int k = 0; k < levels.count; ++k) finish(k, plane, count, bins[k]);
  }
}

// finish(level, n, c, count, i, results): elements j * kPoolChannels + (0 ... count - 1) of the
// results are bin (i, j) of channels c, c + 1, ...
template <class T, class Row, class Finish>
void pool_channels(const View& x, const Levels& levels, int64_t begin, int64_t end,
                   Finish&& finish) {
  using A = Accumulate<T>;
  const int64_t C = x.size[1], W = x.size[3], blocks = ceil_div(C, kPoolChannels);
  Pooler<A, Row, kPoolChannels> pooler(x, levels);
  for (int64_t item = begin; item < end; ++item) {
    const int64_t n = item / blocks, c = item % blocks * kPoolChannels;
    const int64_t count = std::min(kPoolChannels, C - c);
    for (int64_t r = 0; r < pooler.grid.rows.count(); ++r) {
      const Span rows = pooler.grid.rows[r];
      for (int64_t k = 0; k < pooler.grid.columns.count(); ++k) {
        const Span columns = pooler.grid.columns[k];
        for_vector_groups<A, kPoolVectors>(
            count, [&]<int kVectors>(int64_t i, auto load_some, auto) {
              typename Row::Lanes gathered[kVectors];
              for (int v = 0; v < kVectors; ++v) {
                gathered[v] = Row::nothing(Row::same(W, rows.begin, columns.begin));
              }
              for (int64_t h = rows.begin; h < rows.end; ++h) {
                const T* pixel = at<const T>(x, n, c + i, h, columns.begin);
                for (int64_t w = columns.begin; w < columns.end; ++w, pixel += x.stride[3]) {
                  for (int v = 0; v < kVectors; ++v) {
                    gathered[v].take(load_some(pixel + v * kLanes<A>), Row::same(W, h, w));
                  }
                }
              }
              for (int v = 0; v < kVectors; ++v) {
                pooler.cells.store(k * kPoolChannels + i + v * kLanes<A>, gathered[v]);
              }
            });
      }
      pooler.close(r, [&](int level, int64_t i, const Row& results) {
        finish(level, n, c, count, i, results);
      });
    }
  }
}

inline bool pools_channels_last(const View& x, const Levels& levels) {
  return x.channels_last() && levels.channels_last();
}

inline Work pool_work(const View& x, const Levels& levels) {
  const int64_t lanes = x.dtype == DType::kFloat64 ? kLanes<double> : kLanes<float>;
  const int64_t items = pools_channels_last(x, levels)
                            ? x.size[0] * ceil_div(x.size[1], kPoolChannels)
                            : ceil_div(x.size[0] * x.size[1], lanes);
  return share(items, x.numel());
}

}  // namespace stripctx::cpu
