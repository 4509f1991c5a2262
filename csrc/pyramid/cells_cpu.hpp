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

#include <iterator>

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

// The positions of a vector's lanes: neighbours in a row (kAlong), or one position in many
// channels.
template <class A, bool kAlong>
IndexVec<A> positions_from(int64_t first) {
  IndexVec<A> lane{};
  for (int i = 0; kAlong && i < kLanes<A>; ++i) lane[i] = i;
  return lane + static_cast<Index<A>>(first);
}

// Reduces rows of one plane position by position, to whole vectors. Running results stay in
// registers over the rows.
template <class T, class Lanes>
void gather_row(const View& x, const T* map, const Span& rows, Lanes* out) {
  using A = Accumulate<T>;
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
    for (int v = 0; v < kVectors; ++v) out[w / kLanes<A> + v] = gathered[v];
  });
}

// Transposes a square: lane j of to[i] is lane i of from[j * pitch].
template <class A, class Lanes>
void turn(const Lanes* from, int64_t pitch, Lanes* to) {
  for (size_t p = 0; p < std::size(to->part); ++p) {
    Vec<A> square[kLanes<A>];
    for (int i = 0; i < kLanes<A>; ++i) square[i] = from[i * pitch].part[p];
    transpose(square);
    for (int i = 0; i < kLanes<A>; ++i) to[i].part[p] = square[i];
  }
}

// Merges the positions of a cell: first those that are whole vectors of a row apart, then these
// results and the rest in order.
template <class A, class Lanes>
Lanes merge_cell(const Lanes* positions, int64_t size) {
  constexpr int64_t lanes = kLanes<A>;
  const int64_t first = std::min(size, lanes), whole = size / lanes * lanes;
  Lanes merged;
  for (int64_t i = 0; i < first; ++i) {
    Lanes each = positions[i];
    for (int64_t w = i + lanes; w < whole; w += lanes) each = merge(each, positions[w]);
    merged = i == 0 ? each : merge(merged, each);
  }
  for (int64_t w = std::max(first, whole); w < size; ++w) merged = merge(merged, positions[w]);
  return merged;
}

// Merges rows of cells into the bins of all levels, for `width` vectors of channels.
template <class Lanes>
class Pooler {
 public:
  const int64_t width;
  std::vector<Lanes> cells;  // the current row, `width` results per cell

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
      std::vector<Lanes>&ready = ready_[k], &open = open_[k];
      const std::vector<Span>& across = grid_.across[k].cells;
      for (size_t j = 0; j < across.size(); ++j) {
        for (int64_t i = 0; i < width; ++i) {
          Lanes lanes = cells[across[j].begin * width + i];
          for (int64_t cell = across[j].begin + 1; cell < across[j].end; ++cell) {
            lanes = merge(lanes, cells[cell * width + i]);
          }
          ready[j * width + i] = lanes;
        }
      }
      const PoolGrid::Axis& down = grid_.down[k];
      for (int64_t i = down.over[r].begin; i < down.over[r].end; ++i) {
        const bool begins = down.cells[i].begin == r, ends = down.cells[i].end == r + 1;
        if (begins && ends) {
          finish(k, i, ready.data());
          continue;
        }
        for (size_t q = 0; q < open.size(); ++q) {
          open[q] = begins ? ready[q] : merge(open[q], ready[q]);
        }
        if (ends) finish(k, i, open.data());
      }
    }
  }

 private:
  const PoolGrid& grid_;
  // For each level, a row of bins reduced over the current row of cells, and the unfinished row of
  // bins that began earlier. There is at most one, because neighbouring bins share at most one row
  // of x.
  std::vector<std::vector<Lanes>> ready_, open_;
};

// Contiguous maps. `write` receives neighbouring bins of one channel.
template <class T, class Lanes, class Write>
void pool_planes(const View& x, const PooledLevels& levels, int64_t begin, int64_t end,
                 Write&& write) {
  using A = Accumulate<T>;
  constexpr int64_t kPlanes = kLanes<A>;
  const int64_t C = x.size[1], pitch = ceil_div(x.size[3], kPlanes);
  const PoolGrid grid(x, levels);
  Pooler<Lanes> pooler(grid, 1);
  const Cells& rows = grid.rows;
  const int64_t at_a_time = std::min(rows.count(), row_cells_at_a_time(kPlanes * kPlanes * pitch));
  std::vector<Lanes> positions(at_a_time * kPlanes * pitch), turned(kPlanes * pitch);
  const auto sizes = bin_sizes<A>(levels, x);
  std::vector<std::vector<Lanes>> bins;  // of all planes of an item, transposed once complete
  for (const auto& level : sizes) bins.emplace_back(level.size());

  for (int64_t item = begin; item < end; ++item) {
    const int64_t plane = item * kPlanes, count = std::min(kPlanes, x.size[0] * C - plane);
    for (int64_t first = 0; first < rows.count(); first += at_a_time) {
      const int64_t last = std::min(first + at_a_time, rows.count());
      for_planes(C, plane, count, [&](int64_t p, int64_t n, int64_t c) {
        const T* map = at<const T>(x, n, c, 0, 0);
        for (int64_t r = first; r < last; ++r) {
          gather_row(x, map, rows[r], &positions[((r - first) * kPlanes + p) * pitch]);
        }
      });
      for (int64_t r = first; r < last; ++r) {
        for (int64_t w = 0; w < pitch; ++w) {
          turn<A>(&positions[(r - first) * kPlanes * pitch + w], pitch, &turned[w * kPlanes]);
        }
        for (int64_t k = 0; k < grid.columns.count(); ++k) {
          const Span cell = grid.columns[k];
          pooler.cells[k] = merge_cell<A>(&turned[cell.begin], cell.size());
        }
        pooler.close(r, [&](int k, int64_t i, const Lanes* results) {
          const int64_t across = levels[k].size[3];
          for (int64_t j = 0; j < across; ++j) bins[k][i * across + j] = results[j];
        });
      }
    }
    for (int k = 0; k < levels.count; ++k) {
      const int64_t all = levels[k].size[2] * levels[k].size[3];
      for (int64_t j = 0; j < all; j += kPlanes) {
        turn<A>(&bins[k][j], 1, turned.data());
        const Vec<A> size = load(sizes[k].data() + j);
        for_planes(C, plane, count, [&](int64_t p, int64_t n, int64_t c) {
          write(k, n, c, 0, j, std::min(kPlanes, all - j), size, &turned[p]);
        });
      }
    }
  }
}

