// A pack of N adjacent elements that is loaded or stored by one access of N * sizeof(T) <= 16
// bytes, and the widest pack that a set of views permits.
#pragma once

#include <initializer_list>

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

// Whether packs of `width` elements along dimension `fastest` divide `length` evenly and are
// aligned in every view.
inline bool packs(std::initializer_list<const View*> views, int64_t element_bytes, int fastest,
                  int64_t length, int64_t width) {
  if (length % width != 0) return false;
  for (const View* view : views) {
    if (reinterpret_cast<uintptr_t>(view->data) % (width * element_bytes) != 0) return false;
    if (view->size[fastest] > 1 && view->stride[fastest] != 1) return false;
    for (int d = 0; d < 4; ++d) {
      if (d != fastest && view->size[d] > 1 && view->stride[d] % width != 0) return false;
    }
  }
  return true;
}

}  // namespace stripctx
