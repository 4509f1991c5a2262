// Maps a runtime dtype to a compile-time type: `dispatch<Types>(dtype, [&]<class T>() { ... })`.
// `Types` names a device's half precision types (cpu/types.hpp, cuda/device.cuh).
#pragma once

#include <type_traits>

#include "core/view.hpp"

namespace stripctx {

// Sums run in float64 for float64 and in float32 for everything else.
template <class T>
using Accumulate = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <class Types, class F>
void dispatch(DType dtype, F&& run) {
  switch (dtype) {
    case DType::kFloat64:
      return run.template operator()<double>();
    case DType::kFloat32:
      return run.template operator()<float>();
    case DType::kFloat16:
      return run.template operator()<typename Types::float16>();
    case DType::kBFloat16:
      return run.template operator()<typename Types::bfloat16>();
  }
}

}  // namespace stripctx
