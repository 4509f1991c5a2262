// How Python calls a launch: ctypes sees a C function that returns what was thrown, or null.
#pragma once

#include <exception>
#include <string>

#include "cuda/device.cuh"

namespace stripctx::cuda {

template <class Run>
const char* message_of(Run&& run) {
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

#define STRIPCTX_TEST extern "C" __attribute__((visibility("default"))) const char*
