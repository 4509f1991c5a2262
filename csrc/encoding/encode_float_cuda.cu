// The encoding layer on CUDA for float32 maps; float_tile.cuh has the algorithm. Reads x once and
// writes one partial sum of E per block.
#include "encoding/float_tile.cuh"

namespace stripctx::cuda {

namespace {

// Grid: images, chunks of each. Block: kWarps * 32 threads.
template <bool kDepthFastest, int kWarps, Precision kPrecision>
__global__ void __launch_bounds__(kWarps * 32, kWarps == 4 ? 3 : 1)
    encode_float(Encode op, EncodeChunks chunks, bool packed) {
  if constexpr (!has_tensor_cores) return;  // not launched on such devices
  using Tile = FloatTile<1, kDepthFastest, kWarps, kPrecision>;
  const Chunk chunk(op, chunks);
  SharedMemory memory;
  const Tile tile(op, chunk, packed, memory);
  tile.open_ring();
  tile.prepare(op, [](int, int) { return 0.0f; });

  float sums[2][4][4] = {};
  float mass = 0;
  int stage = 0;
  for (int first = 0; first < tile.count; first += Tile::kPositions) {
    tile.turn_ring(stage, first);
    tile.multiply_codes(stage);
    __syncthreads();
    for (int i = own_warp(); i < Tile::kPositions; i += kWarps) {
      auto distance = tile.distance(i);
      distance.near = distance.near && first + i < tile.count;
      if (distance.near) distance.value = tile.near_distance(first + i, own_lane());
      const float a = tile.assignment(distance.value);
      const float live = first + i < tile.count ? a : 0, centred = distance.near ? 0 : live;
      tile.store_weight(i, own_lane(), centred);
      mass += centred;
      if (distance.near) tile.store_near(i, own_lane(), live);
      if (own_lane() == 0) tile.flag(i) = distance.near ? 1.0f : 0.0f;
    }
    __syncthreads();
    tile.accumulate(sums, stage);
    tile.for_near([&](int i) { tile.accumulate_near(sums, i, first + i); });
    stage = stage + 1 == Tile::kStages ? 0 : stage + 1;
  }

  tile.add_warps(mass);
  const int64_t base = Chunk::row() * op.codes() * op.depth();
  const Global<float> partials(op.partials);
  tile.for_sums(sums, [&](float& sum, int code, int d) {
    partials.store(base + code * tile.depth + d,
                   sum + tile.total(code) * tile.matrices[Tile::matrix_at(code, d)]);
  });
}

}  // namespace

bool launch_float(const Encode& op, const EncodeChunks& chunks, Stream stream) {
  const auto kernel_of =
      []<bool kDepthFastest, int kWarps, Precision kPrecision>() -> ChunkKernel<Encode> {
    return {FloatTile<1, kDepthFastest, kWarps, kPrecision>::bytes(), kWarps * 32,
            encode_float<kDepthFastest, kWarps, kPrecision>};
  };
  return launch_float("encode_float", op, {&op.x}, chunks, stream, kernel_of);
}

}  // namespace stripctx::cuda
