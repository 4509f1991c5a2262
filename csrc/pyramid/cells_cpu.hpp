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

#include "pyramid/params.hpp"

#include <algorithm>
#include <vector>

#include "cpu/loops.hpp"
#include "cpu/simd.hpp"

namespace stripctx::cpu {

constexpr int64_t kPoolChannels = 128;        // of one work item on the channels_last path
constexpr int kPoolVectors = 8;               // of channels whose running results stay in registers
constexpr int64_t kPoolPixels = 4;            // whole pixels that are read side by side, or more:
constexpr int64_t kPoolElements = 8192;       // of them that the innermost cache holds
constexpr int64_t kPoolResults = 128 * 1024;  // bytes of running results that the next cache holds
constexpr int64_t kLongestCell = 64;          // rows: sums of sums are more exact than one long sum

// The positions of each bin of each level along H (dimension 2) or W (3).
inline std::vector<std::vector<Span>> bin_windows(const PooledLevels& levels, const View& map,
                                                  int dimension) {
  std::vector<std::vector<Span>> result;
  for (const int64_t bins : levels.bins(dimension)) {
    auto& level = result.emplace_back();
    for (int64_t i = 0; i < bins; ++i) level.push_back(window(i, bins, map.size[dimension]));
  }
  return result;
}

// How many positions each bin of each level has, row after row.
template <class A>
std::vector<std::vector<A>> bin_sizes(const PooledLevels& levels, const View& map) {
  const auto down = bin_windows(levels, map, 2), across = bin_windows(levels, map, 3);
  std::vector<std::vector<A>> result(levels.count);
  for (int k = 0; k < levels.count; ++k) {
    for (const Span& rows : down[k]) {
      for (const Span& columns : across[k]) result[k].push_back(A(rows.size() * columns.size()));
    }
  }
  return result;
}

// The cells of a map and the bins of its levels, each axis by itself.
struct PoolGrid {
  struct Axis {
    std::vector<Span> cells;  // of each bin
    std::vector<Span> over;   // the bins over each cell
  };

  Cells rows, columns;
  std::vector<Axis> down, across;  // a level's bins along H and along W

  PoolGrid(const View& map, const PooledLevels& levels)
      : rows(map.size[2], levels.bins(2), kLongestCell), columns(map.size[3], levels.bins(3)) {
    for (const auto& windows : bin_windows(levels, map, 2)) down.push_back(axis(rows, windows));
    for (const auto& windows : bin_windows(levels, map, 3))
      across.push_back(axis(columns, windows));
  }

 private:
  static Axis axis(const Cells& cells, const std::vector<Span>& windows) {
    Axis result;
    const int64_t bins = windows.size();
    for (const Span& positions : windows) result.cells.push_back(cells.of(positions));
    for (int64_t k = 0; k < cells.count(); ++k) {
      result.over.push_back(bins_at(cells[k].begin, bins, cells.length()));
    }
    return result;
  }
};

// Calls body(p, start of plane `plane` + p) for `count` planes; a plane's number is n * C + c.
template <class T, class Body>
inline void for_planes(const View& map, int64_t plane, int64_t count, Body&& body) {
  int64_t n = plane / map.size[1], c = plane % map.size[1];
  for (int64_t p = 0; p < count; ++p) {
    body(p, at<T>(map, n, c, 0, 0));
    if (++c == map.size[1]) ++n, c = 0;
  }
}

// Gathers the rows of a cell of one plane position by position, in `out` from `to` on. Running
// results stay in registers while rows pass by. The last vector overlaps the one before it, which
// costs less than a part of a vector.
template <class T, class Row>
void gather_row(const View& x, const T* map, const Span& rows, Row& out, int64_t to) {
  constexpr int64_t lanes = kLanes<Accumulate<T>>;
  const int64_t W = x.size[3], last_whole = std::max<int64_t>(0, W - lanes);
  const int narrow = static_cast<int>(std::min(W, lanes));
  for_four_vectors<Accumulate<T>>(W, [&]<int kVectors>(int64_t w, int) {
    const auto column = [=](int v) {
      return v < kVectors - 1 ? w + v * lanes : std::min(w + v * lanes, last_whole);
    };
    typename Row::Lanes gathered[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      gathered[v] = Row::nothing(Row::along(W, rows.begin, column(v)));
    }
    for (int64_t h = rows.begin; h < rows.end; ++h) {
      const T* row = map + h * x.stride[2];
      for (int v = 0; v < kVectors; ++v) {
        const T* p = row + column(v);
        gathered[v].take(narrow == lanes ? load(p) : load(p, narrow), Row::along(W, h, column(v)));
      }
    }
    for (int v = 0; v < kVectors; ++v) out.store(to + column(v), gathered[v]);
  });
}

// Row cells of several planes that are worked on at a time, so that a plane is read or written in
// long runs while `elements_each` numbers a row cell stay in the cache.
inline int64_t row_cells_at_a_time(int64_t elements_each) {
  return std::max<int64_t>(1, 65536 / elements_each);
}

// Shortens a row of positions before it is turned over: the whole vectors of a cell become one, and
// what is left of the cell follows it.
template <class A>
class Shortening {
 public:
  int64_t length = 0;       // of a shortened row
  std::vector<Span> cells;  // in it

