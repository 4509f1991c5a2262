// The gradients of the encoding layer on the CPU (core/encoding.hpp has the formulas): reads x and
// writes its gradient once.
//
// A work item owns a run of one image's tiles. For each tile, in the second-level cache: distances
// and products with G, positions in lanes; softmax and its derivative; sums for the codewords,
// which are in lanes there; then the gradient of x over the tile itself. Five multiply-adds for
// each position, codeword and dimension.
#include "cpu/encoding_tile.hpp"

namespace stripctx::cpu {

namespace {

// Positions that share one read of two codewords' blocks: registers set the limit.
constexpr int kHalf = kTileVectors / 2;
constexpr int kSpread = kVectorBytes == 64 ? kTileVectors : kHalf;

// For kCodeBlock codewords and the dimensions [first, end): distances[k][i] += |x_i - c_k|^2 and
// products[k][i] += (x_i - c_k).G_k.
template <class A>
void block_products(const A* tile, const A* codewords, const A* grad, int64_t D, int64_t first,
                    int64_t end, A* distances, A* products) {
  constexpr int lanes = kLanes<A>;
  Vec<A> squares[kCodeBlock][kHalf]{}, along[kCodeBlock][kHalf]{};
  for (int64_t d = first; d < end; ++d) {
    Vec<A> x[kHalf];
    for (int v = 0; v < kHalf; ++v) {
      x[v] = load(tile + d * kTile<A> + v * lanes);
      hold<A>(x[v]);
    }
    for (int k = 0; k < kCodeBlock; ++k) {
      const A code = codewords[k * D + d], g = grad[k * D + d];
      for (int v = 0; v < kHalf; ++v) {
        const Vec<A> residual = x[v] - code;
        squares[k][v] += residual * residual;
        along[k][v] += residual * g;
      }
    }
  }
  for (int k = 0; k < kCodeBlock; ++k) {
    for (int v = 0; v < kHalf; ++v) {
      add(distances + k * kTile<A> + v * lanes, squares[k][v]);
      add(products + k * kTile<A> + v * lanes, along[k][v]);
    }
  }
}

// Turns products into weights 2 q and adds dP d to the sums of the gradient of the scale.
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

// tile[d][i] becomes the sum over k of a_ik G_kd + weights_ik (x_id - c_kd), for kDepth rows d and
// kSpread vectors of positions; codewords and grad are (D, stride) here, so that what one row d
// needs lies together.
template <class A, int kDepth>
void spread_block(A* tile, const A* assignments, const A* weights, const A* codewords,
                  const A* grad, int64_t K, int64_t stride) {
  constexpr int lanes = kLanes<A>;
  Vec<A> x[kDepth][kSpread], sum[kDepth][kSpread]{};
  for (int j = 0; j < kDepth; ++j) {
    for (int v = 0; v < kSpread; ++v) x[j][v] = load(tile + j * kTile<A> + v * lanes);
  }
  for (int64_t k = 0; k < K; ++k) {
    Vec<A> a[kSpread], weight[kSpread];
    for (int v = 0; v < kSpread; ++v) {
      a[v] = load(assignments + k * kTile<A> + v * lanes);
      weight[v] = load(weights + k * kTile<A> + v * lanes);
      hold<A>(a[v]);
      hold<A>(weight[v]);
    }
    for (int j = 0; j < kDepth; ++j) {
      const A code = codewords[j * stride + k], g = grad[j * stride + k];
      for (int v = 0; v < kSpread; ++v) {
        sum[j][v] += a[v] * g;
        sum[j][v] += weight[v] * (x[j][v] - code);
      }
    }
  }
  for (int j = 0; j < kDepth; ++j) {
    for (int v = 0; v < kSpread; ++v) store(tile + j * kTile<A> + v * lanes, sum[j][v]);
  }
}

template <class T>
class EncoderBackward {
 public:
  using A = Accumulate<T>;

