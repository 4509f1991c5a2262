// The device that the bindings are compiled against: CUDA kernels on the current stream.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>

#include "core/reduce.hpp"

#define STRIPCTX_DISPATCH_KEY CUDA

namespace stripctx {

namespace kernels = cuda;

namespace device {

// Whether this library defines the operators: no, because the CPU library, always loaded with it,
// does.
constexpr bool kDefinesOperators = false;

inline void allocated(const torch::stable::Tensor& /*result*/) {}

template <class Op>
void execute(const Op& op, const torch::stable::Tensor& like) {
  const int32_t index = like.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(index);
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index, &stream));
  cuda::launch(op, stream);
}

}  // namespace device

}  // namespace stripctx
