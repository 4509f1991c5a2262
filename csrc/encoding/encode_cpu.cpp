// The encoding layer on the CPU (Zhang et al., Deep TEN, CVPR 2017, eq. 2 to 4): reads x once.
//
// A work item is a chunk of one image's tiles and writes one partial sum of that image's result.
// For each tile it computes, panel by panel, distances from the residuals x - c, with positions in
// lanes; then the softmax over K; then, panel by panel again, the weighted sums, with codewords in
// lanes. Two multiply-adds per position, codeword and dimension.
#include "encoding/tile_cpu.hpp"

namespace stripctx::cpu {

namespace {

template <class T>
void encode(const Encode& op, int64_t begin, int64_t end) {
  using A = Accumulate<T>;
  TileWork<T> work(op);
  for (int64_t item = begin; item < end; ++item) {
    work.sums.clear();
    for_tiles<A>(op.x, item / work.N, [&](int64_t first, int64_t count) {
      const Tile<T> tile{op.x, item % work.N, first, count};
      work.template assign_tile<false>(tile);
      work.turn(work.assignments.data());
      for_panels(tile, work.panel.data(),
                 [&](int64_t d, int64_t depth) { work.weigh_panel(d, depth, count); });
    });
    work.store_sums(static_cast<A*>(op.partials.data) + item * work.K * work.D);
  }
}

}  // namespace

int64_t partials(const Encode& op) {
  return tile_chunks(op.x).chunks;
}

Work work(const Encode& op) {
  return {op.x.size[0] * partials(op), 1};
}

void run(const Encode& op, int64_t begin, int64_t end) {
  dispatch<Types>(op.x.dtype, [&]<class T>() { encode<T>(op, begin, end); });
}

}  // namespace stripctx::cpu
