// How a kernel is launched, in plain C++: what both launchers (cuda/launch.cuh for nvcc, the
// emulator's tests/simt/launch.hpp for g++) accept, and what they refuse before anything runs.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

#include "core/view.hpp"

namespace stripctx::cuda {

using Stream = void*;  // a cudaStream_t

// 64-bit, so that a count of blocks that does not fit is refused and never wraps.
struct Extent3 {
  int64_t x = 1, y = 1, z = 1;

  constexpr int64_t count() const { return x * y * z; }
};

struct Launch {
  const char* kernel;  // the name in error messages and byte counts
  Extent3 grid;        // blocks
  Extent3 block;       // threads
  int64_t shared_bytes = 0;
  Stream stream = nullptr;
};

constexpr int64_t kSharedAlignment = 16;

// Bytes that SharedMemory::take<T>(count) uses up: the sum over a kernel's takes is its
// shared_bytes.
template <class T>
STRIPCTX_HOST_DEVICE constexpr int64_t shared_bytes(int64_t count) {
  return ceil_div(count * int64_t{sizeof(T)}, kSharedAlignment) * kSharedAlignment;
}

// Whether there is anything to run. Throws where CUDA's limits, the same on every chip since sm_30,
// are exceeded.
inline bool has_work(const Launch& launch) {
  const auto require = [&](bool holds, const char* what, const Extent3& got) {
    if (holds) return;
    throw std::runtime_error(std::string(launch.kernel) + ": " + what + ", got (" +
                             std::to_string(got.x) + ", " + std::to_string(got.y) + ", " +
                             std::to_string(got.z) + ")");
  };
  const Extent3 &grid = launch.grid, &block = launch.block;
  require(grid.x >= 0 && grid.y >= 0 && grid.z >= 0, "a grid cannot be negative", grid);
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return false;
  require(grid.x <= INT32_MAX && grid.y <= 65535 && grid.z <= 65535,
          "a grid has at most (2147483647, 65535, 65535) blocks", grid);
  require(block.x > 0 && block.y > 0 && block.z > 0 && block.x <= 1024 && block.y <= 1024 &&
              block.z <= 64 && block.count() <= 1024,
          "a block has 1 to 1024 threads, at most 64 along z", block);
  return true;
}

// Parameters travel by value in CUDA's 4 KB of constant memory.
template <class... Params>
constexpr bool fits_parameters =
    (std::is_trivially_copyable_v<Params> && ...) && (sizeof(Params) + ... + 0) <= 4096;

}  // namespace stripctx::cuda
