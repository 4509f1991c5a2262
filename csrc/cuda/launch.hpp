// The description of a launch, in plain C++: what both launchers (cuda/launch.cuh for nvcc,
// tests/simt/launch.hpp for g++) accept, and the checks before a kernel starts.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

#include "core/view.hpp"

namespace stripctx::cuda {

using Stream = void*;  // a cudaStream_t

// 64-bit, so that a number of blocks out of range is rejected and does not wrap.
struct Extent3 {
  int64_t x = 1, y = 1, z = 1;

  constexpr int64_t count() const { return x * y * z; }
};

struct Launch {
  const char* kernel;  // name in error messages and traffic counts
  Extent3 grid;        // blocks
  Extent3 block;       // threads
  int64_t shared_bytes = 0;
  Stream stream = nullptr;
};

constexpr int64_t kSharedAlignment = 16;
constexpr int64_t kOperandAlignment = 1024;  // of operands of wgmma.cuh, and of the first piece

// The largest shared memory of a block, in bytes, on the chip that this code is compiled for, where
// that is known: a kernel that needs more is not launched there and need not be compiled.
#if defined(__CUDA_ARCH__) && \
    (__CUDA_ARCH__ == 860 || __CUDA_ARCH__ == 890 || __CUDA_ARCH__ == 1200)
constexpr int64_t kSharedBytesOfChip = 99 * 1024;
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ == 800
constexpr int64_t kSharedBytesOfChip = 163 * 1024;
#else
constexpr int64_t kSharedBytesOfChip = 227 * 1024;
#endif

// Bytes that SharedMemory::take<T>(count) uses. A launch's shared_bytes is the sum over its
// kernel's takes.
template <class T>
STRIPCTX_HOST_DEVICE constexpr int64_t shared_bytes(int64_t count) {
  return ceil_div(count * int64_t{sizeof(T)}, kSharedAlignment) * kSharedAlignment;
}

// Whether the grid has blocks. Throws if the launch exceeds CUDA's limits, which have been the same
// since sm_30.
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

// Parameters are passed by value, in 4 KB of constant memory.
template <class... Params>
constexpr bool fits_parameters =
    (std::is_trivially_copyable_v<Params> && ...) && (sizeof(Params) + ... + 0) <= 4096;

}  // namespace stripctx::cuda