  explicit Shortening(const Cells& columns) {
    for (int64_t k = 0; k < columns.count(); ++k) {
      const Span cell = columns[k];
      const int64_t vectors = std::max<int64_t>(1, cell.size() / kLanes<A>);
      const int64_t rest = std::max<int64_t>(0, cell.size() - vectors * kLanes<A>);
      pieces_.push_back({cell.begin, vectors, rest});
      cells.push_back({length, length + std::min<int64_t>(cell.size(), kLanes<A>) + rest});
      length = cells.back().end;
    }
  }

  // Writes up to a vector beyond the row's end.
  template <class Row>
  void operator()(const Row& positions, Row& shortened, int64_t to) const {
    for (size_t k = 0; k < pieces_.size(); ++k) {
      const Piece& piece = pieces_[k];
      auto lanes = positions.load(piece.first);
      for (int64_t v = 1; v < piece.vectors; ++v) {
        lanes = merge(lanes, positions.load(piece.first + v * kLanes<A>));
      }
      shortened.store(to + cells[k].begin, lanes);
      if (piece.rest == 0) continue;
      shortened.store(to + cells[k].begin + kLanes<A>,
                      positions.load(piece.first + piece.vectors * kLanes<A>));
    }
  }

 private:
  struct Piece {
    int64_t first, vectors, rest;
  };
  std::vector<Piece> pieces_;
};

// From a row of cells to the bins of all levels, for `width` channels side by side, whole vectors.
template <class A, class Row>
class Pooler {
 public:
  const int64_t width;
  Row cells;  // `width` results for each cell of the row

  Pooler(const PoolGrid& grid, int64_t width)
      : width(width), cells(grid.columns.count() * width), grid_(grid) {
    for (const PoolGrid::Axis& across : grid.across) {
      const int64_t bins = across.cells.size();
      levels_.push_back({Row(bins * width), Row(bins * width)});
    }
  }

