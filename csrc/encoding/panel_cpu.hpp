// How the encoding layer's work is cut on the CPU, forward and backward: a work item owns a run of
// one image's tiles of positions, and sees a panel of a tile's dimensions at a time.
//
// A panel is (kPanel, kTile) in the accumulation type, positions fastest, whatever the map's
// layout; in float32 it is 16 KB, for the first-level cache. Panels that are read again come from
// the second-level cache.
#pragma once

#include "encoding/params.hpp"

#include <algorithm>

#include "cpu/simd.hpp"
#include "cpu/transpose.hpp"

namespace stripctx::cpu {

constexpr int kTileVectors = 4;
template <class A>
constexpr int kTile = kTileVectors * kLanes<A>;

// Dimensions of a panel.
constexpr int64_t kPanel = 64;

// Codewords that share one read of a panel: as many sums as half of the registers hold.
constexpr int kCodeBlock = kVectorBytes == 64 ? 4 : 2;

// Each image's positions are cut into `chunks` runs of whole `tiles`, which depend on shapes alone:
// enough for many cores, and few enough that the sums which the runs leave behind, D numbers for
// each codeword, are no more than one for each codeword and position.
struct TileChunks {
  static constexpr int64_t kPositions = 64;  // of a tile here; kTile divides it
  int64_t tiles, chunks;

  int64_t first(int64_t chunk) const { return chunk * tiles / chunks * kPositions; }
};

inline TileChunks tile_chunks(const View& x) {
  constexpr int64_t kItems = 64;
  const int64_t tiles = ceil_div(x.size[3], TileChunks::kPositions);
  const int64_t fewest = tiles < 16 ? 2 : 4;  // tiles of a run
  const int64_t most =
      std::max<int64_t>(1, std::min(tiles / fewest, x.size[3] / std::max<int64_t>(1, x.size[1])));
  int64_t chunks = 1;
  while (chunks * x.size[0] < kItems && chunks * 2 <= most) chunks *= 2;
  return {tiles, chunks};
}

template <class A>
int64_t whole_vectors(int64_t count) {
  return ceil_div(count, kLanes<A>) * kLanes<A>;
}

// Elements of a parameter (K, D) by columns, (D, K up to whole vectors).
inline int64_t columns_size(const View& parameter) {
  const int64_t K = parameter.size[0], D = parameter.size[1];
  return D *
         (parameter.dtype == DType::kFloat64 ? whole_vectors<double>(K) : whole_vectors<float>(K));
}

// Calls run(first, count) for the tiles of a chunk.
template <class A, class Run>
void for_tiles(const View& x, int64_t chunk, Run&& run) {
  static_assert(TileChunks::kPositions % kTile<A> == 0);
  const TileChunks cut = tile_chunks(x);
  const int64_t end = std::min(cut.first(chunk + 1), x.size[3]);
  for (int64_t first = cut.first(chunk); first < end; first += kTile<A>) {
    run(first, std::min<int64_t>(kTile<A>, end - first));
  }
}

inline bool positions_fastest(const View& map) {
  return map.stride[3] == 1 || map.size[3] == 1;
}

// The positions [first, first + count) of image n.
template <class T>
struct Tile {
  using A = Accumulate<T>;

  const View& map;
  int64_t n, first, count;

  // The dimensions [d, d + depth) as a panel; what lies beyond the positions becomes 0.
  void load(int64_t d, int64_t depth, A* panel) const {
    if (count < kTile<A>) std::fill(panel, panel + depth * kTile<A>, A(0));
    const T* source = at(d);
    if (!positions_fastest(map)) {
      return transpose(source, map.stride[3], count, depth, panel, kTile<A>);
    }
    for (int64_t row = 0; row < depth; ++row) {
      for_vectors<A>(count, [&](int64_t i, auto load_some, auto) {
        cpu::store(panel + row * kTile<A> + i, load_some(source + row * map.stride[1] + i));
      });
    }
  }

  void store(const A* panel, int64_t d, int64_t depth) const {
    T* target = at(d);
    if (!positions_fastest(map)) {
      return transpose(panel, kTile<A>, depth, count, target, map.stride[3]);
    }
    for (int64_t row = 0; row < depth; ++row) {
      for_vectors<A>(count, [&](int64_t i, auto, auto store_some) {
        store_some(target + row * map.stride[1] + i, cpu::load(panel + row * kTile<A> + i));
      });
    }
  }

  // Asks for a part of the rows that hold the dimensions [d, d + depth): each is too short for the
  // hardware to see a stream.
  void prefetch(int64_t d, int64_t depth, int64_t part, int64_t parts) const {
    asm volatile("");  // g++ drops calls of what does nothing but prefetch
    const bool across = positions_fastest(map);
    const int64_t rows = across ? depth : count, length = across ? count : depth;
    const T* row = at(d);
    for (int64_t r = rows * part / parts; r < rows * (part + 1) / parts; ++r) {
      const T* begin = row + r * map.stride[across ? 1 : 3];
      for (int64_t i = 0; i < length; i += 64 / sizeof(T)) __builtin_prefetch(begin + i, 0, 2);
    }
  }

 private:
  T* at(int64_t d) const { return stripctx::at<T>(map, n, d, 0, first); }
};

// Calls run(d, depth) for the tile's panels, one after the other loaded into `panel`.
template <class T, class Run>
void for_panels(const Tile<T>& tile, Accumulate<T>* panel, Run&& run) {
  const int64_t D = tile.map.size[1];
  for (int64_t d = 0; d < D; d += kPanel) {
    const int64_t depth = std::min(kPanel, D - d);
    tile.load(d, depth, panel);
    run(d, depth);
  }
}

// Calls run(k, d, depth) for each panel and, with the panel in the first-level cache, blocks of
// codewords, and meanwhile asks for what comes next. Sums over a panel are added to those before
// it: a single running sum over D = 512 would lose three bits more.
template <class T, class Run>
void for_blocks(const Tile<T>& tile, int64_t K, Accumulate<T>* panel, Run&& run) {
  const int64_t D = tile.map.size[1], blocks = ceil_div(K, kCodeBlock);
  const int64_t next = tile.first + tile.count;
  const int64_t left = std::min<int64_t>(kTile<Accumulate<T>>, tile.map.size[3] - next);
  for_panels(tile, panel, [&](int64_t d, int64_t depth) {
    const bool last = d + depth == D;
    const Tile<T> ahead{tile.map, tile.n, last ? next : tile.first, last ? left : tile.count};
    const int64_t from = last ? 0 : d + depth;
    for (int64_t block = 0; block < blocks; ++block) {
      run(block * kCodeBlock, d, depth);
      if (ahead.count > 0) ahead.prefetch(from, std::min(kPanel, D - from), block, blocks);
    }
  });
}

}  // namespace stripctx::cpu
