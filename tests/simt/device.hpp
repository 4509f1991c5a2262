// The bindings' device header for STRIPCTX_BACKEND=emulated: CPU tensors, CUDA's launchers, run by
// the emulator. csrc/bind/cuda/device.hpp says the same for a GPU.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include "cuda/kernels.hpp"

#define STRIPCTX_DISPATCH_KEY CPU

namespace stripctx::device {

using cuda::partials;
using cuda::scratch;

inline void allocated(const torch::stable::Tensor& /*result*/) {}

// Runs one operator to its end; `like` says which device, of which there is one here.
template <class Op>
void execute(const Op& op, const torch::stable::Tensor& /*like*/) {
  cuda::launch(op, nullptr);
}

}  // namespace stripctx::device
