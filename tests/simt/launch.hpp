// `launch` for g++, the counterpart of cuda/launch.cuh. It runs the launch to completion in this OS
// thread. An exception from a kernel's thread is rethrown here, and the emulator remains usable.
#pragma once

#include <cstdlib>
#include <type_traits>

#include "cuda/launch.hpp"
#include "scheduler.hpp"

namespace stripctx::cuda {

// The largest shared memory of a block on an H100 or H200, in bytes.
constexpr int64_t kMostSharedBytes = 227 * 1024;

// The largest shared memory of a block on the emulated device; tests set less, as on older chips.
inline int64_t most_shared_bytes() {
  const char* text = std::getenv("STRIPCTX_SIMT_SHARED_BYTES");
  return text ? std::strtoll(text, nullptr, 10) : kMostSharedBytes;
}

template <class... Params>
void launch(const Launch& how, void (*kernel)(Params...),
            const std::type_identity_t<Params>&... params) {
  static_assert(fits_parameters<Params...>);
  if (!has_work(how)) return;
  if (how.shared_bytes < 0 || how.shared_bytes > kMostSharedBytes) {
    throw std::runtime_error(std::string(how.kernel) + ": a block has at most 227 KB of shared " +
                             "memory, got " + std::to_string(how.shared_bytes) + " bytes");
  }
  if (simt::running) simt::running->fault("a kernel cannot launch a kernel");
  const auto run_thread = [&] { kernel(params...); };
  simt::Scheduler::of_this_thread().run(
      how, [](const void* closure) { (*static_cast<const decltype(run_thread)*>(closure))(); },
      &run_thread, reinterpret_cast<const void*>(kernel));
}

}  // namespace stripctx::cuda
