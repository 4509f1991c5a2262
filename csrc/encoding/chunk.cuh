// The positions that a block of the encoding layer's tensor-core kernels owns, and the launch of
// these kernels.
#pragma once

#include "cuda/device.cuh"
#include "cuda/mma.cuh"
#include "encoding/plan.hpp"

namespace stripctx::cuda {

// Positions [first, end) of an image. Grid: images, chunks of each.
struct Chunk {
  int64_t image, first, end;

  template <class Op>
  __device__ Chunk(const Op& op, const EncodeChunks& chunks)
      : image(blockIdx.x),
        first(blockIdx.y * chunks.positions),
        end(min(first + chunks.positions, op.positions())) {}

  // The block's row of the partial sums.
  __device__ static int64_t row() { return int64_t(blockIdx.y) * gridDim.x + blockIdx.x; }
  // Offset of the first position in a map.
  __device__ int64_t offset(const View& map) const {
    return image * map.stride[0] + first * map.stride[3];
  }
};

// Whether depth, rather than the position, is the fastest dimension of a map.
STRIPCTX_HOST_DEVICE inline bool depth_fastest(const View& map) {
  return map.stride[3] != 1 && map.size[3] > 1;
}

// A kernel of float_tile.cuh or resident.cuh, whose blocks own a chunk each.
template <class Op>
struct ChunkKernel {
  int64_t shared_bytes;
  int threads;
  void (*run)(Op, EncodeChunks, bool packed);
};

// Returns false if the device has no tensor cores or less shared memory than the kernel needs.
template <class Op>
bool launch_chunks(const char* name, const ChunkKernel<Op>& kernel, const Op& op,
                   const EncodeChunks& chunks, bool packed, Stream stream) {
  if (!device_has_tensor_cores() || kernel.shared_bytes > most_shared_bytes()) return false;
  launch({.kernel = name,
          .grid = {op.x.size[0], chunks.count},
          .block = {kernel.threads},
          .shared_bytes = kernel.shared_bytes,
          .stream = stream},
         kernel.run, op, chunks, packed);
  return true;
}

}  // namespace stripctx::cuda
