// The launchers behind launch(PyramidAdd) in add_cuda.cu and launch(PyramidAddBackward) in
// add_backward_cuda.cu.
#pragma once

#include "upsample/params.hpp"

#include "cuda/launch.hpp"

namespace stripctx::cuda {

// Whether the offsets of an image's elements from its first fit in 32 bits.
inline bool small_image(const View& map) {
  int64_t last = 0;
  for (int d = 1; d < 4; ++d) last += (map.size[d] - 1) * map.stride[d];
  return last <= INT32_MAX;
}

// `op` for the kernels after the first, which has written the masked gradient to grad_x.
inline PyramidAddBackward masked_already(PyramidAddBackward op) {
  if (op.masked()) op.grad = op.grad_x;
  op.out = {};
  return op;
}

// walk_cuda.cu. Returns false, without a launch, if it does not support the shapes; add_cuda.cu
// then uses its own kernel.
bool launch_add_walk(const PyramidAdd& op, Stream stream);

// add_products_cuda.cu, contiguous maps and small levels under several taps. Returns false
// likewise.
bool launch_add_products(const PyramidAdd& op, Stream stream);

// add_pixel_products_cuda.cu, the same for channels_last maps of half types.
bool launch_add_pixel_products(const PyramidAdd& op, Stream stream);

// fold_cuda.cu, contiguous maps with small levels, and fold_tiles_cuda.cu, with large ones. Return
// false, without a launch, if they do not support the shapes; add_backward_cuda.cu then uses its
// own kernel.
constexpr int64_t kFoldColumns = 128;  // of a warp of fold_cuda.cu
bool launch_add_backward_fold(const PyramidAddBackward& op, Stream stream);
bool launch_add_backward_tiles(const PyramidAddBackward& op, Stream stream);

// fold_products_cuda.cu, the same for small levels under several taps. Returns false likewise.
bool launch_add_backward_products(const PyramidAddBackward& op, Stream stream);

// add_backward_pixels_cuda.cu, channels_last maps. Returns false likewise.
bool launch_add_backward_pixels(const PyramidAddBackward& op, Stream stream);

// fold_pixel_products_cuda.cu, the same for small levels under several taps, and whether it
// supports the shapes.
bool has_pixel_products(const PyramidAddBackward& op);
bool launch_add_backward_pixel_products(const PyramidAddBackward& op, Stream stream);

}  // namespace stripctx::cuda
