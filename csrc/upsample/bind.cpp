// The interpolating operators' binding: check, allocate, execute. Compiled once per library against
// the device.hpp of the CPU, of CUDA or of the tests' emulator.
#include "upsample/params.hpp"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "bind/check.hpp"
#include "bind/define.hpp"
#include "bind/tensor.hpp"
#include "device.hpp"
#include "upsample/schemas.hpp"

namespace stripctx::bind {

namespace {

using Sizes = std::vector<int64_t>;
using Tensors = std::vector<Tensor>;

constexpr int64_t kAnyNumber = -1;
constexpr int64_t kMost = INT32_MAX;  // the largest size: sums and products below fit in 64 bits
constexpr int64_t kMostTaps = INT16_MAX;  // per axis

// How each level is interpolated: a code of Mode, and ratios along H and W.
struct Interpolation {
  const Sizes& modes;
  const std::vector<double>& ratios;
};

// Checks the interpolations. A ratio must not step over more cells than there are, whatever the
// extent, because kernels size their tiles by that.
void check_interpolation(const Checker& check, const Interpolation& how, size_t levels) {
  check.require(how.modes.size() == levels, "modes", "must hold one code a level");
  check.require(how.ratios.size() == 2 * levels, "ratios", "must hold two numbers a level");
  for (const int64_t mode : how.modes) {
    check.require(mode >= 0 && mode < kModes, "modes", "must be codes of modes");
  }
}

void set_interpolation(const Checker& check, const Interpolation& how, size_t l, const Taps& taps,
                       Level& level) {
  level.mode = static_cast<Mode>(how.modes[l]);
  for (int axis = 0; axis < 2; ++axis) {
    const double ratio = how.ratios[2 * l + axis];
    const double cells = static_cast<double>(level.size[2 + axis]);
    check.require(ratio >= 0 && ratio * static_cast<double>(taps.size[axis]) <= cells * (1 + 1e-6),
                  "ratios", "must be from 0 to input size / output size");
    level.ratio[axis] = ratio;
  }
}

// Checks that levels have the batch size, dtype and device of `other`, and `channels` channels (or
// any number).
void check_levels(const Checker& check, const char* argument, const Tensors& levels,
                  const Tensor& other, int64_t channels) {
  check.require(!levels.empty() && levels.size() <= kMostLevels, argument,
                "has the wrong number of levels");
  for (const Tensor& level : levels) {
    check.tensor(argument, level, 4);
    check.alike(argument, level, other);
    check.size(argument, level,
               {other.size(0), channels == kAnyNumber ? level.size(1) : channels, level.size(2),
                level.size(3)});
    check.require(level.size(2) > 0 && level.size(3) > 0, argument, "must not be empty");
  }
}

// `sizes` has `each` numbers per level, the last two of which, its rows and columns, are positive.
void check_sizes(const Checker& check, const Sizes& sizes, size_t each) {
  check.require(!sizes.empty() && sizes.size() % each == 0 && sizes.size() / each <= kMostLevels,
                "sizes", "has the wrong length");
  for (size_t i = 0; i < sizes.size(); ++i) {
    const int64_t least = i % each + 2 < each ? 0 : 1;
    check.require(sizes[i] >= least && sizes[i] <= kMost, "sizes", "is out of range");
  }
}

Taps check_kernel(const Checker& check, const Sizes& size, const Sizes& kernel,
                  const Sizes& padding, const Sizes& dilation, const char* base_name,
                  const Tensor& base) {
  const auto pair = [&](const char* argument, const Sizes& value, int64_t least, int64_t most) {
    check.require(value.size() == 2 && std::min(value[0], value[1]) >= least &&
                      std::max(value[0], value[1]) <= most,
                  argument, "must be two numbers in range");
  };
  pair("size", size, 0, kMost);
  pair("kernel", kernel, 1, kMostTaps);
  pair("padding", padding, 0, kMost);
  pair("dilation", dilation, 1, kMost);
  const auto outputs = [&](int axis) {
    return size[axis] + 2 * padding[axis] - dilation[axis] * (kernel[axis] - 1);
  };
  check.size(base_name, base, {base.size(0), base.size(1), outputs(0), outputs(1)});
  return {{size[0], size[1]},
          {kernel[0], kernel[1]},
          {padding[0], padding[1]},
          {dilation[0], dilation[1]}};
}

MemoryFormat format_of(bool channels_last) {
  return channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
}

// Channels [begin, begin + count) of a map.
View channels(const View& map, int64_t begin, int64_t count, size_t element_size) {
  View result = map;
  result.data = static_cast<char*>(map.data) + begin * map.stride[1] * element_size;
  result.size[1] = count;
  return result;
}

size_t element_size(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Double:
      return sizeof(double);
    case ScalarType::Float:
      return sizeof(float);
    default:
      return 2;
  }
}

// Levels in layouts that kernels can read; `kept` owns the copies.
Levels readable_levels(const Checker& check, const Tensors& levels, const Interpolation& how,
                       const Taps& taps, MemoryFormat format, Tensors& kept) {
  check_interpolation(check, how, levels.size());
  Levels result;
  for (size_t l = 0; l < levels.size(); ++l) {
    kept.push_back(readable(levels[l], format));
    static_cast<View&>(result.level[l]) = view(kept.back());
    set_interpolation(check, how, l, taps, result.level[l]);
  }
  result.count = static_cast<int>(levels.size());
  return result;
}

// Allocates gradients for levels of sizes (h, w), (h, w), ... with `channels` channels.
Levels allocate_levels(const Checker& check, const Tensor& grad, const Sizes& sizes,
                       int64_t channels, const Interpolation& how, const Taps& taps,
                       MemoryFormat format, Tensors& grads) {
  check_interpolation(check, how, sizes.size() / 2);
  Levels result;
  for (size_t l = 0; 2 * l < sizes.size(); ++l) {
    grads.push_back(empty({grad.size(0), channels, sizes[2 * l], sizes[2 * l + 1]}, grad, format));
    static_cast<View&>(result.level[l]) = view(grads.back());
    set_interpolation(check, how, l, taps, result.level[l]);
  }
  result.count = static_cast<int>(sizes.size() / 2);
  return result;
}

// Runs `op`, with memory for the parts of its sums.
void execute(PyramidAddBackward op, const Tensor& like) {
  const int64_t elements = kernels::partials(op);
  const Tensor parts = empty({elements}, like, accumulate_type(like));
  if (elements > 0) op.partials = view(parts);
  device::execute(op, like);
}

// Interpolates each level into its slice of the channels and copies x into its own.
Tensor pyramid_concat(const Tensor& x, const Tensors& levels, const Sizes& modes,
                      const std::vector<double>& ratios, int64_t x_index) {
  const Checker check("pyramid_concat");
  check.tensor("x", x, 4);
  check_levels(check, "levels", levels, x, kAnyNumber);
  const int64_t count = static_cast<int64_t>(levels.size());
  check.require(x_index >= 0 && x_index <= count, "x_index", "is out of range");
  const MemoryFormat format = memory_format(x);
  int64_t channels_out = x.size(1);
  for (const Tensor& level : levels) channels_out += level.size(1);
  Tensor out = empty({x.size(0), channels_out, x.size(2), x.size(3)}, x, format);
  Tensors kept;
  const Taps taps{{x.size(2), x.size(3)}};
  const Levels sources = readable_levels(check, levels, {modes, ratios}, taps, format, kept);
  int64_t begin = 0;
  for (int64_t l = 0; l <= count; ++l) {
    if (l == x_index) {
      Tensor slice = torch::stable::narrow(out, 1, begin, x.size(1));
      torch::stable::copy_(slice, x);
      begin += x.size(1);
    }
    if (l == count) break;
    const View target = channels(view(out), begin, sources[l].size[1], element_size(out));
    device::execute(
        PyramidAdd{
            {}, target, {1, {sources[l]}}, taps, false, format == MemoryFormat::ChannelsLast},
        x);
    begin += sources[l].size[1];
  }
  return out;
}

// `grad` has the channels of the levels only, in order.
Tensors pyramid_concat_backward(const Tensor& grad, const Sizes& sizes, const Sizes& modes,
                                const std::vector<double>& ratios, bool channels_last) {
  const Checker check("pyramid_concat_backward");
  check.tensor("grad", grad, 4);
  check_sizes(check, sizes, 3);
  check_interpolation(check, {modes, ratios}, sizes.size() / 3);
  int64_t total = 0;
  for (size_t i = 0; i < sizes.size(); i += 3) total += sizes[i];
  check.size("grad", grad, {grad.size(0), total, grad.size(2), grad.size(3)});
  const MemoryFormat format = format_of(channels_last);
  const Tensor source = readable(grad, format);
  const Taps taps{{grad.size(2), grad.size(3)}};
  Tensors grads;
  int64_t begin = 0;
  for (size_t l = 0; 3 * l < sizes.size(); ++l) {
    const int64_t count = sizes[3 * l];
    grads.push_back(empty({grad.size(0), count, sizes[3 * l + 1], sizes[3 * l + 2]}, grad, format));
    Levels level{1, {{view(grads.back())}}};
    set_interpolation(check, {modes, ratios}, l, taps, level[0]);
    const View part = channels(view(source), begin, count, element_size(grad));
    execute({part, {}, {}, level, taps, channels_last}, grad);
    begin += count;
  }
  return grads;
}

Tensor pyramid_add_relu(const Tensor& x, const Tensors& levels, const Sizes& modes,
                        const std::vector<double>& ratios) {
  const Checker check("pyramid_add_relu");
  check.tensor("x", x, 4);
  check_levels(check, "levels", levels, x, x.size(1));
  const MemoryFormat format = memory_format(x);
  Tensor out = empty(sizes(x), x, format);
  const Tensor map = readable(x, format);
  Tensors kept;
  const Taps taps{{x.size(2), x.size(3)}};
  const Levels sources = readable_levels(check, levels, {modes, ratios}, taps, format, kept);
  device::execute(
      PyramidAdd{view(map), view(out), sources, taps, true, format == MemoryFormat::ChannelsLast},
      x);
  return out;
}

Tensors pyramid_add_relu_backward(const Tensor& grad, const Tensor& out, const Sizes& level_sizes,
                                  const Sizes& modes, const std::vector<double>& ratios) {
  const Checker check("pyramid_add_relu_backward");
  check.tensor("out", out, 4);
  check.same_map("grad", grad, out);
  check_sizes(check, level_sizes, 2);
  const MemoryFormat format = memory_format(out);
  const Tensor readable_grad = readable(grad, format), map = readable(out, format);
  Tensors grads{empty(sizes(out), out, format)};
  const View grad_x = view(grads[0]);
  const Taps taps{{out.size(2), out.size(3)}};
  const Levels levels =
      allocate_levels(check, grad, level_sizes, out.size(1), {modes, ratios}, taps, format, grads);
  execute(
      {view(readable_grad), view(map), grad_x, levels, taps, format == MemoryFormat::ChannelsLast},
      out);
  return grads;
}

// Writes to `out`, which may be `base` itself.
Tensor pyramid_taps_add_out(const Tensor& base, const Tensors& taps, const Sizes& size,
                            const Sizes& kernel, const Sizes& padding, const Sizes& dilation,
                            const Sizes& modes, const std::vector<double>& ratios, Tensor out) {
  const Checker check("pyramid_taps_add");
  check.tensor("base", base, 4);
  const Taps geometry = check_kernel(check, size, kernel, padding, dilation, "base", base);
  check_levels(check, "taps", taps, base, kernel[0] * kernel[1] * base.size(1));
  const MemoryFormat format = memory_format(base);
  check.same_map("out", out, base);
  check.require(is_readable(out, format), "out", "must be in the memory format of base");
  const Tensor map = readable(base, format);
  Tensors kept;
  const Levels sources = readable_levels(check, taps, {modes, ratios}, geometry, format, kept);
  device::execute(PyramidAdd{view(map), view(out), sources, geometry, false,
                             format == MemoryFormat::ChannelsLast},
                  base);
  return out;
}

Tensor pyramid_taps_add(const Tensor& base, const Tensors& taps, const Sizes& size,
                        const Sizes& kernel, const Sizes& padding, const Sizes& dilation,
                        const Sizes& modes, const std::vector<double>& ratios) {
  Checker("pyramid_taps_add").tensor("base", base, 4);
  return pyramid_taps_add_out(base, taps, size, kernel, padding, dilation, modes, ratios,
                              empty(sizes(base), base, memory_format(base)));
}

// Uninitialised memory for the result of a matrix product.
Tensor map_memory(const Sizes& size, const Tensor& like) {
  Checker("map_memory").given("like", like);
  return empty(size, like);
}

Tensors pyramid_taps_add_backward(const Tensor& grad, const Sizes& level_sizes, const Sizes& size,
                                  const Sizes& kernel, const Sizes& padding, const Sizes& dilation,
                                  const Sizes& modes, const std::vector<double>& ratios,
                                  bool channels_last) {
  const Checker check("pyramid_taps_add_backward");
  check.tensor("grad", grad, 4);
  const Taps geometry = check_kernel(check, size, kernel, padding, dilation, "grad", grad);
  check_sizes(check, level_sizes, 2);
  const MemoryFormat format = format_of(channels_last);
  const Tensor source = readable(grad, format);
  Tensors grads;
  const int64_t channels = kernel[0] * kernel[1] * grad.size(1);
  const Levels levels =
      allocate_levels(check, grad, level_sizes, channels, {modes, ratios}, geometry, format, grads);
  execute({view(source), {}, {}, levels, geometry, channels_last}, grad);
  return grads;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(stripctx, library) {
  define(library, kSchemas);
}

STABLE_TORCH_LIBRARY_IMPL(stripctx, STRIPCTX_DISPATCH_KEY, library) {
  library.impl("pyramid_concat", TORCH_BOX(&pyramid_concat));
  library.impl("pyramid_concat_backward", TORCH_BOX(&pyramid_concat_backward));
  library.impl("pyramid_add_relu", TORCH_BOX(&pyramid_add_relu));
  library.impl("pyramid_add_relu_backward", TORCH_BOX(&pyramid_add_relu_backward));
  library.impl("map_memory", TORCH_BOX(&map_memory));
  library.impl("pyramid_taps_add", TORCH_BOX(&pyramid_taps_add));
  library.impl("pyramid_taps_add.out", TORCH_BOX(&pyramid_taps_add_out));
  library.impl("pyramid_taps_add_backward", TORCH_BOX(&pyramid_taps_add_backward));
}

}  // namespace stripctx::bind
