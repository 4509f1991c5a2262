// The pyramid family's pooling: check, allocate, execute. Compiled once per library against the
// device.hpp of the CPU, of CUDA or of the tests' emulator.
#include "pyramid/params.hpp"

#include <torch/csrc/stable/library.h>

#include <vector>

#include "bind/check.hpp"
#include "bind/define.hpp"
#include "bind/tensor.hpp"
#include "device.hpp"
#include "pyramid/schemas.hpp"

namespace stripctx::bind {

namespace {

using Tensors = std::vector<Tensor>;

void check_map(const Checker& check, const Tensor& x) {
  check.tensor("x", x, 4);
  check.require(x.size(2) > 0 && x.size(3) > 0, "x", "must not be empty along H and W");
}

// `bins` is a flat list of (height, width) pairs.
void check_bins(const Checker& check, const std::vector<int64_t>& bins) {
  check.require(!bins.empty() && bins.size() % 2 == 0 && bins.size() <= 2 * kMostLevels, "bins",
                "has the wrong length");
  for (const int64_t bin : bins) {
    check.require(bin > 0 && bin <= kMostBins, "bins", "is out of range");
  }
}

void check_grads(const Checker& check, const Tensors& grads, int64_t height, int64_t width) {
  check.require(!grads.empty() && grads.size() <= kMostLevels, "grads", "has the wrong length");
  for (const Tensor& grad : grads) {
    check.tensor("grads", grad, 4);
    check.alike("grads", grad, grads[0]);
    check.size("grads", grad, {grads[0].size(0), grads[0].size(1), grad.size(2), grad.size(3)});
    for (const int64_t bins : {grad.size(2), grad.size(3)}) {
      check.require(bins > 0 && bins <= kMostBins, "grads", "has too many bins or none");
    }
  }
  check.require(height > 0 && width > 0, "height and width", "must be positive");
}

// Kernels compute indices in 32 bits.
void check_positions(const Checker& check, const char* argument, int64_t height, int64_t width) {
  check.require(height <= INT32_MAX / width, argument, "must span fewer than 2^31 positions");
}

void check_indices(const Checker& check, const Tensors& grads, const Tensors& indices) {
  check.require(indices.size() == grads.size(), "indices", "must hold as many levels as grads");
  for (size_t k = 0; k < indices.size(); ++k) {
    check.index_tensor("indices", indices[k]);
    check.size("indices", indices[k], sizes(grads[k]));
    check.same_device("indices", indices[k], grads[k]);
  }
}

PooledLevels levels_of(const Tensors& tensors) {
  PooledLevels levels;
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

// Allocates the partial results that this device's kernel needs, `words` numbers each. The caller
// keeps the returned tensor alive.
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

STABLE_TORCH_LIBRARY_FRAGMENT(stripctx, library) {
  define(library, kSchemas);
}

STABLE_TORCH_LIBRARY_IMPL(stripctx, STRIPCTX_DISPATCH_KEY, library) {
  library.impl("pyramid_pool", TORCH_BOX(&pyramid_pool));
  library.impl("pyramid_pool_backward", TORCH_BOX(&pyramid_pool_backward));
  library.impl("pyramid_max_pool", TORCH_BOX(&pyramid_max_pool));
  library.impl("pyramid_max_pool_backward", TORCH_BOX(&pyramid_max_pool_backward));
}

}  // namespace stripctx::bind
