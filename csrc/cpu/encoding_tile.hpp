// What the encoding layer's forward and backward share on the CPU: how work is cut, a tile of
// positions that stays in the second-level cache, softmax over it, and products with it.
//
// A tile is (D, kTile) in the accumulation type, positions fastest, whatever the map's layout; for
// D = 512 in float32 it is 128 KB. Arrays over codewords and positions are (K, kTile).
#pragma once

#include <algorithm>
#include <new>
#include <utility>
#include <vector>

#include "core/dispatch.hpp"
#include "core/encoding.hpp"
#include "cpu/kernels.hpp"
#include "cpu/simd.hpp"
#include "cpu/transpose.hpp"

namespace stripctx::cpu {

constexpr int kTileVectors = 4;
template <class A>
constexpr int kTile = kTileVectors * kLanes<A>;

// Codewords that share one read of a tile: as many sums as half of the registers hold.
constexpr int kCodeBlock = kVectorBytes == 64 ? 4 : 2;

// Scratch memory on a cache line's boundary: no vector in it straddles two.
template <class A>
struct LineAllocator {
  using value_type = A;

  static constexpr std::align_val_t kLine{64};
  A* allocate(size_t count) { return static_cast<A*>(operator new(count * sizeof(A), kLine)); }
  void deallocate(A* data, size_t) { operator delete(data, kLine); }
  bool operator==(const LineAllocator&) const { return true; }
};
template <class A>
using Scratch = std::vector<A, LineAllocator<A>>;

// Keeps a value that is used many times in its register; g++ would load or broadcast it anew.
template <class A>
inline void hold(Vec<A>& value) {
#if defined(__AVX512F__)
  asm("" : "+v"(value));
#elif defined(__x86_64__)
  asm("" : "+x"(value));
#endif
}

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

// Reads `count` positions from `first` on; what lies beyond becomes 0.
template <class T>
void load_tile(const View& map, int64_t n, int64_t first, int64_t count, Accumulate<T>* tile) {
  using A = Accumulate<T>;
  const int64_t D = map.size[1];
  const T* source = static_cast<const T*>(map.data) + n * map.stride[0] + first * map.stride[3];
  if (count < kTile<A>) std::fill(tile, tile + D * kTile<A>, A(0));
  if (!positions_fastest(map)) {
    return transpose(source, map.stride[3], count, D, tile, kTile<A>);
  }
  constexpr int64_t kAhead = 12;  // rows: a row is too short for the hardware to see a stream
  for (int64_t d = 0; d < D; ++d) {
    const T* ahead = source + std::min(d + kAhead, D - 1) * map.stride[1];
    for (int64_t i = 0; i < count; i += 64 / sizeof(T)) __builtin_prefetch(ahead + i);
    for_vectors<A>(count, [&](int64_t i, auto load_some, auto) {
      store(tile + d * kTile<A> + i, load_some(source + d * map.stride[1] + i));
    });
  }
}

template <class T>
void store_tile(const Accumulate<T>* tile, const View& map, int64_t n, int64_t first,
                int64_t count) {
  using A = Accumulate<T>;
  const int64_t D = map.size[1];
  T* target = static_cast<T*>(map.data) + n * map.stride[0] + first * map.stride[3];
  if (!positions_fastest(map)) {
    return transpose(tile, kTile<A>, D, count, target, map.stride[3]);
  }
  for (int64_t d = 0; d < D; ++d) {
    for_vectors<A>(count, [&](int64_t i, auto, auto store_some) {
      store_some(target + d * map.stride[1] + i, load(tile + d * kTile<A> + i));
    });
  }
}

// (K, D) rows in the accumulation type, followed by zeros up to a whole block of codewords.
template <class A>
Scratch<A> padded_rows(const void* rows, int64_t K, int64_t D) {
  Scratch<A> padded(ceil_div(K, kCodeBlock) * kCodeBlock * D);
  std::copy_n(static_cast<const A*>(rows), K * D, padded.begin());
  return padded;
}

// Calls run(k, d, end of d) for blocks of codewords and dimensions; the tile's 64 rows d stay in
// the first-level cache for all codewords. Sums over a block are added to those before it: a single
// running sum over D = 512 would lose three bits more.
template <class Run>
void for_blocks(int64_t K, int64_t D, Run&& run) {
  constexpr int64_t kDimensions = 64;
  for (int64_t d = 0; d < D; d += kDimensions) {
    for (int64_t k = 0; k < K; k += kCodeBlock) run(k, d, std::min(d + kDimensions, D));
  }
}

template <class A>
inline void add(A* to, const Vec<A>& value) {
  store(to, Vec<A>(load(to) + value));
}

// Softmax over k of scale[k] * distances[k][i] into assignments, positions in lanes. The logits
// pass through memory: a product fused with the subtraction is not the rounded one that is the
// largest.
template <class A>
void assign(const A* distances, const A* scale, int64_t K, A* assignments) {
  for (int v = 0; v < kTile<A>; v += kLanes<A>) {
    Vec<A> largest = load(distances + v) * scale[0];
    for (int64_t k = 0; k < K; ++k) {
      const Vec<A> logit = load(distances + k * kTile<A> + v) * scale[k];
      store(assignments + k * kTile<A> + v, logit);
      largest = logit > largest ? logit : largest;
    }
    Vec<A> total{};
    for (int64_t k = 0; k < K; ++k) {
      A* a = assignments + k * kTile<A> + v;
      const Vec<A> e = exp_nonpositive(Vec<A>(load(a) - largest));
      store(a, e);
      total += e;
    }
    for (int64_t k = 0; k < K; ++k) {
      A* a = assignments + k * kTile<A> + v;
      store(a, load(a) / total);
    }
  }
}

// Sets rows (K, kTile) to 0 beyond the first `count` positions.
template <class A>
void clear_tail(A* rows, int64_t K, int64_t count) {
  if (count == kTile<A>) return;
  for (int64_t k = 0; k < K; ++k)
    std::fill(rows + k * kTile<A> + count, rows + (k + 1) * kTile<A>, 0);
}

// sums[k] += rows[k], a vector each: the lanes are added when all tiles are done.
template <class A>
void add_rows(const A* rows, int64_t K, A* sums) {
  for (int64_t k = 0; k < K; ++k) {
    Vec<A> sum = load(sums + k * kLanes<A>);
    for (int v = 0; v < kTileVectors; ++v) sum += load(rows + k * kTile<A> + v * kLanes<A>);
    store(sums + k * kLanes<A>, sum);
  }
}

namespace detail {

template <class A, int kDepth, int kVectors>
inline void weigh_block(const A* tile, const A* codewords, const A* weights, int64_t stride,
                        int64_t count, A* sums) {
  Vec<A> code[kDepth][kVectors], sum[kDepth][kVectors];
  for (int j = 0; j < kDepth; ++j) {
    for (int v = 0; v < kVectors; ++v) {
      code[j][v] = load(codewords + j * stride + v * kLanes<A>);
      sum[j][v] = load(sums + j * stride + v * kLanes<A>);
      hold<A>(code[j][v]);
    }
  }
  for (int64_t i = 0; i < count; ++i) {
    Vec<A> weight[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      weight[v] = load(weights + i * stride + v * kLanes<A>);
      hold<A>(weight[v]);
    }
    for (int j = 0; j < kDepth; ++j) {
      const A x = tile[j * kTile<A> + i];
      for (int v = 0; v < kVectors; ++v) sum[j][v] += weight[v] * (x - code[j][v]);
    }
  }
  for (int j = 0; j < kDepth; ++j) {
    for (int v = 0; v < kVectors; ++v) store(sums + j * stride + v * kLanes<A>, sum[j][v]);
  }
}

}  // namespace detail

// sums[d][k] += sum over the first `count` positions of weights[i][k] (x_id - c_kd), codewords in
// lanes: codewords and sums are (D, stride), weights (positions, stride), stride whole vectors.
template <class A>
void weigh(const A* tile, int64_t D, const A* codewords, const A* weights, int64_t stride,
           int64_t count, A* sums) {
  constexpr int kDepth = kVectorBytes == 64 ? 4 : 2;
  const auto blocks = [&]<int kVectors>(int64_t k) {
    int64_t d = 0;
    for (; d + kDepth <= D; d += kDepth) {
      detail::weigh_block<A, kDepth, kVectors>(tile + d * kTile<A>, codewords + d * stride + k,
                                               weights + k, stride, count, sums + d * stride + k);
    }
    for (; d < D; ++d) {
      detail::weigh_block<A, 1, kVectors>(tile + d * kTile<A>, codewords + d * stride + k,
                                          weights + k, stride, count, sums + d * stride + k);
    }
  };
  int64_t k = 0;
  for (; k + 2 * kLanes<A> <= stride; k += 2 * kLanes<A>) blocks.template operator()<2>(k);
  if (k < stride) blocks.template operator()<1>(k);
}

// What the work items of one call share, forward or backward, and the scratch that they reuse.
template <class T>
struct TileWork {
  using A = Accumulate<T>;

