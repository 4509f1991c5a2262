// Defines a family's operators for a process that loads the library without the Python package: a
// C++ program that runs an AOTInductor package.
#pragma once

#include <torch/csrc/stable/library.h>

#include <exception>

#include "device.hpp"

namespace stripctx::bind {

// Skips operators that are already defined, by Python or by a library loaded earlier. The
// definitions agree: stripctx/ops/schemas.py reads the same text.
template <size_t N>
void define(torch::stable::detail::StableLibrary& library, const char* const (&schemas)[N]) {
  if constexpr (!device::kDefinesOperators) return;
  for (const char* schema : schemas) {
    try {
      library.def(schema);
    } catch (const std::exception&) {
    }
  }
}

}  // namespace stripctx::bind
