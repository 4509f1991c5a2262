// The channels_last half of interpolation's adjoint (add_backward_pixels_cuda.cu).
#pragma once

#include "upsample/params.hpp"

#include "cuda/launch.hpp"

namespace stripctx::cuda {

void launch_add_backward_pixels(const PyramidAddBackward& op, Stream stream);

}  // namespace stripctx::cuda
