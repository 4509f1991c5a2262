// The encoding layer on CUDA for maps of half types, with the codewords resident in shared memory;
// resident.cuh has the algorithm. Reads x once and writes one partial sum of E per block.
#include "encoding/resident.cuh"

namespace stripctx::cuda {

namespace {

// Grid: images, chunks of each. Block: kResidentThreads threads. A warp accumulates
// every sixteenth run of 16 dimensions of E, in registers for all tiles.
template <class T, bool kDepthFastest, int kDepth, bool kWarpgroups>
__global__ void __launch_bounds__(kResidentThreads, 1)
    encode_resident(Encode op, EncodeChunks chunks, bool packed) {
  constexpr bool kByWarpgroups = kWarpgroups && has_warpgroup_products;
  using Tile = ResidentTile<T, 1, kDepthFastest, kDepth, kByWarpgroups>;
  if constexpr (!has_tensor_cores || Tile::bytes() > kSharedBytesOfChip) return;  // not launched
  SharedMemory memory;
  const Tile tile(op, Chunk(op, chunks), packed, memory);

  const auto partials = [&] {
    return Global<float>(op.partials).from(Chunk::row() * op.codes() * op.depth());
  };
  bool near = false;  // whether there was a near position
  typename Tile::Sums sums = {};
  Words next[Tile::kLoads];
  tile.prefetch(next, 0);
  for (int start = 0; start < tile.count; start += Tile::kPositions) {
    __syncthreads();
    tile.fetch(next, start);
    tile.store(next);
    __syncthreads();
    // Single warps need the registers for their operands.
    if constexpr (kByWarpgroups) tile.prefetch(next, start + Tile::kPositions);
    tile.multiply_codes();
    __syncthreads();
    const int position = start + tile.own_position();
    const bool inside = position < tile.count;
    const auto distance = tile.distances(position, inside);
    float a[Tile::kEach], centred[Tile::kEach];
    tile.assign(distance.value, a);
#pragma unroll
    for (int e = 0; e < Tile::kEach; ++e) {
      centred[e] = inside && !distance.near ? a[e] : 0;
    }
    tile.store_weights(0, centred, tile.scale_of_assignments());
    tile.add_total(0, centred);
    if (distance.near) tile.store_near(tile.first_code(), a);
    if constexpr (!kByWarpgroups) tile.prefetch(next, start + Tile::kPositions);
    __syncthreads();
    tile.accumulate(sums, tile.scale_of_assignments().inverse);
    tile.for_near([&](int i) {
      tile.add_near(partials(), i, start + i, near);
      near = true;
    });
  }

  tile.close_totals();
  const auto own_partials = partials();
  if (near) tile.join_near(sums, own_partials);
  tile.for_sums(sums, [&](float sum, int code, int d) {
    const int at = code * tile.depth + d;
    own_partials.store(at, sum - tile.total(0, code) * tile.codewords.load(at));
  });
}

}  // namespace

bool launch_resident(const Encode& op, const EncodeChunks& chunks, Stream stream) {
  const auto kernel_of =
      []<class T, bool kDepthFastest, int kDepth, bool kWarpgroups>() -> ChunkKernel<Encode> {
    return {ResidentTile<T, 1, kDepthFastest, kDepth, kWarpgroups>::bytes(), kResidentThreads,
            encode_resident<T, kDepthFastest, kDepth, kWarpgroups>};
  };
  return launch_resident("encode_resident", op, {&op.x}, chunks, stream, kernel_of);
}

}  // namespace stripctx::cuda
