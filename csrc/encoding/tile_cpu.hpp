// What the encoding layer's forward and backward compute alike on the CPU: softmax over the
// codewords of a tile, products of its panels with codewords in lanes, and the scratch for both.
//
// Arrays over codewords and positions are (K, kTile); codewords and their gradient (D, stride).
#pragma once

#include "encoding/params.hpp"

#include <algorithm>
#include <new>
#include <utility>
#include <vector>

#include "core/dispatch.hpp"
#include "encoding/panel_cpu.hpp"

namespace stripctx::cpu {

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

// value - *each in every lane. AVX-512 broadcasts the operand of a subtraction for nothing, where a
// broadcast of its own, which g++ makes of any scalar used twice, takes one of the adders' turns.
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

template <class A, int kDepth, int kVectors, class Load, class Store>
inline void weigh_block(const A* panel, const A* codewords, const A* weights, int64_t stride,
                        int64_t count, A* sums, int64_t K, Load load_some, Store store_some) {
  Vec<A> code[kDepth][kVectors], sum[kDepth][kVectors];
#pragma GCC unroll 8
  for (int j = 0; j < kDepth; ++j) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      code[j][v] = load(codewords + j * stride + v * kLanes<A>);
      sum[j][v] = load_some(sums + j * K + v * kLanes<A>);
      code[j][v] = opaque(code[j][v]);
    }
  }
  for (int64_t i = 0; i < count; ++i) {
    Vec<A> weight[kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      weight[v] = opaque(load(weights + i * stride + v * kLanes<A>));
    }
#pragma GCC unroll 8
    for (int j = 0; j < kDepth; ++j) {
      Vec<A> residual[kVectors];
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) {
        residual[v] = opaque(minus_each(code[j][v], panel + j * kTile<A> + i));
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

}  // namespace detail

// sums[d][k] += sum over the first `count` positions of weights[i][k] (x_id - c_kd), codewords in
// lanes: sums are (depth, K), codewords (depth, stride), weights (positions, stride), stride whole
// vectors.
template <class A>
void weigh(const A* panel, int64_t depth, const A* codewords, const A* weights, int64_t stride,
           int64_t count, A* sums, int64_t K) {
  const auto rows = [&]<int kDepth>(int64_t& d) {
    for (; d + kDepth <= depth; d += kDepth) {
      for_vector_groups<A, 2>(K, [&]<int kVectors>(int64_t k, auto load_some, auto store_some) {
        detail::weigh_block<A, kDepth, kVectors>(panel + d * kTile<A>, codewords + d * stride + k,
                                                 weights + k, stride, count, sums + d * K + k, K,
                                                 load_some, store_some);
      });
    }
  };
  int64_t d = 0;
  if constexpr (kVectorBytes == 64) rows.template operator()<6>(d);
  rows.template operator()<2>(d);
  rows.template operator()<1>(d);
}

// What the work items of one call share, forward or backward, and the scratch that they reuse.
template <class T>
struct TileWork {
  using A = Accumulate<T>;

  const int64_t N, K, D;
  const int64_t stride;  // of arrays whose fastest dimension is K: whole vectors
  const A* const scale;
  const A* const codewords;  // (D, stride)
  Scratch<A> panel;          // (kPanel, kTile)
  Scratch<A> assignments;    // (stride, kTile)
  Scratch<A> weights;        // (kTile, stride)

  template <class Op>
  explicit TileWork(const Op& op)
      : N(op.x.size[0]),
        K(op.codes()),
        D(op.depth()),
        stride(whole_vectors<A>(K)),
        scale(static_cast<const A*>(op.scale.data)),
        codewords(static_cast<const A*>(op.scratch.data)),
        panel(kPanel * kTile<A>),
        assignments(stride * kTile<A>),
        weights(kTile<A> * stride) {}

  // Codewords into lanes: weights[i][k] = rows[k][i].
  void turn(const A* rows) { transpose(rows, kTile<A>, K, kTile<A>, weights.data(), stride); }

  // sums (D, K) += the sums over a panel's first `count` positions of weights[i][k] (x_id - c_kd).
  void weigh_panel(int64_t d, int64_t depth, int64_t count, A* sums) const {
    weigh(panel.data(), depth, codewords + d * stride, weights.data(), stride, count, sums + d * K,
          K);
  }
};

}  // namespace stripctx::cpu
