// The parts of interpolation and of its adjoint, each in a source of its own.
#pragma once

#include "upsample/params.hpp"

#include "cuda/launch.hpp"

namespace stripctx::cuda {

// walk_cuda.cu: false where the shapes are not for it, and add_cuda.cu takes them.
bool launch_add_walk(const PyramidAdd& op, Stream stream);

// fold_cuda.cu: false where the shapes are not for it, and add_backward_cuda.cu takes them.
bool launch_add_backward_fold(const PyramidAddBackward& op, Stream stream);

// gather_pixels_cuda.cu: any channels_last map.
void launch_add_backward_gather(const PyramidAddBackward& op, Stream stream);

// add_backward_pixels_cuda.cu.
void launch_add_backward_pixels(const PyramidAddBackward& op, Stream stream);

}  // namespace stripctx::cuda
