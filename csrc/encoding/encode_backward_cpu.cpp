// The gradients of the encoding layer on the CPU (formulas in params.hpp): reads x once and writes
// its gradient once.
//
// A work item is a chunk of one image's tiles. For each tile it computes, panel by panel, distances
// and products with G, with positions in lanes; then the softmax and its derivative; then, panel by
// panel again, the sums for the codewords, with codewords in lanes, and the gradient of x, which
// overwrites the panel. Five multiply-adds per position, codeword and dimension.
#include "encoding/tile_cpu.hpp"

namespace stripctx::cpu {

namespace {

// Vectors of positions processed per load of a row of G; the number of registers limits them.
constexpr int kGradientVectors = kVectorBytes == 64 ? kTileVectors : kTileVectors / 2;

// Replaces the products by the weights 2 q_ik and adds dP_ik d_ik to the gradient sums of the
// scale.
template <class A>
void weights_of(const A* assignments, const A* distances, const A* scale, int64_t K, int64_t count,
                A* products, A* scale_sums) {
  for (int v = 0; v < kTile<A>; v += kLanes<A>) {
    Vec<A> mean{};
    for (int64_t k = 0; k < K; ++k) {
      mean += load(assignments + k * kTile<A> + v) * load(products + k * kTile<A> + v);
    }
    for (int64_t k = 0; k < K; ++k) {
      A* product = products + k * kTile<A> + v;
      store(product, load(assignments + k * kTile<A> + v) * (load(product) - mean));
    }
  }
  clear_tail(products, K, count);
  for (int64_t k = 0; k < K; ++k) {
    Vec<A> sum = load(scale_sums + k * kLanes<A>);
    for (int v = 0; v < kTile<A>; v += kLanes<A>) {
      A* slope = products + k * kTile<A> + v;
      sum += load(slope) * load(distances + k * kTile<A> + v);
      store(slope, load(slope) * (2 * scale[k]));
    }
    store(scale_sums + k * kLanes<A>, sum);
  }
}

// Overwrites panel[d][i] with the sum over k of a_ik G_kd + weights_ik (x_id - c_kd), for kDepth
// rows d and kGradientVectors vectors of positions.
template <class A, int kDepth>
void gradient_block(A* panel, const A* assignments, const A* weights, const A* codewords,
                    const A* grad, int64_t K, int64_t stride) {
  constexpr int lanes = kLanes<A>;
  Vec<A> x[kDepth][kGradientVectors], sum[kDepth][kGradientVectors]{};
#pragma GCC unroll 8
  for (int j = 0; j < kDepth; ++j) load_vectors(panel + j * kTile<A>, lanes, x[j]);
  for (int64_t k = 0; k < K; ++k) {
    Vec<A> a[kGradientVectors], weight[kGradientVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kGradientVectors; ++v) {
      a[v] = opaque(load(assignments + k * kTile<A> + v * lanes));
      weight[v] = opaque(load(weights + k * kTile<A> + v * lanes));
    }
#pragma GCC unroll 8
    for (int j = 0; j < kDepth; ++j) {
      Vec<A> residual[kGradientVectors];
#pragma GCC unroll 8
      for (int v = 0; v < kGradientVectors; ++v) {
        residual[v] = minus_each(x[j][v], codewords + j * stride + k);
      }
      const A g = grad[j * stride + k];
#pragma GCC unroll 8
      for (int v = 0; v < kGradientVectors; ++v) sum[j][v] += a[v] * g;
#pragma GCC unroll 8
      for (int v = 0; v < kGradientVectors; ++v) sum[j][v] += weight[v] * residual[v];
    }
  }
#pragma GCC unroll 8
  for (int j = 0; j < kDepth; ++j) store_vectors(panel + j * kTile<A>, lanes, sum[j]);
}

// Overwrites the panel, dimensions [d, d + depth), with the gradient of x.
template <class T, class A = Accumulate<T>>
void gradient_panel(TileWork<T>& work, const A* weights, const A* grad, int64_t d, int64_t depth) {
  int64_t row = 0;
  const auto rows = [&]<int kDepth>() {
    for (; row + kDepth <= depth; row += kDepth) {
      const int64_t column = (d + row) * work.stride;
      for (int v = 0; v < kTile<A>; v += kGradientVectors * kLanes<A>) {
        gradient_block<A, kDepth>(
            work.panel.data() + row * kTile<A> + v, work.assignments.data() + v, weights + v,
            work.codewords.data() + column, grad + column, work.K, work.stride);
      }
    }
  };
  rows.template operator()<2>();
  rows.template operator()<1>();
}

template <class T>
void encode_backward(const EncodeBackward& op, int64_t begin, int64_t end) {
  using A = Accumulate<T>;
  TileWork<T> work(op);
  const int64_t N = work.N, K = work.K, D = work.D;
  Buffer<A> products(work.stride * kTile<A>);  // then the weights 2 q
  Buffer<A> masses(K * kLanes<A>), scale_sums(K * kLanes<A>);
  Buffer<A> grad(D * work.stride);  // the gradient of one image's E, (D, stride)
  int64_t image = -1;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t n = item % N;
    if (n != image) work.by_dimension(static_cast<const A*>(op.grad.data) + n * K * D, grad.data());
    image = n;
    for (auto* each : {&work.sums, &masses, &scale_sums}) each->clear();
    for_tiles<A>(op.x, item / N, [&](int64_t first, int64_t count) {
      const Tile<T> tile{op.x, n, first, count}, target{op.grad_x, n, first, count};
      products.clear();
      work.template assign_tile<true>(tile, grad.data(), products.data());
      weights_of(work.assignments.data(), work.weights.data(), work.scale, K, count,
                 products.data(), scale_sums.data());
      add_rows(work.assignments.data(), K, masses.data());
      work.turn(products.data());
      for_panels(tile, work.panel.data(), [&](int64_t d, int64_t depth) {
        work.weigh_panel(d, depth, count);
        gradient_panel(work, products.data(), grad.data(), d, depth);
        target.store(work.panel.data(), d, depth);
      });
    });
    // grad_c_k = -(sum of a_ik) G_k - sum of 2 q_ik (x_i - c_k)
    A* scale = static_cast<A*>(op.scale_partials.data) + item * K;
    for (int64_t k = 0; k < K; ++k) {
      masses.data()[k] = sum_lanes<A>(load(masses.data() + k * kLanes<A>));
      scale[k] = sum_lanes<A>(load(scale_sums.data() + k * kLanes<A>));
    }
    for (int64_t d = 0; d < D; ++d) {
      for_vectors<A>(K, [&](int64_t k, auto load_some, auto store_some) {
        A* to = work.sums.data() + d * K + k;
        const Vec<A> g = load_some(grad.data() + d * work.stride + k);
        store_some(to, -load_some(to) - load_some(masses.data() + k) * g);
      });
    }
    work.store_sums(static_cast<A*>(op.codeword_partials.data) + item * K * D);
  }
}

}  // namespace

int64_t partials(const EncodeBackward& op) {
  return tile_chunks(op.x).chunks;
}

Work work(const EncodeBackward& op) {
  return {op.x.size[0] * partials(op), 1};
}

void run(const EncodeBackward& op, int64_t begin, int64_t end) {
  dispatch<Types>(op.x.dtype, [&]<class T>() { encode_backward<T>(op, begin, end); });
}

}  // namespace stripctx::cpu