  const int64_t N, K, D;
  const int64_t stride;  // of arrays whose fastest dimension is K: whole vectors
  const A* const scale;
  const Scratch<A> codewords;  // (K, D), as padded_rows
  Scratch<A> code_columns;     // (D, stride)
  Scratch<A> tile;             // (D, kTile)
  Scratch<A> assignments;      // (K, kTile), up to a whole block of codewords
  Scratch<A> weights;          // (kTile, stride)
  Scratch<A> sums;             // (D, stride)

  template <class Op>
  explicit TileWork(const Op& op)
      : N(op.x.size[0]),
        K(op.codes()),
        D(op.depth()),
        stride(whole_vectors<A>(K)),
        scale(static_cast<const A*>(op.scale.data)),
        codewords(padded_rows<A>(op.codewords.data, K, D)),
        code_columns(D * stride),
        tile(D * kTile<A>),
        assignments(ceil_div(K, kCodeBlock) * kCodeBlock * kTile<A>),
        weights(kTile<A> * stride),
        sums(D * stride) {
    transpose(codewords.data(), D, K, D, code_columns.data(), stride);
  }

  // sums += the tile's sums over its first `count` positions of rows[k][i] (x_id - c_kd).
  void weigh_tile(const A* rows, int64_t count) {
    transpose(rows, kTile<A>, K, kTile<A>, weights.data(), stride);
    weigh(tile.data(), D, code_columns.data(), weights.data(), stride, count, sums.data());
  }
};

}  // namespace stripctx::cpu
