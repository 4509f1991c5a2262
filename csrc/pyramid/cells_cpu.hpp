// The traversal that mean and max pooling share on the CPU. It reads x once, one row of cells at a
// time. A row of cells is merged into the bins of each level, and each bin is written when its last
// row of cells is done.
//
// The kernel works on whole vectors of channels. A channels_last map provides them directly. Of a
// contiguous map it processes as many planes as a vector has lanes: it reduces the rows of a cell
// position by position, then transposes (transpose.hpp) and reduces along W.
//
// The caller provides the reduction as `Lanes`, a vector of running results (sums, maxima):
// `nothing` starts one, `take` adds elements at positions after all earlier ones, and `merge`
// combines two.
#pragma once

#include "cpu/transpose.hpp"
#include "pyramid/grid_cpu.hpp"

namespace stripctx::cpu {

constexpr int64_t kPoolChannels = 128;  // channels of one work item, channels_last
constexpr int kPoolVectors = 8;         // vectors of channels whose results stay in registers

// Pixels read together: as many as have kPoolElements elements, for the first-level cache, but at
// least kPoolPixels. Running results of a work item: at most kPoolResults bytes, for the
// second-level cache.
constexpr int64_t kPoolPixels = 4;
constexpr int64_t kPoolElements = 8192;
constexpr int64_t kPoolResults = 128 * 1024;

// An array of running results, loaded and stored a vector at a time from any element on.
template <class A, class Lanes>
class Row {
  static constexpr int kParts = sizeof(Lanes::part) / sizeof(Vec<A>);

 public:
  explicit Row(int64_t count) {
    for (auto& part : parts_) part.resize(count + kLanes<A>);
  }

  Lanes load(int64_t i) const {
    Lanes lanes;
    for (int p = 0; p < kParts; ++p) lanes.part[p] = cpu::load(parts_[p].data() + i);
    return lanes;
  }
  void store(int64_t i, const Lanes& lanes) {
    for (int p = 0; p < kParts; ++p) cpu::store(parts_[p].data() + i, lanes.part[p]);
  }

  // Transposes kLanes rows of `count` results, `pitch` apart, that begin at from[first]: element j
  // of row p goes to place to + j * kLanes + p.
  void turn(int64_t to, const Row& from, int64_t first, int64_t pitch, int64_t count) {
    constexpr int64_t lanes = kLanes<A>;
    for (int p = 0; p < kParts; ++p) {
      transpose(from.parts_[p].data() + first, pitch, lanes, count, parts_[p].data() + to, lanes);
    }
  }

 private:
  std::vector<A> parts_[kParts];
};

// The positions of a vector's lanes: neighbours in a row (kAlong), or one position in many
// channels.
template <class A, bool kAlong>
IndexVec<A> positions_from(int64_t first) {
  IndexVec<A> lane{};
  for (int i = 0; kAlong && i < kLanes<A>; ++i) lane[i] = i;
  return lane + static_cast<Index<A>>(first);
}

// Reduces rows of one plane position by position into out[to...], and may write up to a vector past
// the end. Running results stay in registers over the rows.
template <class T, class A, class Lanes>
void gather_row(const View& x, const T* map, const Span& rows, Row<A, Lanes>& out, int64_t to) {
  const int64_t W = x.size[3];
  for_four_vectors<A>(W, [&]<int kVectors>(int64_t w, int count) {
    Lanes gathered[kVectors];
    Vec<A> value[kVectors];
    const auto positions = [&](int64_t h, int v) {
      return positions_from<A, true>(h * W + w + v * kLanes<A>);
    };
    for (int v = 0; v < kVectors; ++v) gathered[v] = Lanes::nothing(positions(rows.begin, v));
    for (int64_t h = rows.begin; h < rows.end; ++h) {
      load_vectors(map + h * x.stride[2] + w, count, value);
      for (int v = 0; v < kVectors; ++v) gathered[v].take(value[v], positions(h, v));
    }
    for (int v = 0; v < kVectors; ++v) out.store(to + w + v * kLanes<A>, gathered[v]);
  });
}

// Shortens a row of positions before the transposition: all whole vectors of a cell are merged into
// one, and the rest of the cell follows it.
template <class A>
class Shortening {
 public:
  int64_t length = 0;       // elements of a shortened row
  std::vector<Span> cells;  // each cell's place in it

  explicit Shortening(const Cells& columns) : columns_(columns) {
    for (int64_t k = 0; k < columns.count(); ++k) {
      const int64_t size = columns[k].size();
      cells.push_back({length, length + (size <= kLanes<A> ? size : kLanes<A> + size % kLanes<A>)});
      length = cells.back().end;
    }
  }

  // May write up to a vector past the row's end.
  template <class Lanes>
  void operator()(const Row<A, Lanes>& positions, Row<A, Lanes>& shortened, int64_t to) const {
    for (int64_t k = 0; k < columns_.count(); ++k) {
      const Span cell = columns_[k];
      Lanes lanes = positions.load(cell.begin);
      int64_t w = cell.begin + kLanes<A>;
      for (; w + kLanes<A> <= cell.end; w += kLanes<A>) lanes = merge(lanes, positions.load(w));
      shortened.store(to + cells[k].begin, lanes);
      if (w < cell.end) shortened.store(to + cells[k].begin + kLanes<A>, positions.load(w));
    }
  }

