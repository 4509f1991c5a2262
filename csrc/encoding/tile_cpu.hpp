// Shared by the encoding layer's forward and backward on the CPU. A work item is a chunk of one
// image's tiles of positions and processes a tile one panel, a block of dimensions, at a time.
//
// A panel is (kPanel, kTile) in the accumulation type, positions fastest whatever the map's layout.
// In float32 it is 16 KB and fits in the first-level cache; panels that are read again come from
// the second-level cache. Arrays over codewords and positions are (K, kTile). Codewords and the
// gradient of E are transposed to (D, stride), so that a dimension of all codewords is contiguous.
#pragma once

#include "encoding/params.hpp"

#include <algorithm>

#include "core/dispatch.hpp"
#include "cpu/loops.hpp"
#include "cpu/transpose.hpp"

namespace stripctx::cpu {

constexpr int kTileVectors = 4;
template <class A>
constexpr int kTile = kTileVectors * kLanes<A>;

// Dimensions per panel.
constexpr int64_t kPanel = 64;

// Codewords per read of a panel: their sums fill half of the registers.
constexpr int kCodeBlock = kVectorBytes == 64 ? 4 : 2;

// The division of each image's positions into chunks of whole tiles, from shapes only: enough for
// many cores, and few enough that the chunks' partial sums, K * D numbers each, are no more than K
// numbers per position in total.
struct TileChunks {
  static constexpr int64_t kPositions = 64;  // the unit of division; kTile divides it
  int64_t tiles, chunks;

  int64_t first(int64_t chunk) const { return chunk * tiles / chunks * kPositions; }
};

inline TileChunks tile_chunks(const View& x) {
  constexpr int64_t kItems = 64;
  const int64_t tiles = ceil_div(x.size[3], TileChunks::kPositions);
  const int64_t fewest = tiles < 16 ? 2 : 4;  // fewest tiles of a chunk
  const int64_t most =
      std::max<int64_t>(1, std::min(tiles / fewest, x.size[3] / std::max<int64_t>(1, x.size[1])));
  int64_t chunks = 1;
  while (chunks * x.size[0] < kItems && chunks * 2 <= most) chunks *= 2;
  return {tiles, chunks};
}

// Calls body(first, count) for the tiles of a chunk.
template <class A, class Body>
[[gnu::always_inline]] inline void for_tiles(const View& x, int64_t chunk, Body&& body) {
  static_assert(TileChunks::kPositions % kTile<A> == 0);
  const TileChunks cut = tile_chunks(x);
  const int64_t end = std::min(cut.first(chunk + 1), x.size[3]);
  for (int64_t first = cut.first(chunk); first < end; first += kTile<A>) {
    body(first, std::min<int64_t>(kTile<A>, end - first));
  }
}

inline bool positions_fastest(const View& map) {
  return map.stride[3] == 1 || map.size[3] == 1;
}

// Positions [first, first + count) of image n.
template <class T>
struct Tile {
  using A = Accumulate<T>;

  const View& map;
  int64_t n, first, count;

  // Loads dimensions [d, d + depth) into a panel; elements past `count` are 0.
  void load(int64_t d, int64_t depth, A* panel) const {
    if (count < kTile<A>) std::fill(panel, panel + depth * kTile<A>, A(0));
    const T* source = at(d);
    if (!positions_fastest(map)) {
      return transpose(source, map.stride[3], count, depth, panel, kTile<A>);
    }
    for (int64_t row = 0; row < depth; ++row) {
      convert(source + row * map.stride[1], count, panel + row * kTile<A>);
    }
  }

  void store(const A* panel, int64_t d, int64_t depth) const {
    T* target = at(d);
    if (!positions_fastest(map)) {
      return transpose(panel, kTile<A>, depth, count, target, map.stride[3]);
    }
    for (int64_t row = 0; row < depth; ++row) {
      convert(panel + row * kTile<A>, count, target + row * map.stride[1]);
    }
  }

