// The encoding layer on the CPU (Zhang et al., Deep TEN, CVPR 2017, eq. 2 to 4): reads x once.
//
// A work item is a chunk of one image's tiles and writes one partial sum of that image's result.
// For each tile it computes, panel by panel, distances from the residuals x - c, with positions in
// lanes; then the softmax over K; then, panel by panel again, the weighted sums, with codewords in
// lanes. Two multiply-adds per position, codeword and dimension.
#include "encoding/tile_cpu.hpp"

namespace stripctx::cpu {

namespace {

// distances[k][i] += |x_i - c_k|^2 for kCodeBlock codewords, over the dimensions of a panel.
template <class A>
void block_distances(const A* panel, const A* codewords, int64_t stride, int64_t depth,
                     A* distances) {
  constexpr int lanes = kLanes<A>;
  Vec<A> sum[kCodeBlock][kTileVectors]{};
  for (int64_t d = 0; d < depth; ++d) {
    Vec<A> x[kTileVectors];
    load_vectors(panel + d * kTile<A>, lanes, x);
#pragma GCC unroll 8
    for (int k = 0; k < kCodeBlock; ++k) {
#pragma GCC unroll 8
      for (int v = 0; v < kTileVectors; ++v) {
        const Vec<A> residual = minus_each(x[v], codewords + d * stride + k);
        sum[k][v] += residual * residual;
      }
    }
  }
#pragma GCC unroll 8
  for (int k = 0; k < kCodeBlock; ++k) {
#pragma GCC unroll 8
    for (int v = 0; v < kTileVectors; ++v) add(distances + k * kTile<A> + v * lanes, sum[k][v]);
  }
}

template <class T>
class Encoder {
 public:
  using A = Accumulate<T>;

  explicit Encoder(const Encode& op) : op_(op), work_(op) {}

  void run(int64_t item) {
    const int64_t n = item % work_.N, chunk = item / work_.N, K = work_.K;
    work_.sums.clear();
    for_tiles<A>(op_.x, chunk, [&](int64_t first, int64_t count) {
      const Tile<T> tile{op_.x, n, first, count};
      A* assignments = work_.assignments.data();
      work_.assignments.clear();
      for_blocks(tile, K, work_.panel.data(), [&](int64_t k, int64_t d, int64_t depth) {
        block_distances(work_.panel.data(), work_.codewords.data() + d * work_.stride + k,
                        work_.stride, depth, assignments + k * kTile<A>);
      });
      assign(assignments, work_.scale, K, assignments);
      clear_tail(assignments, K, count);
      work_.turn(assignments);
      for_panels(tile, work_.panel.data(),
                 [&](int64_t d, int64_t depth) { work_.weigh_panel(d, depth, count); });
    });
    work_.store_sums(static_cast<A*>(op_.partials.data) + item * K * work_.D);
  }

 private:
  const Encode& op_;
  TileWork<T> work_;
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
