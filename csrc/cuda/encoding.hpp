// How the encoding layer's work is cut on CUDA, from shapes alone: each image's positions into
// chunks of whole tiles, one block and one row of partial sums for each chunk of each image.
#pragma once

#include <algorithm>

#include "core/encoding.hpp"
#include "cuda/kernels.hpp"

namespace stripctx::cuda {

constexpr int kTileMost = 32;   // positions of a tile, at most
constexpr int kFastCodes = 32;  // K of the tensor-core kernels: one warp's lanes
constexpr int kFastDepth =
    512;  // D of the tensor-core kernels: what registers and shared memory hold

struct EncodeChunks {
  int64_t count, positions;  // chunks of an image, positions of a chunk
};

inline EncodeChunks encode_chunks(const View& x) {
  constexpr int64_t kBlocks = 256, kFewestTiles = 2;
  const int64_t tiles = std::max<int64_t>(1, ceil_div(x.size[3], kTileMost));
  const int64_t wanted = ceil_div(kBlocks, std::max<int64_t>(1, x.size[0]));
  const int64_t each =
      ceil_div(tiles, std::min(wanted, std::max<int64_t>(1, tiles / kFewestTiles)));
  return {ceil_div(tiles, each), each * kTileMost};
}

template <class Op>
bool runs_on_tensor_cores(const Op& op) {
  return op.x.dtype != DType::kFloat64 && op.codes() <= kFastCodes && op.depth() <= kFastDepth;
}

// The general kernels, for float64 and for any K and D.
void launch_general(const Encode& op, Stream stream);
void launch_general(const EncodeBackward& op, Stream stream);

}  // namespace stripctx::cuda