  // Prefetches part `part` of `parts` of dimensions [d, d + depth) of the tile. Its rows are too
  // short for the hardware prefetcher to detect a stream.
  void prefetch(int64_t d, int64_t depth, int64_t part, int64_t parts) const {
    asm volatile("");  // otherwise g++ drops calls that only prefetch
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

// Calls body(d, depth) for each panel of the tile, after loading it into `panel`.
template <class T, class Body>
[[gnu::always_inline]] inline void for_panels(const Tile<T>& tile, Accumulate<T>* panel,
                                              Body&& body) {
  const int64_t D = tile.map.size[1];
  for (int64_t d = 0; d < D; d += kPanel) {
    const int64_t depth = std::min(kPanel, D - d);
    tile.load(d, depth, panel);
    body(d, depth);
  }
}

// Calls body(k, d, depth) for each block of codewords of each panel, while the panel is in the
// first-level cache, and prefetches the next panel meanwhile. Each panel has sums of its own, which
// are added to those of earlier panels: a single running sum over D = 512 would lose three more
// bits.
template <class T, class Body>
[[gnu::always_inline]] inline void for_blocks(const Tile<T>& tile, int64_t K, Accumulate<T>* panel,
                                              Body&& body) {
  const int64_t D = tile.map.size[1], blocks = ceil_div(K, kCodeBlock);
  const int64_t next = tile.first + tile.count;
  const int64_t left = std::min<int64_t>(kTile<Accumulate<T>>, tile.map.size[3] - next);
  for_panels(tile, panel, [&](int64_t d, int64_t depth) {
    const bool last = d + depth == D;
    const Tile<T> next_tile{tile.map, tile.n, last ? next : tile.first, last ? left : tile.count};
    const int64_t from = last ? 0 : d + depth;
    for (int64_t block = 0; block < blocks; ++block) {
      body(block * kCodeBlock, d, depth);
      if (next_tile.count > 0) next_tile.prefetch(from, std::min(kPanel, D - from), block, blocks);
    }
  });
}

// value - *each in every lane. In AVX-512 a subtraction can broadcast its memory operand for free;
// a separate broadcast, which g++ emits for any scalar used twice, would occupy a port that the
// additions need.
template <class A>
inline Vec<A> minus_each(const Vec<A>& value, const A* each) {
#if defined(__AVX512F__)
  Vec<A> difference;
  if constexpr (sizeof(A) == 4) {
    asm("vsubps %2%{1to16%}, %1, %0" : "=v"(difference) : "v"(value), "m"(*each));
  } else {
    asm("vsubpd %2%{1to8%}, %1, %0" : "=v"(difference) : "v"(value), "m"(*each));
  }
  return difference;
#else
  return value - *each;
#endif
}

template <class A>
inline void add(A* to, const Vec<A>& value) {
  store(to, Vec<A>(load(to) + value));
}

// assignments[k][i] = softmax over k of scale[k] * distances[k][i], positions in lanes. The logits
// are stored and reloaded because a product fused with the subtraction of the maximum would not
// equal the rounded product that the maximum was taken of.
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

// Sets rows (K, kTile) to 0 past the first `count` positions.
template <class A>
void clear_tail(A* rows, int64_t K, int64_t count) {
  if (count == kTile<A>) return;
  for (int64_t k = 0; k < K; ++k)
    std::fill(rows + k * kTile<A> + count, rows + (k + 1) * kTile<A>, 0);
}

// sums[k] += rows[k], as a vector of partial sums; the lanes are added after the last tile.
template <class A>
void add_rows(const A* rows, int64_t K, A* sums) {
  for (int64_t k = 0; k < K; ++k) {
    Vec<A> sum = load(sums + k * kLanes<A>);
    for (int v = 0; v < kTileVectors; ++v) sum += load(rows + k * kTile<A> + v * kLanes<A>);
    store(sums + k * kLanes<A>, sum);
  }
}

// For kCodeBlock codewords and kVectors vectors of positions, over the dimensions of a panel:
// distances[k][i] += |x_i - c_k|^2 and, if kProducts, products[k][i] += (x_i - c_k).G_k. Codewords
// and G begin at element `column`, distances and products at `place`.
template <int kVectors, bool kProducts, class A>
void block_sums(const A* panel, int64_t depth, const A* codewords, const A* grad, int64_t stride,
                int64_t column, A* distances, A* products, int64_t place) {
  constexpr int lanes = kLanes<A>;
  Vec<A> squares[kCodeBlock][kVectors]{}, along[kCodeBlock][kVectors]{};
  for (int64_t d = 0; d < depth; ++d) {
    const int64_t at = column + d * stride;
    Vec<A> x[kVectors];
    load_vectors(panel + d * kTile<A>, lanes, x);
#pragma GCC unroll 8
    for (int k = 0; k < kCodeBlock; ++k) {
      const A g = kProducts ? grad[at + k] : A(0);
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) {
        const Vec<A> residual = minus_each(x[v], codewords + at + k);
        squares[k][v] += residual * residual;
        if constexpr (kProducts) along[k][v] += residual * g;
      }
    }
  }
#pragma GCC unroll 8
  for (int k = 0; k < kCodeBlock; ++k) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      const int64_t to = place + k * kTile<A> + v * lanes;
      add(distances + to, squares[k][v]);
      if constexpr (kProducts) add(products + to, along[k][v]);
    }
  }
}

