// Conversion between torch's stable Tensor and a kernel's View: memory formats, allocation, and the
// one copy that unsupported strides cost.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "core/view.hpp"
#include "device.hpp"

namespace stripctx::bind {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Missing trailing or leading dimensions are 1: a (C,) vector becomes (1, C, 1, 1).
inline View view(const Tensor& tensor) {
  View result;
  switch (tensor.scalar_type()) {
    case ScalarType::Double:
      result.dtype = DType::kFloat64;
      break;
    case ScalarType::Half:
      result.dtype = DType::kFloat16;
      break;
    case ScalarType::BFloat16:
      result.dtype = DType::kBFloat16;
      break;
    default:
      result.dtype = DType::kFloat32;
  }
  result.data = tensor.data_ptr();
  const auto sizes = tensor.sizes();
  const auto strides = tensor.strides();
  const int64_t first = tensor.dim() == 1 ? 1 : 0;
  for (int64_t d = 0; d < tensor.dim(); ++d) {
    result.size[first + d] = sizes[d];
    result.stride[first + d] = strides[d];
  }
  return result;
}

// The memory format of a result; stripctx/layout.py has the same rule.
template <class... Tensors>
MemoryFormat memory_format(const Tensors&... tensors) {
  const auto channels_last = [](const Tensor& x) {
    return x.size(1) > 1 && x.stride(1) == 1 && !x.is_contiguous();
  };
  return (channels_last(tensors) || ...) ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
}

inline Tensor empty(const std::vector<int64_t>& sizes, const Tensor& like, ScalarType dtype,
                    MemoryFormat format = MemoryFormat::Contiguous) {
  Tensor result =
      torch::stable::empty(sizes, dtype, std::nullopt, like.device(), std::nullopt, format);
  device::allocated(result);
  return result;
}

inline Tensor empty(const std::vector<int64_t>& sizes, const Tensor& like,
                    MemoryFormat format = MemoryFormat::Contiguous) {
  return empty(sizes, like, like.scalar_type(), format);
}

inline std::vector<int64_t> sizes(const Tensor& tensor) {
  return {tensor.sizes().begin(), tensor.sizes().end()};
}

// The accumulation type.
inline ScalarType accumulate_type(const Tensor& tensor) {
  return tensor.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline Tensor dense(const Tensor& tensor, MemoryFormat format) {
  return torch::stable::contiguous(tensor, format);
}

// Whether offsets along a dimension fit in 32 bits.
inline bool is_near(const Tensor& tensor, int64_t dimension) {
  return (tensor.size(dimension) - 1) * tensor.stride(dimension) <= INT32_MAX;
}

// Whether the map's fastest dimension is W (contiguous) or C (channels_last); kernels read a row
// of a channels_last map by 32-bit offsets.
inline bool is_readable(const Tensor& map, MemoryFormat format) {
  const bool channels_last = format == MemoryFormat::ChannelsLast;
  const int64_t fastest = channels_last ? 1 : 3;
  return (map.stride(fastest) == 1 || map.size(fastest) == 1) &&
         (!channels_last || is_near(map, 3));
}

// The map itself where kernels can read its strides, else a copy in `format`.
inline Tensor readable(const Tensor& map, MemoryFormat format) {
  return is_readable(map, format) ? map : dense(map, format);
}

}  // namespace stripctx::bind
