// The labels family's binding: check, allocate, execute. Compiled once per library against the
// device.hpp of the CPU, of CUDA or of the tests' emulator.
#include "labels/params.hpp"

#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>
#include <vector>

#include "bind/check.hpp"
#include "bind/define.hpp"
#include "bind/tensor.hpp"
#include "device.hpp"
#include "labels/schemas.hpp"

namespace stripctx::bind {

namespace {

using Sizes = std::vector<int64_t>;
using MaybeTensor = std::optional<Tensor>;

constexpr int64_t kMostClasses = int64_t{1} << 24;

int64_t bytes_of(ScalarType dtype) {
  return dtype == ScalarType::Long ? 8 : dtype == ScalarType::Int ? 4 : 1;
}

LabelMap label_map(const Tensor& labels) {
  return {view(labels), bytes_of(labels.scalar_type())};
}

WideLogits check_logits(const Checker& check, const Tensor& logits, const Sizes& image,
                        bool align_corners) {
  check.tensor("logits", logits, 4);
  for (int64_t d = 1; d < 4; ++d) {
    check.require(logits.size(d) > 0, "logits", "must have a class, a row and a column");
  }
  check.require(logits.size(1) <= kMostClasses, "logits", "has too many classes");
  check.require(image.size() == 2, "size", "must be two numbers");
  for (int64_t axis = 0; axis < 2; ++axis) {
    check.require(image[axis] >= logits.size(2 + axis) && image[axis] <= INT32_MAX, "size",
                  "must be at least that of logits, below 2^31");
  }
  return {view(logits),
          {image[0], image[1]},
          align_corners ? Mode::kBilinearAligned : Mode::kBilinear,
          memory_format(logits) == MemoryFormat::ChannelsLast};
}

// Points `wide` at logits that kernels can read, and returns the tensor that owns them: a copy if
// the strides require one.
Tensor make_readable(const Tensor& logits, WideLogits& wide) {
  const Tensor map = readable(logits, memory_format(logits));
  static_cast<View&>(wide) = view(map);
  return map;
}

Target check_target(const Checker& check, const Tensor& target, const Tensor& logits,
                    int64_t ignore_index) {
  check.given("target", target);
  const ScalarType dtype = target.scalar_type();
  check.require(dtype == ScalarType::Long || dtype == ScalarType::Int || dtype == ScalarType::Byte,
                "target", "must be int64, int32 or uint8");
  check.require(target.dim() == 3 && target.size(0) == logits.size(0), "target",
                "has the wrong shape");
  check.same_device("target", target, logits);
  return {label_map(target), ignore_index};
}

void check_wide(const Checker& check, const char* argument, const Tensor& value,
                const Tensor& logits, const Sizes& sizes) {
  check.given(argument, value);
  check.size(argument, value, sizes);
  check.require(value.scalar_type() == accumulate_type(logits), argument, "has the wrong dtype");
  check.same_device(argument, value, logits);
}

View check_weight(const Checker& check, const MaybeTensor& weight, const Tensor& logits,
                  Tensor& held) {
  if (!weight) return {};
  check_wide(check, "weight", *weight, logits, {logits.size(1)});
  held = dense(*weight, MemoryFormat::Contiguous);
  return view(held);
}

Tensor empty_wide(const Sizes& shape, const Tensor& logits) {
  return empty(shape, logits, accumulate_type(logits));
}

Sizes size_of(const Tensor& target) {
  return {target.size(target.dim() - 2), target.size(target.dim() - 1)};
}

// out = the sum over P of `parts`, (P, elements of out).
void sum_parts(const Tensor& parts, const Tensor& out) {
  View flat = view(out);
  flat = {flat.data, flat.dtype, {out.numel(), 1, 1, 1}, {1, 1, 1, 1}};
  device::execute(SumPartials{view(parts), flat}, out);
}

// Sums along W: the kernel writes them to `parts` partial sums, or directly to `out` if there is
// only one.
class RowSums {
 public:
  RowSums(const Tensor& out, const Tensor& logits, int64_t parts)
      : out_(out),
        parts_(parts == 1 ? out : empty_wide({parts, out.numel()}, logits)),
        count_(parts) {}

  View parts() const { return view(parts_); }

  void finish() const {
    if (count_ > 1) sum_parts(parts_, out_);
  }

