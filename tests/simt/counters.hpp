// Global memory traffic in bytes, counted at every access and kept by kernel name.
#pragma once

#include <cstdint>

#include "cuda/launch.hpp"

namespace stripctx::simt {

struct Traffic {
  int64_t read = 0, written = 0;
};

// Traffic of the launch that this OS thread runs.
[[gnu::tls_model("initial-exec")]] extern constinit thread_local Traffic traffic;

struct Counts {
  int64_t bytes_read = 0, bytes_written = 0, launches = 0, blocks = 0, threads = 0;
  int64_t shared_bytes = 0;   // maximum over launches
  cuda::Extent3 grid, block;  // of the last launch
};

// Adds one launch to the counts of its kernel.
void record(const char* kernel, const Counts& counts);

}  // namespace stripctx::simt
