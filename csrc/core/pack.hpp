// A pack of N neighbouring elements that moves as one memory access of N * sizeof(T) <= 16 bytes.
#pragma once

#include "core/view.hpp"

namespace stripctx {

template <class T, int N>
struct alignas(sizeof(T) * N) Pack {
  static_assert(sizeof(T) * N <= 16 && (N & (N - 1)) == 0,
                "one access moves 1, 2, 4, 8 or 16 bytes");
  T value[N];

  STRIPCTX_HOST_DEVICE T& operator[](int i) { return value[i]; }
  STRIPCTX_HOST_DEVICE const T& operator[](int i) const { return value[i]; }
};

}  // namespace stripctx
