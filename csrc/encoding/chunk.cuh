// The positions that a block of the encoding layer's tensor-core kernels owns.
#pragma once

#include "cuda/device.cuh"
#include "encoding/plan.hpp"

namespace stripctx::cuda {

// Positions [first, end) of an image. Grid: chunks of all images, image fastest.
struct Chunk {
  int64_t image, first, end;

  template <class Op>
  __device__ Chunk(const Op& op, const EncodeChunks& chunks)
      : image(blockIdx.x % op.x.size[0]),
        first(blockIdx.x / op.x.size[0] * chunks.positions),
        end(min(first + chunks.positions, op.positions())) {}
};

}  // namespace stripctx::cuda
