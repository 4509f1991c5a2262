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

// Vectors of positions processed per load of a block of codewords and of G; the number of registers
// limits them.
constexpr int kHalf = kTileVectors / 2;
constexpr int kGradientVectors = kVectorBytes == 64 ? kTileVectors : kHalf;

// For kCodeBlock codewords, over the dimensions of a panel: distances[k][i] += |x_i - c_k|^2 and
// products[k][i] += (x_i - c_k).G_k.
template <class A>
void block_products(const A* panel, const A* codewords, const A* grad, int64_t stride,
                    int64_t depth, A* distances, A* products) {
  constexpr int lanes = kLanes<A>;
  Vec<A> squares[kCodeBlock][kHalf]{}, along[kCodeBlock][kHalf]{};
  for (int64_t d = 0; d < depth; ++d) {
    Vec<A> x[kHalf];
    load_vectors(panel + d * kTile<A>, lanes, x);
#pragma GCC unroll 8
    for (int k = 0; k < kCodeBlock; ++k) {
      const A g = grad[d * stride + k];
#pragma GCC unroll 8
      for (int v = 0; v < kHalf; ++v) {
        const Vec<A> residual = minus_each(x[v], codewords + d * stride + k);
        squares[k][v] += residual * residual;
        along[k][v] += residual * g;
      }
    }
  }
#pragma GCC unroll 8
  for (int k = 0; k < kCodeBlock; ++k) {
#pragma GCC unroll 8
    for (int v = 0; v < kHalf; ++v) {
      add(distances + k * kTile<A> + v * lanes, squares[k][v]);
      add(products + k * kTile<A> + v * lanes, along[k][v]);
    }
  }
}

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

template <class T>
class EncoderBackward {
 public:
  using A = Accumulate<T>;

  explicit EncoderBackward(const EncodeBackward& op)
      : op_(op),
        work_(op),
        products_(work_.stride * kTile<A>),
        masses_(work_.K * kLanes<A>),
        scale_sums_(work_.K * kLanes<A>),
        grad_(work_.D * work_.stride) {}

  void run(int64_t item) {
    const int64_t n = item % work_.N, chunk = item / work_.N, K = work_.K, D = work_.D;
    if (n != image_)
      work_.by_dimension(static_cast<const A*>(op_.grad.data) + n * K * D, grad_.data());
    image_ = n;
    for (auto* each : {&work_.sums, &masses_, &scale_sums_}) each->clear();
    for_tiles<A>(op_.x, chunk, [&](int64_t first, int64_t count) {
      const Tile<T> tile{op_.x, n, first, count}, target{op_.grad_x, n, first, count};
      assign_tile(tile);
      add_rows(work_.assignments.data(), K, masses_.data());
      work_.turn(products_.data());
      for_panels(tile, work_.panel.data(), [&](int64_t d, int64_t depth) {
        work_.weigh_panel(d, depth, count);
        gradient_panel(d, depth);
        target.store(work_.panel.data(), d, depth);
      });
    });
    finish(static_cast<A*>(op_.scale_partials.data) + item * K);
    work_.store_sums(static_cast<A*>(op_.codeword_partials.data) + item * K * D);
  }

 private:
  // Computes the assignments, and the weights 2 q in products_.
  void assign_tile(const Tile<T>& tile) {
    const int64_t K = work_.K, stride = work_.stride;
    // work_.weights is unused until the products are transposed into it
    A* distances = work_.weights.data();
    work_.weights.clear();
    products_.clear();
    for_blocks(tile, K, work_.panel.data(), [&](int64_t k, int64_t d, int64_t depth) {
      for (int v = 0; v < kTile<A>; v += kHalf * kLanes<A>) {
        block_products(work_.panel.data() + v, work_.codewords.data() + d * stride + k,
                       grad_.data() + d * stride + k, stride, depth, distances + k * kTile<A> + v,
                       products_.data() + k * kTile<A> + v);
      }
    });
    A* assignments = work_.assignments.data();
    assign(distances, work_.scale, K, assignments);
    clear_tail(assignments, K, tile.count);
    weights_of(assignments, distances, work_.scale, K, tile.count, products_.data(),
               scale_sums_.data());
  }

  // Overwrites the panel with the gradient of x.
  void gradient_panel(int64_t d, int64_t depth) {
    const int64_t stride = work_.stride;
    const auto block = [&]<int kDepth>(int64_t row) {
      const int64_t column = (d + row) * stride;
      for (int v = 0; v < kTile<A>; v += kGradientVectors * kLanes<A>) {
        gradient_block<A, kDepth>(work_.panel.data() + row * kTile<A> + v,
                                  work_.assignments.data() + v, products_.data() + v,
                                  work_.codewords.data() + column, grad_.data() + column, work_.K,
                                  stride);
      }
    };
    int64_t row = 0;
    for (; row + 2 <= depth; row += 2) block.template operator()<2>(row);
    if (row < depth) block.template operator()<1>(row);
  }

  // grad_c_k = -(sum of a_ik) G_k - sum of 2 q_ik (x_i - c_k); the second sum is in work_.sums and
  // is overwritten.
  void finish(A* scale) {
    const int64_t K = work_.K;
    for (int64_t k = 0; k < K; ++k) {
      masses_.data()[k] = sum_lanes<A>(load(masses_.data() + k * kLanes<A>));
      scale[k] = sum_lanes<A>(load(scale_sums_.data() + k * kLanes<A>));
    }
    for (int64_t d = 0; d < work_.D; ++d) {
      for_vectors<A>(K, [&](int64_t k, auto load_some, auto store_some) {
        A* to = work_.sums.data() + d * K + k;
        const Vec<A> grad = load_some(grad_.data() + d * work_.stride + k);
        store_some(to, -load_some(to) - load_some(masses_.data() + k) * grad);
      });
    }
  }

  const EncodeBackward& op_;
  TileWork<T> work_;
  Buffer<A> products_, masses_, scale_sums_;
  Buffer<A> grad_;  // gradient of one image's E, (D, stride)
  int64_t image_ = -1;
};

}  // namespace

int64_t partials(const EncodeBackward& op) {
  return tile_chunks(op.x).chunks;
}

Work work(const EncodeBackward& op) {
  return {op.x.size[0] * partials(op), 1};
}

void run(const EncodeBackward& op, int64_t begin, int64_t end) {
  dispatch<Types>(op.x.dtype, [&]<class T>() {
    EncoderBackward<T> encoder(op);
    for (int64_t item = begin; item < end; ++item) encoder.run(item);
  });
}

}  // namespace stripctx::cpu
