// How the encoding layer's work is cut on CUDA, from shapes alone: each image's positions into
// chunks of whole tiles, one block and one row of partial sums for each chunk of each image.
#pragma once

#include "encoding/params.hpp"

#include <algorithm>

namespace stripctx::cuda {

constexpr int kTileMost = 32;   // positions of a tile, at most
constexpr int kFastCodes = 32;  // K of the tensor-core kernels: one warp's lanes
constexpr int kFastDepth =
    512;  // D of the tensor-core kernels: what registers and shared memory hold

struct EncodeChunks {
  int64_t count, positions;  // chunks of an image, positions of a chunk
};

template <class Op>
bool runs_on_tensor_cores(const Op& op) {
  return op.x.dtype != DType::kFloat64 && op.codes() <= kFastCodes && op.depth() <= kFastDepth;
}

// About one block for each multiprocessor of a large chip. A chunk of the general kernels has two
// tiles or more, so that their scratch stays below N*L*K elements.
// A few divisions without an allocation, some nanoseconds: not worth a cache by shape.
template <class Op>
EncodeChunks encode_chunks(const Op& op) {
  constexpr int64_t kBlocks = 128;
  const int64_t tiles = std::max<int64_t>(1, ceil_div(op.positions(), kTileMost));
  const int64_t most = runs_on_tensor_cores(op) ? tiles : std::max<int64_t>(1, tiles / 2);
  const int64_t wanted = ceil_div(kBlocks, std::max<int64_t>(1, op.x.size[0]));
  const int64_t each = ceil_div(tiles, std::min(wanted, most));
  return {ceil_div(tiles, each), each * kTileMost};
}

// The general kernels, for float64 and for any K and D.
void launch_general(const Encode& op, Stream stream);
void launch_general(const EncodeBackward& op, Stream stream);

// The tensor-core kernels for float32 with resident codewords; false where they do not fit.
bool launch_float(const Encode& op, const EncodeChunks& chunks, Stream stream);
bool launch_float(const EncodeBackward& op, const EncodeChunks& chunks, Stream stream);

// The tensor-core kernels for bfloat16 with resident codewords; false where they do not fit.
bool launch_resident(const Encode& op, const EncodeChunks& chunks, Stream stream);
bool launch_resident(const EncodeBackward& op, const EncodeChunks& chunks, Stream stream);

}  // namespace stripctx::cuda