 private:
  const Cells& columns_;
};

// Merges rows of cells into the bins of all levels, for `width` adjacent channels (whole vectors).
template <class A, class Lanes>
class Pooler {
 public:
  const int64_t width;
  Row<A, Lanes> cells;  // the current row, `width` results per cell

  Pooler(const PoolGrid& grid, int64_t width)
      : width(width), cells(grid.columns.count() * width), grid_(grid) {
    for (const PoolGrid::Axis& across : grid.across) {
      ready_.emplace_back(across.cells.size() * width);
      open_.emplace_back(across.cells.size() * width);
    }
  }

  // Called when row r of cells is complete. Calls finish(level, i, results) for each row of bins
  // that ends with it.
  template <class Finish>
  void close(int64_t r, Finish&& finish) {
    for (size_t k = 0; k < ready_.size(); ++k) {
      Row<A, Lanes>&ready = ready_[k], &open = open_[k];
      const auto& across = grid_.across[k].cells;
      for (size_t j = 0; j < across.size(); ++j) {
        for (int64_t i = 0; i < width; i += kLanes<A>) {
          Lanes lanes = cells.load(across[j].begin * width + i);
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
          finish(k, i, ready);
          continue;
        }
        for (size_t q = 0; q < across.size() * width; q += kLanes<A>) {
          open.store(q, begins ? ready.load(q) : merge(open.load(q), ready.load(q)));
        }
        if (ends) finish(k, i, open);
      }
    }
  }