  explicit EncoderBackward(const EncodeBackward& op)
      : op_(op),
        work_(op),
        grad_columns_(work_.D * work_.stride),
        distances_(work_.assignments.size()),
        products_(work_.assignments.size()),
        masses_(work_.K * kLanes<A>),
        scale_sums_(masses_.size()) {}

  void run(int64_t item) {
    const int64_t n = item % work_.N, chunk = item / work_.N, K = work_.K, D = work_.D;
    grad_ = padded_rows<A>(static_cast<const A*>(op_.grad.data) + n * K * D, K, D);
    transpose(grad_.data(), D, K, D, grad_columns_.data(), work_.stride);
    for (auto* sums : {&work_.sums, &masses_, &scale_sums_}) {
      std::fill(sums->begin(), sums->end(), A(0));
    }
    for_tiles<A>(op_.x, chunk, [&](int64_t first, int64_t count) {
      load_tile<T>(op_.x, n, first, count, work_.tile.data());
      assign_tile(count);
      add_rows(work_.assignments.data(), K, masses_.data());
      work_.weigh_tile(products_.data(), count);
      spread();
      store_tile<T>(work_.tile.data(), op_.grad_x, n, first, count);
    });
    finish(static_cast<A*>(op_.codeword_partials.data) + item * K * D,
           static_cast<A*>(op_.scale_partials.data) + item * K);
  }

 private:
  // Assignments, and in products_ the weights 2 q.
  void assign_tile(int64_t count) {
    const int64_t K = work_.K, D = work_.D;
    std::fill(distances_.begin(), distances_.end(), A(0));
    std::fill(products_.begin(), products_.end(), A(0));
    for_blocks(K, D, [&](int64_t k, int64_t d, int64_t end) {
      for (int v = 0; v < kTile<A>; v += kHalf * kLanes<A>) {
        block_products(work_.tile.data() + v, work_.codewords.data() + k * D, grad_.data() + k * D,
                       D, d, end, distances_.data() + k * kTile<A> + v,
                       products_.data() + k * kTile<A> + v);
      }
    });
    A* assignments = work_.assignments.data();
    assign(distances_.data(), work_.scale, K, assignments);
    clear_tail(assignments, K, count);
    weights_of(assignments, distances_.data(), work_.scale, K, count, products_.data(),
               scale_sums_.data());
  }

  // The tile becomes the gradient of x.
  void spread() {
    const int64_t D = work_.D, stride = work_.stride;
    const auto block = [&]<int kDepth>(int64_t d) {
      for (int v = 0; v < kTile<A>; v += kSpread * kLanes<A>) {
        spread_block<A, kDepth>(work_.tile.data() + d * kTile<A> + v, work_.assignments.data() + v,
                                products_.data() + v, work_.code_columns.data() + d * stride,
                                grad_columns_.data() + d * stride, work_.K, stride);
      }
    };
    int64_t d = 0;
    for (; d + 2 <= D; d += 2) block.template operator()<2>(d);
    if (d < D) block.template operator()<1>(d);
  }

  // grad_c_k = -(sum of a_ik) G_k - sum of 2 q_ik (x_i - c_k).
  void finish(A* codewords, A* scale) const {
    const int64_t D = work_.D;
    transpose(work_.sums.data(), work_.stride, D, work_.K, codewords, D);
    for (int64_t k = 0; k < work_.K; ++k) {
      const A mass = sum_lanes<A>(load(masses_.data() + k * kLanes<A>));
      for_vectors<A>(D, [&](int64_t d, auto load_some, auto store_some) {
        A* to = codewords + k * D + d;
        const Vec<A> grad = load_some(grad_.data() + k * D + d);
        store_some(to, -load_some(to) - mass * grad);
      });
      scale[k] = sum_lanes<A>(load(scale_sums_.data() + k * kLanes<A>));
    }
  }

  const EncodeBackward& op_;
  TileWork<T> work_;
  Scratch<A> grad_, grad_columns_, distances_, products_, masses_, scale_sums_;
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
