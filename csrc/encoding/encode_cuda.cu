// The encoding layer on CUDA (Zhang et al., Deep TEN, CVPR 2017, eq. 2 to 4), on tensor cores;
// tile.cuh has the algorithm. Reads x once and writes one partial sum of E per block. Runs
// on devices whose shared memory is too small for encode_float_cuda.cu and encode_resident_cuda.cu.
#include "encoding/tile.cuh"

namespace stripctx::cuda {

namespace {

// Grid: images, chunks of each. Block: kBlockThreads threads. A warp computes the
// assignments of every eighth position and accumulates every eighth run of 8 dimensions of E, in
// registers for all tiles.
template <class T, Precision kPrecision, int kColumns>
__global__ void __launch_bounds__(kBlockThreads, 1)
    encode_tiles(Encode op, EncodeChunks chunks, bool packed) {
  const Chunk chunk(op, chunks);
  SharedMemory memory;
  const EncodeTile<T, kPrecision, kColumns> tile(op, chunk.image, memory);
  const int k = lane_index();

  float sums[2][kColumns][4] = {};
  float mass = 0;
  for (int64_t position = chunk.first; position < chunk.end; position += tile.kCount) {
    __syncthreads();
    tile.load(position, chunk.end, packed);
    __syncthreads();
    float product[1][4] = {};
    tile.multiply_codes(product, [&](int, int code, int d) { return tile.code(code, d); });
    tile.store_products(tile.dots, product[0]);
    __syncthreads();
    unsigned near = 0;
    for (int i = warp_index(); i < tile.kCount; i += kWarps) {
      auto distance = tile.distance(i, k);
      distance.near = distance.near && position + i < chunk.end;
      if (distance.near) distance.value = tile.near_distance(position + i, k);
      const float a = tile.assignment(distance.value, k);
      const float live = position + i < chunk.end ? a : 0, centred = distance.near ? 0 : live;
      tile.dots[i * kRowStride + k] = centred;
      mass += centred;
      if (distance.near) {
        tile.dots[tile.near_row(i) + k] = live;
        near |= 1u << i;
      }
    }
    tile.tell_near(near);
    __syncthreads();
    tile.accumulate(sums, tile.dots);
    tile.accumulate_near(sums, tile.dots, tile.all_near(), position);
  }

  tile.add_warps(mass, tile.scratch);
  const int64_t size = op.codes() * op.depth();
  const Global<float> partials(op.partials);
  tile.for_sums(sums, [&](int code, int d, float sum) {
    partials.store(Chunk::row() * size + code * op.depth() + d,
                   sum - tile.scratch[code] * tile.code(code, d));
  });
}

}  // namespace

int64_t partials(const Encode& op) {
  return encode_chunks(op).count;
}

int64_t scratch(const Encode& op) {
  if (runs_on_tensor_cores(op)) return 0;
  return op.x.size[0] * partials(op) * op.codes() * kTileMost;
}

void launch(const Encode& op, Stream stream) {
  if (!runs_on_tensor_cores(op)) return launch_general(op, stream);
  const EncodeChunks chunks = encode_chunks(op);
  if (launch_float(op, chunks, stream) || launch_resident(op, chunks, stream)) return;
  with_precision(op, [&]<class T, Precision kPrecision, int kColumns>() {
    launch({.kernel = "encode_tiles",
            .grid = {op.x.size[0], chunks.count},
            .block = {kBlockThreads},
            .shared_bytes = tile_bytes<kColumns>(op.depth()),
            .stream = stream},
           encode_tiles<T, kPrecision, kColumns>, op, chunks, moves_packs(op.x));
  });
}

}  // namespace stripctx::cuda
