// The interpolating operators' binding: check, allocate, execute. Compiled once per library against
// the device.hpp of the CPU, of CUDA or of the tests' emulator.
#include "upsample/params.hpp"

#include <torch/csrc/stable/library.h>

#include <cstdint>

#include "bind/check.hpp"
#include "bind/tensor.hpp"
#include "device.hpp"

namespace stripctx::bind {

namespace {

using Sizes = std::vector<int64_t>;
using Tensors = std::vector<Tensor>;

constexpr int64_t kAnyNumber = -1;
constexpr int64_t kMost = INT32_MAX;      // so that no sum or product below leaves 64 bits
constexpr int64_t kMostTaps = INT16_MAX;  // along one axis

std::string item(const char* list, size_t i) {
  return std::string(list) + "[" + std::to_string(i) + "]";
}

void check_count(const Checker& check, const char* argument, size_t count) {
  if (count < 1 || count > kMostLevels) {
    check.refuse(argument, "must hold 1 to ", kMostLevels, " tensors, got ", count);
  }
}

// Maps of the batch, dtype and device of `other`, with `channels` channels or any number.
void check_levels(const Checker& check, const char* argument, const Tensors& levels,
                  const char* first, const Tensor& other, int64_t channels) {
  check_count(check, argument, levels.size());
  for (size_t i = 0; i < levels.size(); ++i) {
    const std::string name = item(argument, i);
    const Tensor& level = levels[i];
    check.tensor(name.c_str(), level, "(N, C, h, w)");
    check.alike(name.c_str(), level, first, other);
    check.size(name.c_str(), level,
               {other.size(0), channels == kAnyNumber ? level.size(1) : channels, level.size(2),
                level.size(3)});
    if (level.size(2) < 1 || level.size(3) < 1) {
      check.refuse(name.c_str(), "must have at least one row and one column, got ",
                   Checker::text(level.sizes()));
    }
  }
}

void check_most(const Checker& check, const char* argument, const Sizes& values, int64_t most) {
  for (const int64_t value : values) {
    if (value > most) {
      check.refuse(argument, "must be at most ", most, ", got ", Checker::text(values));
    }
  }
}

// `each` numbers a level: the last two, its rows and columns, are positive.
void check_sizes(const Checker& check, const Sizes& sizes, size_t each) {
  if (sizes.size() % each != 0) {
    check.refuse("sizes", "must hold ", each, " numbers a level, got ", sizes.size());
  }
  check_count(check, "sizes", sizes.size() / each);
  for (size_t i = 0; i < sizes.size(); ++i) {
    if (sizes[i] < (i % each + 2 < each ? 0 : 1)) {
      check.refuse("sizes", "must be positive, got ", Checker::text(sizes));
    }
  }
  check_most(check, "sizes", sizes, kMost);
}

Taps check_kernel(const Checker& check, const Sizes& size, const Sizes& kernel,
                  const Sizes& padding, const Sizes& dilation, bool align_corners,
                  const char* base_name, const Tensor& base) {
  const auto pair = [&](const char* argument, const Sizes& value, int64_t least, int64_t most) {
    if (value.size() != 2 || value[0] < least || value[1] < least) {
      check.refuse(argument, "must be two integers of at least ", least, ", got ",
                   Checker::text(value));
    }
    check_most(check, argument, value, most);
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
          align_corners,
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

// Levels as kernels read them; `kept` keeps copies alive.
Levels readable_levels(const Tensors& levels, MemoryFormat format, Tensors& kept) {
  Levels result;
  for (const Tensor& level : levels) {
    kept.push_back(readable(level, format));
    result.level[result.count++] = view(kept.back());
  }
  return result;
}

Tensor pyramid_concat(const Tensor& x, const Tensors& levels, bool align_corners, bool x_first) {
  const Checker check("pyramid_concat");
  check.tensor("x", x, "(N, C, H, W)");
  check_levels(check, "levels", levels, "x", x, kAnyNumber);
  const MemoryFormat format = memory_format(x);
  int64_t others = 0;
  for (const Tensor& level : levels) others += level.size(1);
  Tensor out = empty({x.size(0), x.size(1) + others, x.size(2), x.size(3)}, x, format);
  Tensor slice = torch::stable::narrow(out, 1, x_first ? 0 : others, x.size(1));
  torch::stable::copy_(slice, x);
  Tensors kept;
  const Levels sources = readable_levels(levels, format, kept);
  const Taps taps{{x.size(2), x.size(3)}, align_corners};
  int64_t begin = x_first ? x.size(1) : 0;
  for (int64_t l = 0; l < sources.count; ++l) {
    const int64_t count = sources.level[l].size[1];
    const View target = channels(view(out), begin, count, element_size(out));
    device::execute(
        PyramidAdd{
            {}, target, {1, {sources.level[l]}}, taps, false, format == MemoryFormat::ChannelsLast},
        x);
    begin += count;
  }
  return out;
}

Tensors pyramid_concat_backward(const Tensor& grad, const Sizes& sizes, bool align_corners,
                                bool channels_last) {
  const Checker check("pyramid_concat_backward");
  check.tensor("grad", grad, "(N, C, H, W)");
  check_sizes(check, sizes, 3);
  int64_t total = 0;
  for (size_t i = 0; i < sizes.size(); i += 3) total += sizes[i];
  check.size("grad", grad, {grad.size(0), total, grad.size(2), grad.size(3)});
  const MemoryFormat format = format_of(channels_last);
  const Tensor source = readable(grad, format);
  const Taps taps{{grad.size(2), grad.size(3)}, align_corners};
  Tensors grads;
  int64_t begin = 0;
  for (size_t i = 0; i < sizes.size(); i += 3) {
    grads.push_back(empty({grad.size(0), sizes[i], sizes[i + 1], sizes[i + 2]}, grad, format));
    const View part = channels(view(source), begin, sizes[i], element_size(grad));
    device::execute(PyramidReduce{part, {}, {}, {1, {view(grads.back())}}, taps, channels_last},
                    grad);
    begin += sizes[i];
  }
  return grads;
}

Tensor pyramid_add_relu(const Tensor& x, const Tensors& levels, bool align_corners) {
  const Checker check("pyramid_add_relu");
  check.tensor("x", x, "(N, C, H, W)");
  check_levels(check, "levels", levels, "x", x, x.size(1));
  const MemoryFormat format = memory_format(x);
  Tensor out = empty(sizes(x), x, format);
  const Tensor map = readable(x, format);
  Tensors kept;
  const Taps taps{{x.size(2), x.size(3)}, align_corners};
  device::execute(PyramidAdd{view(map), view(out), readable_levels(levels, format, kept), taps,
                             true, format == MemoryFormat::ChannelsLast},
                  x);
  return out;
}

// Fresh gradients of the given channels for levels of sizes (h, w), (h, w), ...
Levels allocate_levels(const Tensor& grad, const Sizes& sizes, int64_t channels,
                       MemoryFormat format, Tensors& grads) {
  Levels result;
  for (size_t i = 0; i < sizes.size(); i += 2) {
    grads.push_back(empty({grad.size(0), channels, sizes[i], sizes[i + 1]}, grad, format));
    result.level[result.count++] = view(grads.back());
  }
  return result;
}

Tensors pyramid_add_relu_backward(const Tensor& grad, const Tensor& out, const Sizes& level_sizes,
                                  bool align_corners) {
  const Checker check("pyramid_add_relu_backward");
  check.tensor("out", out, "(N, C, H, W)");
  check.same_map("grad", grad, "out", out);
  check_sizes(check, level_sizes, 2);
  const MemoryFormat format = memory_format(out);
  const Tensor readable_grad = readable(grad, format), map = readable(out, format);
  Tensors grads{empty(sizes(out), out, format)};
  const View grad_x = view(grads[0]);
  const Levels levels = allocate_levels(grad, level_sizes, out.size(1), format, grads);
  const Taps taps{{out.size(2), out.size(3)}, align_corners};
  device::execute(PyramidReduce{view(readable_grad), view(map), grad_x, levels, taps,
                                format == MemoryFormat::ChannelsLast},
                  out);
  return grads;
}

Tensor pyramid_taps_add(const Tensor& base, const Tensors& taps, const Sizes& size,
                        const Sizes& kernel, const Sizes& padding, const Sizes& dilation,
                        bool align_corners) {
  const Checker check("pyramid_taps_add");
  check.tensor("base", base, "(N, C, H, W)");
  const Taps geometry =
      check_kernel(check, size, kernel, padding, dilation, align_corners, "base", base);
  check_levels(check, "taps", taps, "base", base, kernel[0] * kernel[1] * base.size(1));
  const MemoryFormat format = memory_format(base);
  Tensor out = empty(sizes(base), base, format);
  const Tensor map = readable(base, format);
  Tensors kept;
  device::execute(PyramidAdd{view(map), view(out), readable_levels(taps, format, kept), geometry,
                             false, format == MemoryFormat::ChannelsLast},
                  base);
  return out;
}

Tensors pyramid_taps_add_backward(const Tensor& grad, const Sizes& level_sizes, const Sizes& size,
                                  const Sizes& kernel, const Sizes& padding, const Sizes& dilation,
                                  bool align_corners, bool channels_last) {
  const Checker check("pyramid_taps_add_backward");
  check.tensor("grad", grad, "(N, C, H, W)");
  const Taps geometry =
      check_kernel(check, size, kernel, padding, dilation, align_corners, "grad", grad);
  check_sizes(check, level_sizes, 2);
  const MemoryFormat format = format_of(channels_last);
  const Tensor source = readable(grad, format);
  Tensors grads;
  const Levels levels =
      allocate_levels(grad, level_sizes, kernel[0] * kernel[1] * grad.size(1), format, grads);
  device::execute(PyramidReduce{view(source), {}, {}, levels, geometry, channels_last}, grad);
  return grads;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stripctx, STRIPCTX_DISPATCH_KEY, library) {
  library.impl("pyramid_concat", TORCH_BOX(&pyramid_concat));
  library.impl("pyramid_concat_backward", TORCH_BOX(&pyramid_concat_backward));
  library.impl("pyramid_add_relu", TORCH_BOX(&pyramid_add_relu));
  library.impl("pyramid_add_relu_backward", TORCH_BOX(&pyramid_add_relu_backward));
  library.impl("pyramid_taps_add", TORCH_BOX(&pyramid_taps_add));
  library.impl("pyramid_taps_add_backward", TORCH_BOX(&pyramid_taps_add_backward));
}

}  // namespace stripctx::bind
