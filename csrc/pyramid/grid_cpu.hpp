// The bins and cells of a map's levels, and loops over planes, which pooling and its gradients
// share on the CPU.
#pragma once

#include "pyramid/params.hpp"

#include <algorithm>
#include <vector>

#include "cpu/loops.hpp"

namespace stripctx::cpu {

constexpr int64_t kLongestCell = 64;  // rows: nested sums round less than one long sum

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

// The number of positions of each bin of each level, in row-major order, padded to whole vectors.
template <class A>
std::vector<std::vector<A>> bin_sizes(const PooledLevels& levels, const View& map) {
  const auto down = bin_windows(levels, map, 2), across = bin_windows(levels, map, 3);
  std::vector<std::vector<A>> result(levels.count);
  for (int k = 0; k < levels.count; ++k) {
    for (const Span& rows : down[k]) {
      for (const Span& columns : across[k]) result[k].push_back(A(rows.size() * columns.size()));
    }
    result[k].resize(padded<A>(result[k].size()), 1);
  }
  return result;
}

// The cells of a map, and which cells and bins overlap, along each axis separately.
struct PoolGrid {
  struct Axis {
    std::vector<Span> cells;  // the cells of each bin
    std::vector<Span> over;   // the bins that contain each cell
  };

  Cells rows, columns;
  std::vector<Axis> down, across;  // for each level, along H and along W

  PoolGrid(const View& map, const PooledLevels& levels)
      : rows(map.size[2], levels.bins(2), kLongestCell), columns(map.size[3], levels.bins(3)) {
    for (const auto& windows : bin_windows(levels, map, 2)) down.push_back(axis(rows, windows));
    for (const auto& windows : bin_windows(levels, map, 3)) {
      across.push_back(axis(columns, windows));
    }
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

inline bool pools_channels_last(const View& x, const PooledLevels& levels) {
  return x.channels_last() && levels.channels_last();
}

// Whether there is a single level whose bins span the full width of a dense contiguous map: each
// bin is then one contiguous run.
inline bool pools_runs(const View& x, const PooledLevels& levels) {
  return levels.count == 1 && levels[0].size[3] == 1 && x.stride[2] == x.size[3] &&
         !pools_channels_last(x, levels);
}

// Calls body(p, n, c) for `count` planes from number `plane` on; plane n * C + c is channel c of
// image n.
template <class Body>
inline void for_planes(int64_t C, int64_t plane, int64_t count, Body&& body) {
  int64_t n = plane / C, c = plane % C;
  for (int64_t p = 0; p < count; ++p) {
    body(p, n, c);
    if (++c == C) ++n, c = 0;
  }
}

// Work items are `blocks` parts of each image of a channels_last map, or as many planes of a
// contiguous one as a vector has lanes.
inline Work pool_work(const View& map, const PooledLevels& levels, int64_t blocks) {
  const int64_t lanes = map.dtype == DType::kFloat64 ? kLanes<double> : kLanes<float>;
  return share(pools_channels_last(map, levels) ? map.size[0] * blocks
                                                : ceil_div(map.size[0] * map.size[1], lanes),
               map.numel());
}

// How many rows of cells to process per plane before the next plane, so that planes are read or
// written in long runs while the `elements_each` numbers of each row of cells stay in the cache.
inline int64_t row_cells_at_a_time(int64_t elements_each) {
  return std::max<int64_t>(1, 65536 / elements_each);
}

}  // namespace stripctx::cpu
