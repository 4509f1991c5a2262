// The host's part of pyramid pooling on CUDA: small tables of bins and cells, computed from shapes
// and passed by value with the launch, and the division of the work into blocks. Bins that do not
// fit the tables take a path without them.
#pragma once

#include "pyramid/params.hpp"

#include <algorithm>
#include <cstdint>
#include <map>
#include <utility>
#include <vector>

#include "cuda/tiling.hpp"

namespace stripctx::cuda {

constexpr int kMostCuts = 320;
constexpr int kMostSpans = 256;
constexpr int64_t kPoolSharedBytes = 48 * 1024;  // available on every GPU without a request
constexpr int64_t kPoolBlocks = 1024;            // maps are not split further with this many blocks
constexpr int64_t kFewPoolBlocks = 256;          // two per multiprocessor of an H100
constexpr int kPoolChannels = 32;                // channels per block, channels_last: whole sectors
constexpr int kPoolWarps = 4;
constexpr int kPoolStages = 2;

// The cells of both axes, and the range of cells of every bin as (begin | end << 16).
struct PoolTable {
  int32_t rows = 0, columns = 0;          // numbers of cells
  int32_t row_bins = 0, column_bins = 0;  // numbers of bins of all levels
  int32_t cut[kMostCuts];                 // rows + 1 along H, then columns + 1 along W
  uint32_t span[kMostSpans];  // bins along H, one level after another, then those along W
};

// The parameters of pooling forward, mean or max.
struct Pooling {
  View x;
  PooledLevels levels, indices;
  PyramidPartials partials;
  PoolTable table;
  int32_t chunk_rows = 0;  // rows of cells per block; fewer than all give partial results
  // Contiguous maps: lanes per cell and per bin, planes per block (a power of two), the distance
  // between two cells of a plane, the rows that a warp copies at a time, and the elements of a
  // stage for them; whether they are copied by packs.
  int32_t gather_lanes = 1, bin_lanes = 1, planes = 1, cell_pitch = 1, piece_rows = 1, stage = 0;
  bool packed = false;
};

// Returns false if the bins do not fit. Cells are at most `longest_row` x `longest_column`
// positions.
inline bool build_table(const PooledLevels& levels, int64_t H, int64_t W, int64_t longest_row,
                        int64_t longest_column, PoolTable& table) {
  int64_t bins = 0;
  for (int k = 0; k < levels.count; ++k) bins += levels[k].size[2] + levels[k].size[3];
  if (bins > kMostSpans || H > INT32_MAX || W > INT32_MAX) return false;
  const Cells rows(H, levels.bins(2), longest_row), columns(W, levels.bins(3), longest_column);
  if (rows.count() + columns.count() + 2 > kMostCuts) return false;
  int cut = 0, span = 0;
  for (const Cells* cells : {&rows, &columns}) {
    for (const int64_t position : cells->cuts()) table.cut[cut++] = static_cast<int32_t>(position);
    for (const int64_t count : levels.bins(cells == &rows ? 2 : 3)) {
      for (int64_t i = 0; i < count; ++i) {
        const Span run = cells->of(window(i, count, cells->length()));
        table.span[span++] = static_cast<uint32_t>(run.begin | run.end << 16);
      }
    }
    (cells == &rows ? table.row_bins : table.column_bins) = span;
  }
  table.column_bins -= table.row_bins;
  table.rows = static_cast<int32_t>(rows.count());
  table.columns = static_cast<int32_t>(columns.count());
  return true;
}

// The same with a cache of the shapes that this OS thread has used recently: each call needs the
// table twice, for its scratch and its launch, and networks repeat the same few shapes.
//
// Building a table takes a microsecond, looking one up a tenth of that. The plans of other families
// are a few divisions without an allocation and are not cached.
inline bool make_table(const PooledLevels& levels, int64_t H, int64_t W, int64_t longest_row,
                       int64_t longest_column, PoolTable& table) {
  constexpr size_t kMostKept = 64;
  struct Entry {
    bool fits;
    PoolTable table;
  };
  static thread_local std::map<std::vector<int64_t>, Entry> kept;
  std::vector<int64_t> key{H, W, longest_row, longest_column};
  for (int k = 0; k < levels.count; ++k) {
    key.insert(key.end(), {levels[k].size[2], levels[k].size[3]});
  }
  auto found = kept.find(key);
  if (found == kept.end()) {
    if (kept.size() >= kMostKept) kept.clear();
    Entry entry{};
    entry.fits = build_table(levels, H, W, longest_row, longest_column, entry.table);
    found = kept.emplace(std::move(key), entry).first;
  }
  table = found->second.table;
  return found->second.fits;
}

inline int64_t table_bytes(const PoolTable& table) {
  return shared_bytes<int32_t>(table.rows + table.columns + 2) +
         shared_bytes<uint32_t>(table.row_bins + table.column_bins);
}

// Whether a map's planes are dense and its first element is aligned to 16 bytes.
inline bool in_packs(const View& x) {
  return (x.size[2] == 1 || x.stride[2] == x.size[3]) &&
         reinterpret_cast<uintptr_t>(x.data) % 16 == 0;
}

// The number of positions of the longest of `count` cells.
inline int64_t longest_cell(const int32_t* cuts, int64_t count) {
  int64_t longest = 1;
  for (int64_t c = 0; c < count; ++c) longest = std::max<int64_t>(longest, cuts[c + 1] - cuts[c]);
  return longest;
}

// Rows of a cell that one thread walks: enough to have several loads in flight, and at most 64 such
// walks per plane.
inline int64_t longest_walk(int64_t H) {
  return std::max<int64_t>(4, ceil_div(H, 64));
}

// Rows of cells per block, such that all chunks together have enough blocks. Partial results, which
// are written and read again, take at most an eighth of the map's bytes, or of a float32 map's if
// there are few blocks: a chunk's end splits a row of bins.
inline int32_t rows_a_chunk(const Pooling& op, int64_t blocks, int64_t state_bytes,
                            int64_t element_bytes) {
  int64_t bins = 0, across = 0;
  for (int k = 0; k < op.levels.count; ++k) {
    bins += op.levels[k].size[2] * op.levels[k].size[3];
    across += op.levels[k].size[3];
  }
  const auto most = [&](int64_t bytes) {  // chunks of a map with elements of this size
    const int64_t parts = op.x.size[2] * op.x.size[3] * bytes / (16 * state_bytes);
    return 1 + std::max<int64_t>(0, parts - bins) / across;
  };
  const int64_t some = std::max<int64_t>(1, blocks);
  const int64_t chunks = std::max(std::min(kPoolBlocks / some, most(element_bytes)),
                                  std::min(kFewPoolBlocks / some, most(4)));
  const int64_t rows = op.table.rows;
  return static_cast<int32_t>(
      ceil_div(rows, std::clamp<int64_t>(chunks, 1, std::min<int64_t>(rows, 65535))));
}

}  // namespace stripctx::cuda
