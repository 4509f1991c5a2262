// The checks that memory safety needs. Calls normally pass the fuller checks of stripctx/ops first;
// these cover callers that reach the dispatcher without them: inference-mode tensors and C++. A
// failed check raises ValueError in Python.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <stdexcept>
#include <string>
#include <vector>

namespace stripctx::bind {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

class Checker {
 public:
  explicit Checker(const char* name) : name_(name) {}

  void require(bool holds, const char* argument, const char* what) const {
    if (!holds) throw std::invalid_argument(std::string(name_) + ": " + argument + " " + what);
  }

  // Rejects None, which the dispatcher passes as an undefined tensor.
  void given(const char* argument, const Tensor& value) const {
    require(value.defined(), argument, "must be a tensor, got None");
  }

  void tensor(const char* argument, const Tensor& value, int64_t rank) const {
    given(argument, value);
    require(value.dim() == rank, argument, "has the wrong number of dimensions");
    const ScalarType dtype = value.scalar_type();
    require(dtype == ScalarType::Double || dtype == ScalarType::Float ||
                dtype == ScalarType::Half || dtype == ScalarType::BFloat16,
            argument, "must be float64, float32, float16 or bfloat16");
  }

  void size(const char* argument, const Tensor& value, const std::vector<int64_t>& expected) const {
    bool equal = value.dim() == static_cast<int64_t>(expected.size());
    for (size_t d = 0; equal && d < expected.size(); ++d) equal = value.size(d) == expected[d];
    require(equal, argument, "has the wrong shape");
  }

  void alike(const char* argument, const Tensor& value, const Tensor& other) const {
    require(value.scalar_type() == other.scalar_type(), argument, "has the wrong dtype");
    same_device(argument, value, other);
  }

  void same_device(const char* argument, const Tensor& value, const Tensor& other) const {
    require(value.device() == other.device(), argument, "is on the wrong device");
  }

  void index_tensor(const char* argument, const Tensor& value) const {
    given(argument, value);
    require(value.scalar_type() == ScalarType::Long, argument, "must be int64");
  }

  // A map of the size, dtype and device of `other`.
  void same_map(const char* argument, const Tensor& value, const Tensor& other) const {
    tensor(argument, value, 4);
    alike(argument, value, other);
    size(argument, value, {other.size(0), other.size(1), other.size(2), other.size(3)});
  }

 private:
  const char* name_;
};

}  // namespace stripctx::bind
