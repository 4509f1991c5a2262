// The device that the bindings are compiled against: CPU kernels on torch's own threads.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "cpu/kernels.hpp"

#define STRIPCTX_DISPATCH_KEY CPU

namespace stripctx::device {

using cpu::partials;
using cpu::scratch;

// Runs an operator's independent work items; how they are divided among threads changes no bit.
template <class Op>
void execute(const Op& op, const torch::stable::Tensor& /*like*/) {
  const cpu::Work work = cpu::work(op);
  torch::stable::parallel_for(0, work.items, work.grain,
                              [&op](int64_t begin, int64_t end) { cpu::run(op, begin, end); });
}

}  // namespace stripctx::device