// Adds a rectangle of pixels, the first of which is `map`, at position `first`, to the running
// results of `count` channels, or starts new ones.
template <class T, class Lanes>
void take_pixels(const View& x, const T* map, int64_t first, int64_t tall, int64_t wide,
                 bool begins, int64_t count, Lanes* out) {
  using A = Accumulate<T>;
  const int64_t W = x.size[3], row_stride = x.stride[2], stride = x.stride[3];
  for_vector_groups<A, kPoolVectors>(count, [=]<int kVectors>(int64_t i, auto load_some, auto) {
    Lanes gathered[kVectors], *results = out + i / kLanes<A>;
    for (int v = 0; v < kVectors; ++v) {
      gathered[v] = begins ? Lanes::nothing(positions_from<A, false>(first)) : results[v];
    }
    for (int64_t h = 0; h < tall; ++h) {
      const T* pixel = map + h * row_stride + i;
      for (int64_t w = 0; w < wide; ++w, pixel += stride) {
        const auto position = positions_from<A, false>(first + h * W + w);
        for (int v = 0; v < kVectors; ++v) {
          gathered[v].take(load_some(pixel + v * kLanes<A>), position);
        }
      }
    }
    for (int v = 0; v < kVectors; ++v) results[v] = gathered[v];
  });
}

// Reduces the pixels of a cell, a block that fits in the first-level cache at a time. Running
// results stay in registers over a block, and whole pixels are read one after another. Not inlined,
// because g++ would then keep the inner loop's counters in vector registers.
template <class T, class Lanes>
[[gnu::noinline]] void gather_pixels(const View& x, const T* map, const Span& rows,
                                     const Span& columns, int64_t count, Lanes* out) {
  const int64_t pixels = std::max(kPoolPixels, kPoolElements / count);
  const int64_t wide = std::min(pixels, columns.size()), tall = pixels / wide;
  for (int64_t h = rows.begin; h < rows.end; h += tall) {
    for (int64_t w = columns.begin; w < columns.end; w += wide) {
      take_pixels(x, map + h * x.stride[2] + w * x.stride[3], h * x.size[3] + w,
                  std::min(tall, rows.end - h), std::min(wide, columns.end - w),
                  h == rows.begin && w == columns.begin, count, out);
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
  const int64_t channels = std::min({most, blocks, end - begin}) * kPoolChannels;
  Pooler<Lanes> pooler(grid, channels / kLanes<A>);
  for (int64_t item = begin; item < end;) {
    const int64_t n = item / blocks, first = item % blocks, c = first * kPoolChannels;
    const int64_t together = std::min({most, end - item, blocks - first});
    const int64_t count = std::min(together * kPoolChannels, C - c);
    for (int64_t r = 0; r < grid.rows.count(); ++r) {
      for (int64_t k = 0; k < grid.columns.count(); ++k) {
        gather_pixels(x, at<const T>(x, n, c, 0, 0), grid.rows[r], grid.columns[k], count,
                      &pooler.cells[k * pooler.width]);
      }
      pooler.close(r, [&](int k, int64_t i, const Lanes* results) {
        for (int64_t j = 0; j < levels[k].size[3]; ++j) {
          const Vec<A> size = splat(sizes[k][i * levels[k].size[3] + j]);
          write(k, n, c, i, j, count, size, results + j * pooler.width);
        }
      });
    }
    item += together;
  }
}

// Calls write(level, n, c, i, j, count, sizes, results) for all results as soon as they are
// complete: `count` elements adjacent in memory, the first at bin (i, j) of channel c, a vector of
// their bins' numbers of positions, and their vectors.
template <class T, class Lanes, class Write>
void pool(const View& x, const PooledLevels& levels, int64_t begin, int64_t end, Write&& write) {
  pools_channels_last(x, levels) ? pool_channels<T, Lanes>(x, levels, begin, end, write)
                                 : pool_planes<T, Lanes>(x, levels, begin, end, write);
}

}  // namespace stripctx::cpu
