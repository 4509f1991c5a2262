// The encoding layer on CUDA for bfloat16 maps, with the codewords resident in shared memory;
// resident.cuh has the algorithm. Reads x once and writes one partial sum of E per block.
#include "encoding/resident.cuh"

namespace stripctx::cuda {

namespace {

// Grid: chunks of all images, image fastest. Block: kResidentThreads threads. A warp accumulates
// every sixteenth run of 16 dimensions of E, in registers for all tiles.
template <bool kDepthFastest, int kMostDepth>
__global__ void __launch_bounds__(kResidentThreads, 1)
    encode_resident(Encode op, EncodeChunks chunks, bool packed) {
  if constexpr (!has_tensor_cores) return;  // not launched on such devices
  using Tile = ResidentTile<1, kDepthFastest, kMostDepth>;
  const Chunk chunk(op, chunks);
  SharedMemory memory;
  const Tile tile(op, chunk.image, packed, memory);

  float sums[Tile::kPairs * 2][2][4] = {};
  Words next[Tile::kLoads];
  tile.prefetch(next, chunk.first, chunk.end);
  for (int64_t first = chunk.first; first < chunk.end; first += Tile::kPositions) {
    tile.fetch(next, first, chunk.end);
    __syncthreads();
    tile.store(next);
    __syncthreads();
    tile.prefetch(next, first + Tile::kPositions, chunk.end);
    tile.multiply_codes();
    __syncthreads();
    const int64_t position = first + tile.own_position();
    const auto distance = tile.distances(position, position < chunk.end);
    float a[Tile::kEach], centred[Tile::kEach];
    tile.assign(distance.value, a);
#pragma unroll
    for (int e = 0; e < Tile::kEach; ++e) {
      centred[e] = position < chunk.end && !distance.near ? a[e] : 0;
    }
    tile.store_weights(tile.first_code(), centred);
    tile.add_total(0, centred);
    if (distance.near) tile.store_near(tile.first_code(), a);
    __syncthreads();
    tile.accumulate(sums, 0);
    tile.for_near([&](int i) {
      tile.for_sums(sums, [&](float& sum, int code, int d) {
        sum += tile.near_weight(i, code) * tile.residual(first + i, code, d);
      });
    });
  }

  tile.close_totals();
  const int64_t base = blockIdx.x * op.codes() * op.depth();
  const Global<float> partials(op.partials);
  tile.for_sums(sums, [&](float& sum, int code, int d) {
    const int at = code * tile.depth + d;
    partials.store(base + at, sum - tile.total(0, code) * tile.codewords.load(at));
  });
}

}  // namespace

bool launch_resident(const Encode& op, const EncodeChunks& chunks, Stream stream) {
  const auto kernel_of = []<bool kDepthFastest, int kMostDepth>() -> ChunkKernel<Encode> {
    return {ResidentTile<1, kDepthFastest, kMostDepth>::bytes(), kResidentThreads,
            encode_resident<kDepthFastest, kMostDepth>};
  };
  return launch_resident("encode_resident", op, {&op.x}, chunks, stream, kernel_of);
}

}  // namespace stripctx::cuda
