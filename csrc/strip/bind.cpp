// The strip family's binding: check, allocate, execute. Compiled once per library against the
// device.hpp of the CPU, of CUDA or of the tests' emulator.
#include "strip/params.hpp"

#include <torch/csrc/stable/library.h>

#include <array>
#include <optional>
#include <tuple>
#include <vector>

#include "bind/check.hpp"
#include "bind/define.hpp"
#include "bind/tensor.hpp"
#include "device.hpp"
#include "strip/schemas.hpp"

namespace stripctx::bind {

namespace {

void check_strips(const Checker& check, const char* rows_name, const Tensor& rows,
                  const char* cols_name, const Tensor& cols) {
  check.tensor(rows_name, rows, 4);
  check.tensor(cols_name, cols, 4);
  check.alike(cols_name, cols, rows);
  check.size(rows_name, rows, {rows.size(0), rows.size(1), rows.size(2), 1});
  check.size(cols_name, cols, {rows.size(0), rows.size(1), 1, cols.size(3)});
}

void check_gate(const Checker& check, const Tensor& x, const Tensor& logits, const Tensor& bias) {
  check.tensor("x", x, 4);
  check.same_map("logits", logits, x);
  check.tensor("bias", bias, 1);
  check.alike("bias", bias, x);
  check.size("bias", bias, {x.size(1)});
}

// Allocates the partial sums that this device's kernel needs. The caller keeps the returned tensor
// alive.
template <class Op>
Tensor allocate_partials(Op& op, const Tensor& rows, const Tensor& cols) {
  op.partials = kernels::partials(op);
  const int64_t row_elements = op.partials.row_parts * rows.numel();
  const int64_t elements = row_elements + op.partials.col_parts * cols.numel();
  if (elements == 0) return rows;
  const ScalarType type = accumulate_type(rows);
  Tensor scratch = empty({elements}, rows, type);
  op.partials.rows = scratch.data_ptr();
  op.partials.cols = static_cast<char*>(scratch.data_ptr()) +
                     row_elements * (type == ScalarType::Double ? sizeof(double) : sizeof(float));
  return scratch;
}

Tensor convolution(const Tensor& map, const Tensor& kernel) {
  using torch::stable::detail::from;
  const std::vector<int64_t> one = {1, 1}, none = {0, 0};
  std::array<StableIValue, 9> stack = {from(map),   from(kernel), from(std::optional<Tensor>()),
                                       from(one),   from(none),   from(one),
                                       from(false), from(none),   from(int64_t{1})};
  TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::convolution", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

std::tuple<Tensor, Tensor> strip_pool(const Tensor& x) {
  const Checker check("strip_pool");
  check.tensor("x", x, 4);
  const MemoryFormat format = memory_format(x);
  Tensor rows = empty({x.size(0), x.size(1), x.size(2), 1}, x, format);
  Tensor cols = empty({x.size(0), x.size(1), 1, x.size(3)}, x, format);
  const Tensor source = readable(x, format);
  StripPool op{view(source), view(rows), view(cols)};
  const Tensor scratch = allocate_partials(op, rows, cols);
  device::execute(op, x);
  return {rows, cols};
}

Tensor strip_pool_backward(const Tensor& grad_rows, const Tensor& grad_cols, bool channels_last) {
  const Checker check("strip_pool_backward");
  check_strips(check, "grad_rows", grad_rows, "grad_cols", grad_cols);
  const MemoryFormat format = channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
  Tensor grad_x =
      empty({grad_rows.size(0), grad_rows.size(1), grad_rows.size(2), grad_cols.size(3)}, grad_rows,
            format);
  const Tensor rows = dense(grad_rows, format), cols = dense(grad_cols, format);
  device::execute(StripPoolBackward{view(rows), view(cols), view(grad_x)}, grad_rows);
  return grad_x;
}

Tensor strip_add_relu(const Tensor& rows, const Tensor& cols) {
  const Checker check("strip_add_relu");
  check_strips(check, "rows", rows, "cols", cols);
  const MemoryFormat format = memory_format(rows, cols);
  Tensor out = empty({rows.size(0), rows.size(1), rows.size(2), cols.size(3)}, rows, format);
  const Tensor dense_rows = dense(rows, format), dense_cols = dense(cols, format);
  device::execute(StripAddRelu{view(dense_rows), view(dense_cols), view(out)}, rows);
  return out;
}

std::tuple<Tensor, Tensor> strip_add_relu_backward(const Tensor& grad, const Tensor& rows,
                                                   const Tensor& cols) {
  const Checker check("strip_add_relu_backward");
  check_strips(check, "rows", rows, "cols", cols);
  check.tensor("grad", grad, 4);
  check.alike("grad", grad, rows);
  check.size("grad", grad, {rows.size(0), rows.size(1), rows.size(2), cols.size(3)});
  const MemoryFormat format = memory_format(rows, cols);
  Tensor grad_rows = empty(sizes(rows), rows, format), grad_cols = empty(sizes(cols), cols, format);
  const Tensor source = readable(grad, format);
  const Tensor dense_rows = dense(rows, format), dense_cols = dense(cols, format);
  StripAddReluBackward op{view(source), view(dense_rows), view(dense_cols), view(grad_rows),
                          view(grad_cols)};
  const Tensor scratch = allocate_partials(op, grad_rows, grad_cols);
  device::execute(op, rows);
  return {grad_rows, grad_cols};
}

Tensor sigmoid_gate(const Tensor& x, const Tensor& logits, const Tensor& bias) {
  const Checker check("sigmoid_gate");
  check_gate(check, x, logits, bias);
  const MemoryFormat format = memory_format(x);
  Tensor out = empty(sizes(x), x, format);
  const Tensor map = readable(x, format), readable_logits = readable(logits, format);
  const Tensor dense_bias = dense(bias, MemoryFormat::Contiguous);
  device::execute(SigmoidGate{view(map), view(readable_logits), view(dense_bias), view(out)}, x);
  return out;
}

std::tuple<Tensor, Tensor, Tensor> sigmoid_gate_backward(const Tensor& grad, const Tensor& x,
                                                         const Tensor& logits, const Tensor& bias) {
  const Checker check("sigmoid_gate_backward");
  check_gate(check, x, logits, bias);
  check.same_map("grad", grad, x);
  const MemoryFormat format = memory_format(x);
  Tensor grad_x = empty(sizes(x), x, format), grad_logits = empty(sizes(x), x, format);
  Tensor grad_bias = empty(sizes(bias), x);
  const Tensor readable_grad = readable(grad, format), map = readable(x, format);
  const Tensor readable_logits = readable(logits, format);
  const Tensor dense_bias = dense(bias, MemoryFormat::Contiguous);
  SigmoidGateBackward op{
      view(readable_grad), view(map), view(readable_logits), view(dense_bias), view(grad_x),
      view(grad_logits),   {}};
  const Tensor partials = empty({kernels::partials(op), x.size(1)}, x, accumulate_type(x));
  op.partials = view(partials);
  device::execute(op, x);
  device::execute(SumPartials{op.partials, view(grad_bias)}, x);
  return {grad_x, grad_logits, grad_bias};
}

// A 1x1 convolution of relu(rows + cols), by torch. The weight is made contiguous so that the
// result has the map's memory format whatever the weight's. Empty maps return early because torch's
// convolution rejects them.
Tensor strip_conv(const Tensor& rows, const Tensor& cols, const Tensor& weight) {
  const Checker check("strip_conv");
  check_strips(check, "rows", rows, "cols", cols);
  check.tensor("weight", weight, 4);
  check.alike("weight", weight, rows);
  check.size("weight", weight, {weight.size(0), rows.size(1), 1, 1});
  const Tensor map = strip_add_relu(rows, cols);
  const std::vector<int64_t> shape = {map.size(0), weight.size(0), map.size(2), map.size(3)};
  if (map.numel() == 0) return torch::stable::new_zeros(map, shape);
  const Tensor matrix = torch::stable::reshape(weight, {weight.size(0), weight.size(1)});
  const Tensor kernel = torch::stable::view(dense(matrix, MemoryFormat::Contiguous),
                                            {weight.size(0), weight.size(1), 1, 1});
  return convolution(map, kernel);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(stripctx, library) {
  define(library, kSchemas);
}

STABLE_TORCH_LIBRARY_IMPL(stripctx, STRIPCTX_DISPATCH_KEY, library) {
  library.impl("strip_pool", TORCH_BOX(&strip_pool));
  library.impl("strip_pool_backward", TORCH_BOX(&strip_pool_backward));
  library.impl("strip_add_relu", TORCH_BOX(&strip_add_relu));
  library.impl("strip_add_relu_backward", TORCH_BOX(&strip_add_relu_backward));
  library.impl("sigmoid_gate", TORCH_BOX(&sigmoid_gate));
  library.impl("sigmoid_gate_backward", TORCH_BOX(&sigmoid_gate_backward));
  library.impl("strip_conv", TORCH_BOX(&strip_conv));
}

}  // namespace stripctx::bind
