// The channels_last half of interpolation's adjoint (upsample_backward_pixels.cu).
#pragma once

#include "upsample/params.hpp"

#include "cuda/launch.hpp"

namespace stripctx::cuda {

void launch_reduce_pixels(const PyramidReduce& op, Stream stream);

}  // namespace stripctx::cuda