 private:
  const PoolGrid& grid_;
  // For each level, a row of bins reduced over the current row of cells, and the unfinished row of
  // bins that began earlier. There is at most one, because neighbouring bins share at most one row
  // of x.
  std::vector<Row<A, Lanes>> ready_, open_;
};

// Contiguous maps. `write` receives neighbouring bins of one channel.
template <class T, class Lanes, class Write>
void pool_planes(const View& x, const PooledLevels& levels, int64_t begin, int64_t end,
                 Write&& write) {
  using A = Accumulate<T>;
  constexpr int64_t kPlanes = kLanes<A>;
  const int64_t C = x.size[1], W = x.size[3];
  const PoolGrid grid(x, levels);
  Pooler<A, Lanes> pooler(grid, kPlanes);
  const Cells& rows = grid.rows;
  const Shortening<A> shorten(grid.columns);
  const bool shortens = shorten.length < W;
  const int64_t length = ceil_div(shorten.length, kPlanes) * kPlanes;
  const int64_t pitch = length + (shortens ? kPlanes : 0);
  const int64_t at_a_time = std::min(rows.count(), row_cells_at_a_time(kPlanes * pitch));
  Row<A, Lanes> positions(at_a_time * kPlanes * pitch), line(W + kPlanes);
  Row<A, Lanes> turned(kPlanes * std::max(length, kPlanes));
  const auto sizes = bin_sizes<A>(levels, x);
  std::vector<Row<A, Lanes>> bins;  // the bins of all planes of an item, transposed once complete
  for (const auto& level : sizes) bins.emplace_back(level.size() * kPlanes);

  for (int64_t item = begin; item < end; ++item) {
    const int64_t plane = item * kPlanes, count = std::min(kPlanes, x.size[0] * C - plane);
    for (int64_t first = 0; first < rows.count(); first += at_a_time) {
      const int64_t last = std::min(first + at_a_time, rows.count());
      for_planes(C, plane, count, [&](int64_t p, int64_t n, int64_t c) {
        const T* map = at<const T>(x, n, c, 0, 0);
        for (int64_t r = first; r < last; ++r) {
          const int64_t to = ((r - first) * kPlanes + p) * pitch;
          gather_row(x, map, rows[r], shortens ? line : positions, shortens ? 0 : to);
          if (shortens) shorten(line, positions, to);
        }
      });
      for (int64_t r = first; r < last; ++r) {
        turned.turn(0, positions, (r - first) * kPlanes * pitch, pitch, length);
        for (int64_t k = 0; k < grid.columns.count(); ++k) {
          const Span cell = shorten.cells[k];
          Lanes lanes = turned.load(cell.begin * kPlanes);
          for (int64_t w = cell.begin + 1; w < cell.end; ++w) {
            lanes = merge(lanes, turned.load(w * kPlanes));
          }
          pooler.cells.store(k * kPlanes, lanes);
        }
        pooler.close(r, [&](int k, int64_t i, const Row<A, Lanes>& results) {
          const int64_t width = levels[k].size[3] * kPlanes;
          for (int64_t q = 0; q < width; q += kPlanes) {
            bins[k].store(i * width + q, results.load(q));
          }
        });
      }
    }
    for (int k = 0; k < levels.count; ++k) {
      const int64_t all = levels[k].size[2] * levels[k].size[3];
      for (int64_t j = 0; j < all; j += kPlanes) {
        turned.turn(0, bins[k], j * kPlanes, kPlanes, kPlanes);
        const Vec<A> size = load(sizes[k].data() + j);
        for_planes(C, plane, count, [&](int64_t p, int64_t n, int64_t c) {
          write(k, n, c, 0, j, std::min(kPlanes, all - j), size,
                [&](int64_t) { return turned.load(p * kPlanes); });
        });
      }
    }
  }
}

// Adds a rectangle of pixels to the running results of `count` channels, or starts new ones.
template <class T, class A, class Lanes>
void take_pixels(const View& x, const T* map, const Span& rows, const Span& columns, bool begins,
                 int64_t count, Row<A, Lanes>& out, int64_t to) {
  const auto position = [W = x.size[3]](int64_t h, int64_t w) {
    return positions_from<A, false>(h * W + w);
  };
  for_vector_groups<A, kPoolVectors>(count, [&]<int kVectors>(int64_t i, auto load_some, auto) {
    Lanes gathered[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      gathered[v] = begins ? Lanes::nothing(position(rows.begin, columns.begin))
                           : out.load(to + i + v * kLanes<A>);
    }
    for (int64_t h = rows.begin; h < rows.end; ++h) {
      const T* pixel = map + h * x.stride[2] + columns.begin * x.stride[3] + i;
      for (int64_t w = columns.begin; w < columns.end; ++w, pixel += x.stride[3]) {
        for (int v = 0; v < kVectors; ++v) {
          gathered[v].take(load_some(pixel + v * kLanes<A>), position(h, w));
        }
      }
    }
    for (int v = 0; v < kVectors; ++v) out.store(to + i + v * kLanes<A>, gathered[v]);
  });
}

// Reduces the pixels of a cell, a block that fits in the first-level cache at a time. Running
// results stay in registers over a block, and whole pixels are read one after another.
template <class T, class A, class Lanes>
void gather_pixels(const View& x, const T* map, const Span& rows, const Span& columns,
                   int64_t count, Row<A, Lanes>& out, int64_t to) {
  const int64_t pixels = std::max(kPoolPixels, kPoolElements / count);
  const int64_t wide = std::min(pixels, columns.size()), tall = pixels / wide;
  for (int64_t h = rows.begin; h < rows.end; h += tall) {
    for (int64_t w = columns.begin; w < columns.end; w += wide) {
      take_pixels(x, map, {h, std::min(h + tall, rows.end)}, {w, std::min(w + wide, columns.end)},
                  h == rows.begin && w == columns.begin, count, out, to);
    }
  }
}

// channels_last maps. `write` receives neighbouring channels of one bin. Adjacent work items of one
// image are processed together so that a thread reads long runs.
template <class T, class Lanes, class Write>
void pool_channels(const View& x, const PooledLevels& levels, int64_t begin, int64_t end,
                   Write&& write) {
  using A = Accumulate<T>;
  const int64_t C = x.size[1], blocks = ceil_div(C, kPoolChannels);
  const PoolGrid grid(x, levels);
  const auto sizes = bin_sizes<A>(levels, x);
  int64_t results = grid.columns.count();  // running results per channel
  for (const int64_t bins : levels.bins(3)) results += 2 * bins;
  const int64_t bytes = results * kPoolChannels * sizeof(Lanes) / kLanes<A>;
  const int64_t most = std::max<int64_t>(1, kPoolResults / bytes);
  Pooler<A, Lanes> pooler(grid, std::min({most, blocks, end - begin}) * kPoolChannels);
  for (int64_t item = begin; item < end;) {
    const int64_t n = item / blocks, first = item % blocks, c = first * kPoolChannels;
    const int64_t together = std::min({most, end - item, blocks - first});
    const int64_t count = std::min(together * kPoolChannels, C - c);
    for (int64_t r = 0; r < grid.rows.count(); ++r) {
      for (int64_t k = 0; k < grid.columns.count(); ++k) {
        gather_pixels(x, at<const T>(x, n, c, 0, 0), grid.rows[r], grid.columns[k], count,
                      pooler.cells, k * pooler.width);
      }
      pooler.close(r, [&](int k, int64_t i, const Row<A, Lanes>& results) {
        for (int64_t j = 0; j < levels[k].size[3]; ++j) {
          const Vec<A> size = splat(sizes[k][i * levels[k].size[3] + j]);
          write(k, n, c, i, j, count, size,
                [&](int64_t b) { return results.load(j * pooler.width + b); });
        }
      });
    }
    item += together;
  }
}

// Calls write(level, n, c, i, j, count, sizes, lanes_at) for all results as soon as they are
// complete: `count` elements adjacent in memory, the first at bin (i, j) of channel c, and a vector
// of their bins' numbers of positions. lanes_at(b) is the vector that starts at element b.
template <class T, class Lanes, class Write>
void pool(const View& x, const PooledLevels& levels, int64_t begin, int64_t end, Write&& write) {
  pools_channels_last(x, levels) ? pool_channels<T, Lanes>(x, levels, begin, end, write)
                                 : pool_planes<T, Lanes>(x, levels, begin, end, write);
}

}  // namespace stripctx::cpu