// sums[j][k] += sum over the first `count` positions i of weights[i][k] (x_ij - c_jk), for kDepth
// dimensions j and kVectors vectors of codewords k.
template <int kDepth, int kVectors, class A, class Load, class Store>
[[gnu::always_inline]] inline void weigh_block(const A* panel, const A* codewords, const A* weights,
                                               int64_t stride, int64_t count, A* sums, int64_t K,
                                               Load load_some, Store store_some) {
  Vec<A> code[kDepth][kVectors], sum[kDepth][kVectors];
#pragma GCC unroll 8
  for (int j = 0; j < kDepth; ++j) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      code[j][v] = load(codewords + j * stride + v * kLanes<A>);
      sum[j][v] = load_some(sums + j * K + v * kLanes<A>);
    }
  }
  for (int64_t i = 0; i < count; ++i) {
    Vec<A> weight[kVectors];
    load_vectors(weights + i * stride, kLanes<A>, weight);
#pragma GCC unroll 8
    for (int j = 0; j < kDepth; ++j) {
      Vec<A> residual[kVectors];
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) {
        residual[v] = minus_each(code[j][v], panel + j * kTile<A> + i);
      }
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) sum[j][v] -= weight[v] * residual[v];
    }
  }
#pragma GCC unroll 8
  for (int j = 0; j < kDepth; ++j) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) store_some(sums + j * K + v * kLanes<A>, sum[j][v]);
  }
}

// The inputs and the scratch that a thread's work items share, forward or backward.
template <class T>
struct TileWork {
  using A = Accumulate<T>;

  const int64_t N, K, D;
  const int64_t stride;  // K rounded up to whole vectors
  const A* const scale;
  Buffer<A> codewords;    // (D, stride)
  Buffer<A> panel;        // (kPanel, kTile)
  Buffer<A> assignments;  // (stride, kTile)
  Buffer<A> weights;      // (kTile, stride); before that, the distances (stride, kTile)
  Buffer<A> sums;         // (D, K)

  template <class Op>
  explicit TileWork(const Op& op)
      : N(op.x.size[0]),
        K(op.codes()),
        D(op.depth()),
        stride(padded<A>(K)),
        scale(static_cast<const A*>(op.scale.data)),
        codewords(D * stride),
        panel(kPanel * kTile<A>),
        assignments(stride * kTile<A>),
        weights(kTile<A> * stride),
        sums(D * K) {
    by_dimension(static_cast<const A*>(op.codewords.data), codewords.data());
  }

  // Transposes a matrix (K, D) to (D, stride).
  void by_dimension(const A* matrix, A* out) const { transpose(matrix, D, K, D, out, stride); }

  // Stores the sums as a matrix (K, D).
  void store_sums(A* matrix) { transpose(sums.data(), K, D, K, matrix, D); }

  // Computes a tile's distances, in `weights`, and its assignments; if kProducts, also the
  // products with `grad`, (D, stride).
  template <bool kProducts>
  [[gnu::always_inline]] void assign_tile(const Tile<T>& tile, const A* grad = nullptr,
                                          A* products = nullptr) {
    constexpr int kVectors = kProducts ? kTileVectors / 2 : kTileVectors;  // fit in the registers
    weights.clear();
    for_blocks(tile, K, panel.data(), [&](int64_t k, int64_t d, int64_t depth) {
      for (int v = 0; v < kTile<A>; v += kVectors * kLanes<A>) {
        block_sums<kVectors, kProducts>(panel.data() + v, depth, codewords.data(), grad, stride,
                                        d * stride + k, weights.data(), products, k * kTile<A> + v);
      }
    });
    assign<A>(weights.data(), scale, K, assignments.data());
    clear_tail(assignments.data(), K, tile.count);
  }

  // Transposes so that codewords are in lanes: weights[i][k] = rows[k][i].
  void turn(const A* rows) { transpose(rows, kTile<A>, K, kTile<A>, weights.data(), stride); }

  // Adds the panel's weighted residuals: sums[d][k] += sum over i < count of weights[i][k] (x_id -
  // c_kd).
  void weigh_panel(int64_t first, int64_t depth, int64_t count) {
    int64_t d = 0;
    const auto rows = [&]<int kDepth>() {
      for (; d + kDepth <= depth; d += kDepth) {
        for_vector_groups<A, 2>(K, [&]<int kVectors>(int64_t k, auto load_some, auto store_some) {
          weigh_block<kDepth, kVectors>(
              panel.data() + d * kTile<A>, codewords.data() + (first + d) * stride + k,
              weights.data() + k, stride, count, sums.data() + (first + d) * K + k, K, load_some,
              store_some);
        });
      }
    };
    if constexpr (kVectorBytes == 64) rows.template operator()<6>();
    rows.template operator()<2>();
    rows.template operator()<1>();
  }
};

}  // namespace stripctx::cpu
