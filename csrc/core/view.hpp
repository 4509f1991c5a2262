// A tensor as seen by a kernel: pointer, dtype, sizes and strides (64-bit, in elements). The
// binding passes an operator's arguments to its kernels as one struct of Views (each family's
// params.hpp), the same on CPU and CUDA.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define STRIPCTX_HOST_DEVICE __host__ __device__
#else
#define STRIPCTX_HOST_DEVICE
#endif

namespace stripctx {

enum class DType : int32_t { kFloat64, kFloat32, kFloat16, kBFloat16 };

struct View {
  void* data = nullptr;
  DType dtype = DType::kFloat32;
  int64_t size[4] = {1, 1, 1, 1};  // (N, C, H, W); missing dimensions are 1
  int64_t stride[4] = {0, 0, 0, 0};

  STRIPCTX_HOST_DEVICE int64_t numel() const { return size[0] * size[1] * size[2] * size[3]; }

  // The distance from `data` to one past the last reachable element.
  STRIPCTX_HOST_DEVICE int64_t extent() const {
    if (numel() == 0) return 0;
    int64_t last = 0;
    for (int d = 0; d < 4; ++d) last += (size[d] - 1) * stride[d];
    return last + 1;
  }

  // Channels are the fastest dimension: the kernels' channels_last path.
  STRIPCTX_HOST_DEVICE bool channels_last() const { return stride[1] == 1 && size[1] > 1; }
};

// The address of element (n, c, h, w), in host memory.
template <class T>
T* at(const View& view, int64_t n, int64_t c, int64_t h, int64_t w) {
  return static_cast<T*>(view.data) + n * view.stride[0] + c * view.stride[1] + h * view.stride[2] +
         w * view.stride[3];
}

STRIPCTX_HOST_DEVICE constexpr int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

}  // namespace stripctx
