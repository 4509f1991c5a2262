// The encoding family's binding: check, allocate, execute. Compiled once per library against the
// device.hpp of the CPU, of CUDA or of the tests' emulator.
#include "encoding/params.hpp"

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "bind/check.hpp"
#include "bind/define.hpp"
#include "bind/tensor.hpp"
#include "device.hpp"
#include "encoding/schemas.hpp"

namespace stripctx::bind {

namespace {

void check_encode(const Checker& check, const Tensor& x, const Tensor& codewords,
                  const Tensor& scale) {
  check.tensor("x", x, 4);
  check.tensor("codewords", codewords, 2);
  check.size("codewords", codewords, {codewords.size(0), x.size(1)});
  check.require(codewords.size(0) > 0, "codewords", "must be at least one");
  const ScalarType type = x.scalar_type();
  const bool half = type == ScalarType::Half || type == ScalarType::BFloat16;
  if (!(half && codewords.scalar_type() == ScalarType::Float)) {
    check.alike("codewords", codewords, x);
  }
  check.same_device("codewords", codewords, x);
  check.tensor("scale", scale, 1);
  check.alike("scale", scale, codewords);
  check.size("scale", scale, {codewords.size(0)});
}

void check_gate(const Checker& check, const Tensor& x, const Tensor& gate) {
  check.tensor("x", x, 4);
  check.tensor("gate", gate, 2);
  check.alike("gate", gate, x);
  check.size("gate", gate, {x.size(0), x.size(1)});
}

// Parameters and their gradients are small: kernels receive them dense, in the accumulation type.
Tensor wide(const Tensor& parameter) {
  return dense(torch::stable::to(parameter, accumulate_type(parameter)), MemoryFormat::Contiguous);
}

// The map itself where (H, W) can be viewed as one axis, with channels or positions fastest, else a
// copy.
Tensor flattenable(const Tensor& map, MemoryFormat format) {
  const Tensor source = readable(map, format);
  const bool one_axis = source.size(2) == 1 || source.size(3) == 1 ||
                        source.stride(2) == source.size(3) * source.stride(3);
  return one_axis ? source : dense(map, format);
}

View flat(const Tensor& map) {
  View result = view(map);
  if (result.size[3] == 1) result.stride[3] = result.stride[2];
  result.size[3] *= result.size[2];
  result.size[2] = 1;
  return result;
}

// The scratch that this device's kernel needs, one dimension.
template <class Op>
Tensor allocate_scratch(Op& op, const Tensor& codewords) {
  Tensor scratch = empty({kernels::scratch(op)}, codewords, accumulate_type(codewords));
  op.scratch = view(scratch);
  return scratch;
}

Tensor encode(const Tensor& x, const Tensor& codewords, const Tensor& scale, bool allow_tf32) {
  check_encode(Checker("encode"), x, codewords, scale);
  const int64_t N = x.size(0), K = codewords.size(0), D = x.size(1);
  Tensor encoded = empty({N, K, D}, codewords);
  const Tensor source = flattenable(x, memory_format(x));
  const Tensor codes = wide(codewords), scales = wide(scale);
  Encode op{flat(source), view(codes), view(scales), allow_tf32};
  const Tensor partials = empty({kernels::partials(op), N * K * D}, codes);
  op.partials = view(partials);
  const Tensor scratch = allocate_scratch(op, codes);
  device::execute(op, x);
  device::execute(SumPartials{op.partials, view(encoded)}, x);
  return encoded;
}

std::tuple<Tensor, Tensor, Tensor> encode_backward(const Tensor& grad, const Tensor& x,
                                                   const Tensor& codewords, const Tensor& scale,
                                                   bool allow_tf32) {
  const Checker check("encode_backward");
  check_encode(check, x, codewords, scale);
  const int64_t N = x.size(0), K = codewords.size(0), D = x.size(1);
  check.tensor("grad", grad, 3);
  check.alike("grad", grad, codewords);
  check.size("grad", grad, {N, K, D});
  const MemoryFormat format = memory_format(x);
  Tensor grad_x = empty(sizes(x), x, format);
  Tensor grad_codewords = empty({K, D}, codewords), grad_scale = empty({K}, scale);
  const Tensor source = flattenable(x, format);
  const Tensor codes = wide(codewords), scales = wide(scale), grads = wide(grad);
  EncodeBackward op{view(grads), flat(source), view(codes), view(scales), allow_tf32, flat(grad_x)};
  const int64_t parts = N * kernels::partials(op);
  const Tensor codeword_partials = empty({parts, K * D}, codes);
  const Tensor scale_partials = empty({parts, K}, codes);
  op.codeword_partials = view(codeword_partials);
  op.scale_partials = view(scale_partials);
  const Tensor scratch = allocate_scratch(op, codes);
  device::execute(op, x);
  device::execute(SumPartials{op.codeword_partials, view(grad_codewords)}, x);
  device::execute(SumPartials{op.scale_partials, view(grad_scale)}, x);
  return {grad_x, grad_codewords, grad_scale};
}

Tensor channel_gate(const Tensor& x, const Tensor& gate) {
  check_gate(Checker("channel_gate"), x, gate);
  const MemoryFormat format = memory_format(x);
  Tensor out = empty(sizes(x), x, format);
  const Tensor map = flattenable(x, format);
  const Tensor dense_gate = dense(gate, MemoryFormat::Contiguous);
  device::execute(ChannelGate{flat(map), view(dense_gate), flat(out)}, x);
  return out;
}

std::tuple<Tensor, Tensor> channel_gate_backward(const Tensor& grad, const Tensor& x,
                                                 const Tensor& gate) {
  const Checker check("channel_gate_backward");
  check_gate(check, x, gate);
  check.same_map("grad", grad, x);
  const MemoryFormat format = memory_format(x);
  Tensor grad_x = empty(sizes(x), x, format), grad_gate = empty(sizes(gate), x);
  const Tensor flat_grad = flattenable(grad, format), map = flattenable(x, format);
  const Tensor dense_gate = dense(gate, MemoryFormat::Contiguous);
  ChannelGateBackward op{flat(flat_grad), flat(map), view(dense_gate), flat(grad_x)};
  const Tensor partials = empty({kernels::partials(op), gate.numel()}, x, accumulate_type(x));
  op.partials = view(partials);
  device::execute(op, x);
  device::execute(SumPartials{op.partials, view(grad_gate)}, x);
  return {grad_x, grad_gate};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(stripctx, library) {
  define(library, kSchemas);
}

STABLE_TORCH_LIBRARY_IMPL(stripctx, STRIPCTX_DISPATCH_KEY, library) {
  library.impl("encode", TORCH_BOX(&encode));
  library.impl("encode_backward", TORCH_BOX(&encode_backward));
  library.impl("channel_gate", TORCH_BOX(&channel_gate));
  library.impl("channel_gate_backward", TORCH_BOX(&channel_gate_backward));
}

}  // namespace stripctx::bind