  // Row cell r is complete: calls finish(level, i, results) for every bin row that ends with it.
  template <class Finish>
  void close(int64_t r, Finish&& finish) {
    for (size_t k = 0; k < levels_.size(); ++k) {
      auto& [ready, open] = levels_[k];
      const auto& across = grid_.across[k].cells;
      for (size_t j = 0; j < across.size(); ++j) {
        for (int64_t i = 0; i < width; i += kLanes<A>) {
          auto lanes = cells.load(across[j].begin * width + i);
          for (int64_t cell = across[j].begin + 1; cell < across[j].end; ++cell) {
            lanes = merge(lanes, cells.load(cell * width + i));
          }
          ready.store(j * width + i, lanes);
        }
      }
      const PoolGrid::Axis& down = grid_.down[k];
      for (int64_t i = down.over[r].begin; i < down.over[r].end; ++i) {
        const bool begins = down.cells[i].begin == r, ends = down.cells[i].end == r + 1;
        if (begins && ends) {
          finish(static_cast<int>(k), i, ready);
          continue;
        }
        for (size_t q = 0; q < across.size() * width; q += kLanes<A>) {
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
  const PoolGrid& grid_;
  std::vector<Level> levels_;
};

// finish(level, plane, count, results): lane p of results[i * bins_w + j] is bin (i, j) of plane p
// of `count`.
template <class T, class Row, class Finish>
void pool_planes(const View& x, const PooledLevels& levels, int64_t begin, int64_t end,
                 Finish&& finish) {
  using A = Accumulate<T>;
  constexpr int64_t kPlanes = kLanes<A>;
  const int64_t C = x.size[1], W = x.size[3];
  const PoolGrid grid(x, levels);
  Pooler<A, Row> pooler(grid, kPlanes);
  const Cells& rows = grid.rows;
  const Shortening<A> shorten(grid.columns);
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
      for_planes<const T>(x, plane, count, [&](int64_t p, const T* map) {
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
        for (int64_t k = 0; k < grid.columns.count(); ++k) {
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

// Takes a rectangle of pixels into the running results of `count` channels, or begins with them.
template <class T, class Row>
void take_pixels(const View& x, const T* map, const Span& rows, const Span& columns, bool begins,
                 int64_t count, Row& out, int64_t to) {
  using A = Accumulate<T>;
  const int64_t W = x.size[3];
  for_vector_groups<A, kPoolVectors>(count, [&]<int kVectors>(int64_t i, auto load_some, auto) {
    typename Row::Lanes gathered[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      gathered[v] = begins ? Row::nothing(Row::same(W, rows.begin, columns.begin))
                           : out.load(to + i + v * kLanes<A>);
    }
    for (int64_t h = rows.begin; h < rows.end; ++h) {
      const T* pixel = map + h * x.stride[2] + columns.begin * x.stride[3] + i;
      for (int64_t w = columns.begin; w < columns.end; ++w, pixel += x.stride[3]) {
        for (int v = 0; v < kVectors; ++v) {
          gathered[v].take(load_some(pixel + v * kLanes<A>), Row::same(W, h, w));
        }
      }
    }
    for (int v = 0; v < kVectors; ++v) out.store(to + i + v * kLanes<A>, gathered[v]);
  });
}

// Gathers the pixels of a cell, as many at a time as the innermost cache holds: running results
// stay in registers while they pass by, and whole pixels are read one after another.
template <class T, class Row>
void gather_pixels(const View& x, const T* map, const Span& rows, const Span& columns,
                   int64_t count, Row& out, int64_t to) {
  const int64_t pixels = std::max(kPoolPixels, kPoolElements / count);
  const int64_t wide = std::min(pixels, columns.size()), tall = pixels / wide;
  for (int64_t h = rows.begin; h < rows.end; h += tall) {
    for (int64_t w = columns.begin; w < columns.end; w += wide) {
      take_pixels(x, map, {h, std::min(h + tall, rows.end)}, {w, std::min(w + wide, columns.end)},
                  h == rows.begin && w == columns.begin, count, out, to);
    }
  }
}

// finish(level, n, c, count, i, pitch, results): elements j * pitch + (0 ... count - 1) of the
// results are bin (i, j) of channels c, c + 1, ... Neighbouring items of one image are done
// together, so that a thread reads long runs.
template <class T, class Row, class Finish>
void pool_channels(const View& x, const PooledLevels& levels, int64_t begin, int64_t end,
                   Finish&& finish) {
  using A = Accumulate<T>;
  const int64_t C = x.size[1], blocks = ceil_div(C, kPoolChannels);
  const PoolGrid grid(x, levels);
  int64_t results = grid.columns.count();  // of a channel
  for (const int64_t bins : levels.bins(3)) results += 2 * bins;
  const int64_t bytes = results * kPoolChannels * sizeof(typename Row::Lanes) / kLanes<A>;
  const int64_t most = std::max<int64_t>(1, kPoolResults / bytes);
  Pooler<A, Row> pooler(grid, std::min({most, blocks, end - begin}) * kPoolChannels);
  for (int64_t item = begin; item < end;) {
    const int64_t n = item / blocks, first = item % blocks, c = first * kPoolChannels;
    const int64_t together = std::min({most, end - item, blocks - first});
    const int64_t count = std::min(together * kPoolChannels, C - c);
    for (int64_t r = 0; r < grid.rows.count(); ++r) {
      for (int64_t k = 0; k < grid.columns.count(); ++k) {
        gather_pixels(x, at<const T>(x, n, c, 0, 0), grid.rows[r], grid.columns[k], count,
                      pooler.cells, k * pooler.width);
      }
      pooler.close(r, [&](int level, int64_t i, const Row& results) {
        finish(level, n, c, count, i, pooler.width, results);
      });
    }
    item += together;
  }
}

inline bool pools_channels_last(const View& x, const PooledLevels& levels) {
  return x.channels_last() && levels.channels_last();
}

// One level of windows as wide as a map whose rows lie side by side: each is a run of memory.
inline bool pools_runs(const View& x, const PooledLevels& levels) {
  return levels.count == 1 && levels[0].size[3] == 1 && x.stride[2] == x.size[3] &&
         !pools_channels_last(x, levels);
}

inline Work pool_work(const View& x, const PooledLevels& levels) {
  const int64_t lanes = x.dtype == DType::kFloat64 ? kLanes<double> : kLanes<float>;
  const int64_t items = pools_channels_last(x, levels)
                            ? x.size[0] * ceil_div(x.size[1], kPoolChannels)
                            : ceil_div(x.size[0] * x.size[1], lanes);
  return share(items, x.numel());
}

}  // namespace stripctx::cpu
