// The pyramid family's pooling: check, allocate, execute. Compiled once per library against the
// device.hpp of the CPU, of CUDA or of the tests' emulator.
#include "pyramid/params.hpp"

#include <torch/csrc/stable/library.h>

#include <string>
#include <vector>

#include "bind/check.hpp"
#include "bind/tensor.hpp"
#include "device.hpp"

namespace stripctx::bind {

namespace {

using Tensors = std::vector<Tensor>;

std::string item(const char* argument, size_t k) {
  return std::string(argument) + "[" + std::to_string(k) + "]";
}

void check_map(const Checker& check, const Tensor& x) {
  check.tensor("x", x, "(N, C, H, W)");
  if (x.size(2) < 1 || x.size(3) < 1) {
    check.refuse("x", "must have at least one row and one column, got ", check.text(x.sizes()));
  }
}

// bins are (height, width) pairs, laid flat.
void check_bins(const Checker& check, const std::vector<int64_t>& bins) {
  if (bins.empty() || bins.size() % 2 != 0 || bins.size() > 2 * kMostLevels) {
    check.refuse("bins", "must hold 1 to ", kMostLevels, " pairs (height, width), laid flat, got ",
                 check.text(bins));
  }
  for (const int64_t bin : bins) {
    if (bin < 1 || bin > kMostBins) {
      check.refuse("bins", "must be from 1 to ", kMostBins, ", got ", check.text(bins));
    }
  }
}

void check_grads(const Checker& check, const Tensors& grads, int64_t height, int64_t width) {
  if (grads.empty() || grads.size() > kMostLevels) {
    check.refuse("grads", "must hold 1 to ", kMostLevels, " levels, got ", grads.size());
  }
  for (size_t k = 0; k < grads.size(); ++k) {
    const std::string name = item("grads", k);
    const Tensor& grad = grads[k];
    check.tensor(name.c_str(), grad, "(N, C, H, W)");
    check.alike(name.c_str(), grad, "grads[0]", grads[0]);
    check.size(name.c_str(), grad,
               {grads[0].size(0), grads[0].size(1), grad.size(2), grad.size(3)});
    for (const int64_t bins : {grad.size(2), grad.size(3)}) {
      if (bins < 1 || bins > kMostBins) {
        check.refuse(name.c_str(), "must have from 1 to ", kMostBins, " bins along H and W, got ",
                     check.text(grad.sizes()));
      }
    }
  }
  if (height < 1 || width < 1) {
    check.refuse("height and width", "must be positive, got ",
                 check.text(std::vector<int64_t>{height, width}));
  }
}

// Indices are counted in 32 bits inside the kernels.
void check_positions(const Checker& check, const char* argument, int64_t height, int64_t width) {
  if (height > INT32_MAX / width) {
    check.refuse(argument, "must span fewer than 2147483648 positions, got ",
                 check.text(std::vector<int64_t>{height, width}));
  }
}

void check_indices(const Checker& check, const Tensors& grads, const Tensors& indices) {
  if (indices.size() != grads.size()) {
    check.refuse("indices", "must hold as many levels as grads, ", grads.size(), ", got ",
                 indices.size());
  }
  for (size_t k = 0; k < indices.size(); ++k) {
    const std::string name = item("indices", k);
    check.index_tensor(name.c_str(), indices[k]);
    check.size(name.c_str(), indices[k], sizes(grads[k]));
    check.same_device(name.c_str(), indices[k], item("grads", k).c_str(), grads[k]);
  }
}

Levels levels_of(const Tensors& tensors) {
  Levels levels;
  for (const Tensor& tensor : tensors) levels.level[levels.count++] = view(tensor);
  return levels;
}

Tensors allocate(const std::vector<int64_t>& bins, const Tensor& x, ScalarType dtype,
                 MemoryFormat format) {
  Tensors levels;
  for (size_t k = 0; k < bins.size(); k += 2) {
    levels.push_back(empty({x.size(0), x.size(1), bins[k], bins[k + 1]}, x, dtype, format));
  }
  return levels;
}

Tensors dense_levels(const Tensors& tensors, MemoryFormat format) {
  Tensors result;
  for (const Tensor& tensor : tensors) result.push_back(dense(tensor, format));
  return result;
}

// Scratch for the parts that this device's kernel asks for, `words` numbers each; keep it alive.
template <class Op>
Tensor allocate_partials(Op& op, const Tensor& x, int64_t words) {
  op.partials.count = kernels::partials(op);
  if (op.partials.count == 0) return x;
  Tensor scratch = empty({op.partials.count * op.levels.numel() * words}, x, accumulate_type(x));
  op.partials.data = scratch.data_ptr();
  return scratch;
}

MemoryFormat format_of(bool channels_last) {
  return channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
}

Tensors pyramid_pool(const Tensor& x, std::vector<int64_t> bins) {
  const Checker check("pyramid_pool");
  check_map(check, x);
  check_bins(check, bins);
  const MemoryFormat format = memory_format(x);
  const Tensors levels = allocate(bins, x, x.scalar_type(), format);
  const Tensor source = readable(x, format);
  PyramidPool op{view(source), levels_of(levels)};
  const Tensor scratch = allocate_partials(op, x, 1);
  device::execute(op, x);
  return levels;
}

Tensor pyramid_pool_backward(Tensors grads, int64_t height, int64_t width, bool channels_last) {
  const Checker check("pyramid_pool_backward");
  check_grads(check, grads, height, width);
  const MemoryFormat format = format_of(channels_last);
  Tensor grad_x = empty({grads[0].size(0), grads[0].size(1), height, width}, grads[0], format);
  const Tensors dense_grads = dense_levels(grads, format);
  device::execute(PyramidPoolBackward{levels_of(dense_grads), view(grad_x)}, grads[0]);
  return grad_x;
}

Tensors pyramid_max_pool(const Tensor& x, std::vector<int64_t> bins) {
  const Checker check("pyramid_max_pool");
  check_map(check, x);
  check_positions(check, "x", x.size(2), x.size(3));
  check_bins(check, bins);
  const MemoryFormat format = memory_format(x);
  Tensors levels = allocate(bins, x, x.scalar_type(), format);
  const Tensors indices = allocate(bins, x, ScalarType::Long, format);
  const Tensor source = readable(x, format);
  PyramidMaxPool op{view(source), levels_of(levels), levels_of(indices)};
  const Tensor scratch = allocate_partials(op, x, 2);
  device::execute(op, x);
  levels.insert(levels.end(), indices.begin(), indices.end());
  return levels;
}

Tensor pyramid_max_pool_backward(Tensors grads, Tensors indices, int64_t height, int64_t width,
                                 bool channels_last) {
  const Checker check("pyramid_max_pool_backward");
  check_grads(check, grads, height, width);
  check_positions(check, "height and width", height, width);
  check_indices(check, grads, indices);
  const MemoryFormat format = format_of(channels_last);
  Tensor grad_x = empty({grads[0].size(0), grads[0].size(1), height, width}, grads[0], format);
  const Tensors dense_grads = dense_levels(grads, format),
                dense_indices = dense_levels(indices, format);
  device::execute(
      PyramidMaxPoolBackward{levels_of(dense_grads), levels_of(dense_indices), view(grad_x)},
      grads[0]);
  return grad_x;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stripctx, STRIPCTX_DISPATCH_KEY, library) {
  library.impl("pyramid_pool", TORCH_BOX(&pyramid_pool));
  library.impl("pyramid_pool_backward", TORCH_BOX(&pyramid_pool_backward));
  library.impl("pyramid_max_pool", TORCH_BOX(&pyramid_max_pool));
  library.impl("pyramid_max_pool_backward", TORCH_BOX(&pyramid_max_pool_backward));
}

}  // namespace stripctx::bind
