// The elements of a map, or of all levels of a pyramid, by number: for kernels whose threads each
// own one of them.
#pragma once

#include "core/levels.hpp"

namespace stripctx {

// Element (n, c, i, j) of a level.
struct Place {
  int level;
  int64_t n, c, i, j;

  STRIPCTX_HOST_DEVICE int64_t offset_in(const View& view) const {
    return n * view.stride[0] + c * view.stride[1] + i * view.stride[2] + j * view.stride[3];
  }
};

// The element at `index` in memory order (channels_last), or in the order of a contiguous tensor.
STRIPCTX_HOST_DEVICE inline Place place_in(const View& view, bool channels_last, int64_t index,
                                           int level = 0) {
  Place place{level, 0, 0, 0, 0};
  const auto next = [&](int dimension) {
    const int64_t size = view.size[dimension], quotient = index / size,
                  rest = index - quotient * size;
    index = quotient;
    return rest;
  };
  if (channels_last) place.c = next(1);
  place.j = next(3);
  place.i = next(2);
  if (!channels_last) place.c = next(1);
  place.n = index;
  return place;
}

// `index` counts the elements of all levels, one level after another.
template <class Each>
STRIPCTX_HOST_DEVICE Place place_in(const LevelsOf<Each>& levels, bool channels_last,
                                    int64_t index) {
  int k = 0;
  while (index >= levels[k].numel()) index -= levels[k++].numel();
  return place_in(levels[k], channels_last, index, k);
}

}  // namespace stripctx
