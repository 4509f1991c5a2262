// The encoding layer on the CPU (Zhang et al., Deep TEN, CVPR 2017, eq. 2 to 4): reads x once.
//
// A work item owns a run of one image's tiles and writes one part of that image's sums. For each
// tile, in the second-level cache: distances by the residual form, positions in lanes; softmax over
// K; then sums with codewords in lanes. Two multiply-adds for each position, codeword and
// dimension.
#include "cpu/encoding_tile.hpp"

namespace stripctx::cpu {

namespace {

// distances[k][i] += |x_i - c_k|^2 for kCodeBlock codewords, over the dimensions [first, end).
template <class A>
void block_distances(const A* tile, const A* codewords, int64_t D, int64_t first, int64_t end,
                     A* distances) {
  constexpr int lanes = kLanes<A>;
  Vec<A> sum[kCodeBlock][kTileVectors]{};
  for (int64_t d = first; d < end; ++d) {
    Vec<A> x[kTileVectors];
    for (int v = 0; v < kTileVectors; ++v) {
      x[v] = load(tile + d * kTile<A> + v * lanes);
      hold<A>(x[v]);
    }
    for (int k = 0; k < kCodeBlock; ++k) {
      const A code = codewords[k * D + d];
      for (int v = 0; v < kTileVectors; ++v) {
        const Vec<A> residual = x[v] - code;
        sum[k][v] += residual * residual;
      }
    }
  }
  for (int k = 0; k < kCodeBlock; ++k) {
    for (int v = 0; v < kTileVectors; ++v) {
      add(distances + k * kTile<A> + v * lanes, sum[k][v]);
    }
  }
}

// What the items of one call share, and the scratch they reuse.
template <class T>
class Encoder {
 public:
  using A = Accumulate<T>;

  explicit Encoder(const Encode& op)
      : op_(op),
        K_(op.codes()),
        D_(op.depth()),
        stride_(whole_vectors<A>(K_)),
        scale_(static_cast<const A*>(op.scale.data)),
        codewords_(padded_rows<A>(op.codewords.data, K_, D_)),
        code_columns_(D_ * stride_),
        tile_(D_ * kTile<A>),
        assignments_(ceil_div(K_, kCodeBlock) * kCodeBlock * kTile<A>),
        weights_(kTile<A> * stride_),
        sums_(D_ * stride_) {
    transpose(codewords_.data(), D_, K_, D_, code_columns_.data(), stride_);
  }

  void run(int64_t item) {
    const int64_t N = op_.x.size[0], n = item % N, chunk = item / N;
    std::fill(sums_.begin(), sums_.end(), A(0));
    for_tiles<A>(op_.x, chunk, [&](int64_t first, int64_t count) {
      load_tile<T>(op_.x, n, first, count, tile_.data());
      A* assignments = assignments_.data();
      std::fill(assignments_.begin(), assignments_.end(), A(0));
      for_blocks(K_, D_, [&](int64_t k, int64_t d, int64_t end) {
        block_distances(tile_.data(), codewords_.data() + k * D_, D_, d, end,
                        assignments + k * kTile<A>);
      });
      assign(assignments, scale_, K_, assignments);
      clear_tail(assignments, K_, count);
      transpose(assignments, kTile<A>, K_, kTile<A>, weights_.data(), stride_);
      weigh(tile_.data(), D_, code_columns_.data(), weights_.data(), stride_, count, sums_.data());
    });
    A* encoded = static_cast<A*>(op_.partials.data) + item * K_ * D_;
    transpose(sums_.data(), stride_, D_, K_, encoded, D_);
  }

 private:
  const Encode& op_;
  const int64_t K_, D_, stride_;
  const A* scale_;
  const Scratch<A> codewords_;
  Scratch<A> code_columns_, tile_, assignments_, weights_, sums_;
};

}  // namespace

int64_t partials(const Encode& op) {
  return tile_chunks(op.x).chunks;
}

Work work(const Encode& op) {
  return {op.x.size[0] * partials(op), 1};
}

void run(const Encode& op, int64_t begin, int64_t end) {
  dispatch<Types>(op.x.dtype, [&]<class T>() {
    Encoder<T> encoder(op);
    for (int64_t item = begin; item < end; ++item) encoder.run(item);
  });
}

}  // namespace stripctx::cpu
