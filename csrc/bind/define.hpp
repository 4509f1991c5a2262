// Defines a family's operators where no Python does: a process that loads the library and never
// imports the package, a C++ program with an AOTInductor package.
#pragma once

#include <torch/csrc/stable/library.h>

#include <exception>

#include "device.hpp"

namespace stripctx::bind {

// Passes over what is defined already, by a library loaded before or by Python: from the same text,
// which stripctx/ops/schemas.py holds them to.
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
