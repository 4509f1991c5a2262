// What operators refuse, in words that name the argument, the expectation and what came. The same
// sentences as stripctx/ops/checks.py; both raise ValueError in Python.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace stripctx::bind {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Checks the arguments of one operator, called `name` in its messages.
class Checker {
 public:
  explicit Checker(const char* name) : name_(name) {}

  // The dispatcher takes None for a tensor: one that is undefined here.
  void given(const char* argument, const Tensor& value) const {
    if (!value.defined()) refuse(argument, "must be a tensor, got None");
  }

  // A dense floating-point tensor with as many dimensions as `shape`, "(N, C, H, W)".
  void tensor(const char* argument, const Tensor& value, const char* shape) const {
    given(argument, value);
    int64_t rank = 1;
    for (const char* c = shape; *c; ++c) rank += *c == ',';
    if (value.dim() != rank) {
      refuse(argument, "must be ", rank, "-D ", shape, ", got ", value.dim(), "-D ",
             text(value.sizes()));
    }
    const ScalarType dtype = value.scalar_type();
    if (dtype != ScalarType::Double && dtype != ScalarType::Float && dtype != ScalarType::Half &&
        dtype != ScalarType::BFloat16) {
      refuse(argument, "must be float64, float32, float16 or bfloat16, got ", text(dtype));
    }
  }

  void size(const char* argument, const Tensor& value, const std::vector<int64_t>& expected) const {
    bool equal = value.dim() == static_cast<int64_t>(expected.size());
    for (size_t d = 0; equal && d < expected.size(); ++d) equal = value.size(d) == expected[d];
    if (!equal) {
      refuse(argument, "must have shape ", text(expected), ", got ", text(value.sizes()));
    }
  }

  // The dtype and device of `other`, the argument called `first`.
  void alike(const char* argument, const Tensor& value, const char* first,
             const Tensor& other) const {
    if (value.scalar_type() != other.scalar_type()) {
      refuse(argument, "must have the dtype of ", first, ", ", text(other.scalar_type()), ", got ",
             text(value.scalar_type()));
    }
    same_device(argument, value, first, other);
  }

  void same_device(const char* argument, const Tensor& value, const char* first,
                   const Tensor& other) const {
    if (value.device() != other.device()) {
      refuse(argument, "must be on the device of ", first, ", ", text(other.device()), ", got ",
             text(value.device()));
    }
  }

  void index_tensor(const char* argument, const Tensor& value) const {
    given(argument, value);
    if (value.scalar_type() != ScalarType::Long) {
      refuse(argument, "must be int64, got ", text(value.scalar_type()));
    }
  }

  // A map of the size, dtype and device of `other`.
  void same_map(const char* argument, const Tensor& value, const char* first,
                const Tensor& other) const {
    tensor(argument, value, "(N, C, H, W)");
    alike(argument, value, first, other);
    size(argument, value, {other.size(0), other.size(1), other.size(2), other.size(3)});
  }

  template <class... Words>
  [[noreturn]] void refuse(const char* argument, const Words&... words) const {
    std::ostringstream message;
    message << name_ << ": " << argument << " ";
    (message << ... << words);
    throw std::invalid_argument(message.str());
  }

  template <class Sizes>
  static std::string text(const Sizes& sizes) {
    std::ostringstream out;
    out << "(";
    const char* separator = "";
    for (const int64_t size : sizes) {
      out << separator << size;
      separator = ", ";
    }
    out << ")";
    return out.str();
  }

 private:
  static std::string text(ScalarType dtype) {
    switch (dtype) {
      case ScalarType::Double:
        return "float64";
      case ScalarType::Float:
        return "float32";
      case ScalarType::Half:
        return "float16";
      case ScalarType::BFloat16:
        return "bfloat16";
      case ScalarType::Byte:
        return "uint8";
      case ScalarType::Char:
        return "int8";
      case ScalarType::Short:
        return "int16";
      case ScalarType::Int:
        return "int32";
      case ScalarType::Long:
        return "int64";
      case ScalarType::Bool:
        return "bool";
      case ScalarType::ComplexFloat:
        return "complex64";
      case ScalarType::ComplexDouble:
        return "complex128";
      default:
        return torch::headeronly::toString(dtype);
    }
  }

  static std::string text(const torch::stable::Device& device) {
    if (device.is_cpu()) return "cpu";
    if (device.is_cuda()) return "cuda:" + std::to_string(device.index());
    return "another device";
  }

  const char* name_;
};

}  // namespace stripctx::bind
