// How the encoding layer's work is divided on CUDA, from shapes alone: the positions of each image
// into chunks of whole tiles, with one block and one row of partial sums per chunk.
#pragma once

#include "encoding/params.hpp"

#include <algorithm>

namespace stripctx::cuda {

constexpr int kTileMost = 32;   // largest number of positions of a tile
constexpr int kFastCodes = 32;  // largest K of the tensor-core kernels: the lanes of a warp
constexpr int kFastDepth =
    512;  // largest D of the tensor-core kernels, by registers and shared memory

struct EncodeChunks {
  int64_t count, positions;  // chunks per image, positions per chunk
};

template <class Op>
bool runs_on_tensor_cores(const Op& op) {
  return op.x.dtype != DType::kFloat64 && op.codes() <= kFastCodes && op.depth() <= kFastDepth;
}

// About one block per multiprocessor of a large GPU. Where an image has two tiles or more, a chunk
// of the general kernels does too, which bounds their scratch by about N*L*K elements (twice that
// in backward). A call costs a few divisions, so the result is not cached.
template <class Op>
EncodeChunks encode_chunks(const Op& op) {
  constexpr int64_t kBlocks = 128;
  const int64_t tiles = std::max<int64_t>(1, ceil_div(op.positions(), kTileMost));
  const int64_t most = runs_on_tensor_cores(op) ? tiles : std::max<int64_t>(1, tiles / 2);
  const int64_t wanted = ceil_div(kBlocks, std::max<int64_t>(1, op.x.size[0]));
  const int64_t each = ceil_div(tiles, std::min(wanted, most));
  return {ceil_div(tiles, each), each * kTileMost};
}

// The kernels for float64 and for any K and D.
void launch_general(const Encode& op, Stream stream);
void launch_general(const EncodeBackward& op, Stream stream);

// The tensor-core kernels for float32 maps, with the codewords in shared memory; false if they do
// not apply or the device has too little shared memory.
bool launch_float(const Encode& op, const EncodeChunks& chunks, Stream stream);
bool launch_float(const EncodeBackward& op, const EncodeChunks& chunks, Stream stream);

// The same for maps of half types.
bool launch_resident(const Encode& op, const EncodeChunks& chunks, Stream stream);
bool launch_resident(const EncodeBackward& op, const EncodeChunks& chunks, Stream stream);

}  // namespace stripctx::cuda
