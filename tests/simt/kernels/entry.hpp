// How Python calls a launch: through ctypes, a C function that returns what was thrown.
#pragma once

#include <exception>
#include <string>

#include "cuda/device.cuh"

namespace stripctx::cuda {

using Message = const char*;  // what was thrown, or null

template <class Run>
Message message_of(Run&& run) {
  static thread_local std::string message;
  try {
    run();
    return nullptr;
  } catch (const std::exception& error) {
    message = error.what();
    return message.c_str();
  }
}

}  // namespace stripctx::cuda