 private:
  Tensor out_, parts_;
  int64_t count_;
};

UpsampleArgmax argmax_of(const Checker& check, const Tensor& logits, const Sizes& size,
                         bool align_corners, int64_t bytes) {
  UpsampleArgmax op{check_logits(check, logits, size, align_corners), {}, {}};
  check.require(bytes == 1 || bytes == 4 || bytes == 8, "bytes", "must be 1, 4 or 8");
  check.require(bytes > 1 || logits.size(1) <= 256, "logits", "has too many classes for uint8");
  return op;
}

Tensor empty_labels(const Tensor& logits, const Sizes& size, int64_t bytes) {
  const ScalarType dtype = bytes == 8   ? ScalarType::Long
                           : bytes == 4 ? ScalarType::Int
                                        : ScalarType::Byte;
  return empty({logits.size(0), size[0], size[1]}, logits, dtype);
}

template <class Op>
void execute(const Op& op, const Tensor& like) {
  if (op.logits.pixels() > 0) device::execute(op, like);
}

Tensor upsample_argmax(const Tensor& logits, const Sizes& size, bool align_corners, int64_t bytes) {
  const Checker check("upsample_argmax");
  UpsampleArgmax op = argmax_of(check, logits, size, align_corners, bytes);
  const Tensor map = make_readable(logits, op.logits), labels = empty_labels(logits, size, bytes);
  op.labels = label_map(labels);
  execute(op, logits);
  return labels;
}

std::tuple<Tensor, Tensor> upsample_softmax_max(const Tensor& logits, const Sizes& size,
                                                bool align_corners, int64_t bytes) {
  const Checker check("upsample_softmax_max");
  UpsampleArgmax op = argmax_of(check, logits, size, align_corners, bytes);
  const Tensor map = make_readable(logits, op.logits), labels = empty_labels(logits, size, bytes);
  const Tensor chance = empty_wide(sizes(labels), logits);
  op.labels = label_map(labels);
  op.chance = view(chance);
  execute(op, logits);
  return {labels, chance};
}

std::tuple<Tensor, Tensor, Tensor> upsample_cross_entropy(const Tensor& logits,
                                                          const Tensor& target,
                                                          const MaybeTensor& weight,
                                                          bool align_corners, int64_t ignore_index,
                                                          double label_smoothing, bool per_pixel) {
  const Checker check("upsample_cross_entropy");
  check.tensor("logits", logits, 4);
  const Target labels = check_target(check, target, logits, ignore_index);
  WideLogits wide = check_logits(check, logits, size_of(target), align_corners);
  check.require(label_smoothing >= 0 && label_smoothing <= 1, "label_smoothing",
                "must be from 0 to 1");
  Tensor table;
  const View factors = check_weight(check, weight, logits, table);
  const Tensor map = make_readable(logits, wide);
  const Tensor log_sums = empty_wide(sizes(target), logits);
  const Tensor row_losses = empty_wide({target.size(0), target.size(1)}, logits);
  const Tensor weights = empty_wide({target.size(0), target.size(1)}, logits);
  const Tensor losses = per_pixel ? empty_wide(sizes(target), logits) : row_losses;
  const int64_t parts = kernels::row_parts(wide);
  const RowSums loss_sums(row_losses, logits, parts), weight_sums(weights, logits, parts);
  execute(UpsampleCrossEntropy{wide, labels, factors, label_smoothing,
                               per_pixel ? view(losses) : loss_sums.parts(), weight_sums.parts(),
                               view(log_sums), per_pixel},
          logits);
  if (!per_pixel) loss_sums.finish();
  weight_sums.finish();
  return {losses, weights, log_sums};
}

Tensor upsample_cross_entropy_backward(const Tensor& grad, const Tensor& logits,
                                       const Tensor& target, const MaybeTensor& weight,
                                       const Tensor& log_sums, bool align_corners,
                                       int64_t ignore_index, double label_smoothing) {
  const Checker check("upsample_cross_entropy_backward");
  check.tensor("logits", logits, 4);
  const Target labels = check_target(check, target, logits, ignore_index);
  WideLogits wide = check_logits(check, logits, size_of(target), align_corners);
  check_wide(check, "grad", grad, logits, sizes(target));
  check_wide(check, "log_sums", log_sums, logits, sizes(target));
  Tensor table;
  const View factors = check_weight(check, weight, logits, table);
  const Tensor map = make_readable(logits, wide);
  const Tensor out = empty(sizes(logits), logits, memory_format(logits));
  execute(UpsampleCrossEntropyBackward{view(grad), wide, labels, factors, label_smoothing,
                                       view(log_sums), view(out)},
          logits);
  return out;
}

// Checks a target or a weight, (N, K, H, W) of any strides.
View check_plane(const Checker& check, const char* argument, const MaybeTensor& value,
                 const Tensor& logits, const Sizes& shape) {
  if (!value) return {};
  check.given(argument, *value);
  check.alike(argument, *value, logits);
  check.size(argument, *value, shape);
  return view(*value);
}

Tensor upsample_binary_cross_entropy(const Tensor& logits, const Tensor& target,
                                     const MaybeTensor& weight, const MaybeTensor& pos_weight,
                                     bool align_corners, bool per_pixel) {
  const Checker check("upsample_binary_cross_entropy");
  check.tensor("target", target, 4);
  WideLogits wide = check_logits(check, logits, size_of(target), align_corners);
  const Sizes shape = {logits.size(0), logits.size(1), target.size(2), target.size(3)};
  const View planes = check_plane(check, "target", target, logits, shape);
  const View factors = check_plane(check, "weight", weight, logits, shape);
  const View positive = check_plane(check, "pos_weight", pos_weight, logits, shape);
  const Tensor map = make_readable(logits, wide);
  const Tensor losses =
      empty_wide(per_pixel ? shape : Sizes{shape.begin(), shape.end() - 1}, logits);
  const RowSums sums(losses, logits, per_pixel ? 1 : kernels::row_parts(wide));
  execute(UpsampleBinary{wide, planes, factors, positive, sums.parts(), per_pixel}, logits);
  sums.finish();
  return losses;
}

Tensor upsample_binary_cross_entropy_backward(const Tensor& grad, const Tensor& logits,
                                              const Tensor& target, const MaybeTensor& weight,
                                              const MaybeTensor& pos_weight, bool align_corners) {
  const Checker check("upsample_binary_cross_entropy_backward");
  check.tensor("target", target, 4);
  WideLogits wide = check_logits(check, logits, size_of(target), align_corners);
  const Sizes shape = {logits.size(0), logits.size(1), target.size(2), target.size(3)};
  check_wide(check, "grad", grad, logits, shape);
  const View planes = check_plane(check, "target", target, logits, shape);
  const View factors = check_plane(check, "weight", weight, logits, shape);
  const View positive = check_plane(check, "pos_weight", pos_weight, logits, shape);
  const Tensor map = make_readable(logits, wide);
  const Tensor out = empty(sizes(logits), logits, memory_format(logits));
  execute(UpsampleBinaryBackward{view(grad), wide, planes, factors, positive, view(out)}, logits);
  return out;
}

std::tuple<Tensor, Tensor> upsample_dice(const Tensor& logits, const Tensor& target,
                                         bool align_corners, int64_t ignore_index) {
  const Checker check("upsample_dice");
  check.tensor("logits", logits, 4);
  const Target labels = check_target(check, target, logits, ignore_index);
  WideLogits wide = check_logits(check, logits, size_of(target), align_corners);
  const Tensor map = make_readable(logits, wide);
  const Tensor log_sums = empty_wide(sizes(target), logits);
  const Tensor sums = empty_wide({logits.size(0), 3, logits.size(1)}, logits);
  if (wide.pixels() == 0) return {sums, log_sums};
  const Tensor parts = empty_wide({kernels::dice_parts(wide), sums.numel()}, logits);
  device::execute(UpsampleDice{wide, labels, view(log_sums), parts.data_ptr()}, logits);
  sum_parts(parts, sums);
  return {sums, log_sums};
}

Tensor upsample_dice_backward(const Tensor& grad, const Tensor& logits, const Tensor& target,
                              const Tensor& log_sums, bool align_corners, int64_t ignore_index) {
  const Checker check("upsample_dice_backward");
  check.tensor("logits", logits, 4);
  const Target labels = check_target(check, target, logits, ignore_index);
  WideLogits wide = check_logits(check, logits, size_of(target), align_corners);
  check_wide(check, "grad", grad, logits, {logits.size(0), 3, logits.size(1)});
  check_wide(check, "log_sums", log_sums, logits, sizes(target));
  const Tensor map = make_readable(logits, wide);
  const Tensor toward = dense(grad, MemoryFormat::Contiguous);
  const Tensor dots = empty_wide(sizes(target), logits);
  const Tensor out = empty(sizes(logits), logits, memory_format(logits));
  execute(UpsampleDiceDots{view(toward), wide, labels, view(log_sums), view(dots)}, logits);
  execute(UpsampleDiceBackward{view(toward), wide, labels, view(log_sums), view(dots), view(out)},
          logits);
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(stripctx, library) {
  define(library, kSchemas);
}

STABLE_TORCH_LIBRARY_IMPL(stripctx, STRIPCTX_DISPATCH_KEY, library) {
  library.impl("upsample_argmax", TORCH_BOX(&upsample_argmax));
  library.impl("upsample_softmax_max", TORCH_BOX(&upsample_softmax_max));
  library.impl("upsample_cross_entropy", TORCH_BOX(&upsample_cross_entropy));
  library.impl("upsample_cross_entropy_backward", TORCH_BOX(&upsample_cross_entropy_backward));
  library.impl("upsample_binary_cross_entropy", TORCH_BOX(&upsample_binary_cross_entropy));
  library.impl("upsample_binary_cross_entropy_backward",
               TORCH_BOX(&upsample_binary_cross_entropy_backward));
  library.impl("upsample_dice", TORCH_BOX(&upsample_dice));
  library.impl("upsample_dice_backward", TORCH_BOX(&upsample_dice_backward));
}

}  // namespace stripctx::bind
