// The height family's binding: check, allocate, execute. Compiled once per library against the
// device.hpp of the CPU, of CUDA or of the tests' emulator.
#include "height/params.hpp"

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "bind/check.hpp"
#include "bind/define.hpp"
#include "bind/tensor.hpp"
#include "device.hpp"
#include "height/schemas.hpp"

namespace stripctx::bind {

namespace {

void check_arguments(const Checker& check, const Tensor& x, const Tensor& logits) {
  check.tensor("x", x, 4);
  check.tensor("logits", logits, 3);
  check.alike("logits", logits, x);
  check.size("logits", logits, {x.size(0), x.size(1), logits.size(2)});
  check.require(logits.size(2) > 0, "logits", "must have at least one row");
}

// The logits themselves, or a copy of those whose rows lie farther apart than 32-bit offsets.
Tensor near_logits(const Tensor& logits) {
  return is_near(logits, 2) ? logits : dense(logits, MemoryFormat::Contiguous);
}

Tensor row_gate(const Tensor& x, const Tensor& logits) {
  const Checker check("row_gate");
  check_arguments(check, x, logits);
  const MemoryFormat format = memory_format(x);
  Tensor out = empty(sizes(x), x, format);
  const Tensor map = readable(x, format), near = near_logits(logits);
  device::execute(RowGate{view(map), view(near), view(out), format == MemoryFormat::ChannelsLast},
                  x);
  return out;
}

std::tuple<Tensor, Tensor> row_gate_backward(const Tensor& grad, const Tensor& x,
                                             const Tensor& logits) {
  const Checker check("row_gate_backward");
  check_arguments(check, x, logits);
  check.same_map("grad", grad, x);
  const MemoryFormat format = memory_format(x);
  Tensor grad_x = empty(sizes(x), x, format), grad_logits = empty(sizes(logits), x);
  const Tensor readable_grad = readable(grad, format), map = readable(x, format);
  const Tensor near = near_logits(logits);
  RowGateBackward op{view(readable_grad), view(map),         view(near),
                     view(grad_x),        view(grad_logits), format == MemoryFormat::ChannelsLast};
  const Tensor sums = empty({kernels::partials(op)}, x, accumulate_type(x));
  op.sums = sums.data_ptr();
  device::execute(op, x);
  return {grad_x, grad_logits};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(stripctx, library) {
  define(library, kSchemas);
}

STABLE_TORCH_LIBRARY_IMPL(stripctx, STRIPCTX_DISPATCH_KEY, library) {
  library.impl("row_gate", TORCH_BOX(&row_gate));
  library.impl("row_gate_backward", TORCH_BOX(&row_gate_backward));
}

}  // namespace stripctx::bind
