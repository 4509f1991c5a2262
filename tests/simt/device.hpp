// The device header of the bindings for STRIPCTX_BACKEND=emulated: CPU tensors and the CUDA
// launchers, run by the emulator. csrc/bind/cuda/device.hpp is the counterpart for a GPU.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include "core/reduce.hpp"

#define STRIPCTX_DISPATCH_KEY CPU

namespace stripctx {

namespace kernels = cuda;

namespace device {

// Whether this library defines the operators.
constexpr bool kDefinesOperators = true;

inline void allocated(const torch::stable::Tensor& /*result*/) {}

// Runs one operator to completion. `like` selects the device, of which there is one here.
template <class Op>
void execute(const Op& op, const torch::stable::Tensor& /*like*/) {
  cuda::launch(op, nullptr);
}

}  // namespace device

}  // namespace stripctx
