// Binary search.
#pragma once

#include "core/view.hpp"

namespace stripctx {

// The first of the positions [0, end) for which `reached` holds, or `end` if there is none. If it
// holds for a position, it must hold for all later ones.
template <class Index, class Reached>
STRIPCTX_HOST_DEVICE inline Index first_true(Index end, const Reached& reached) {
  Index low = 0, high = end;
  while (low < high) {
    const Index middle = low + (high - low) / 2;
    if (reached(middle)) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

}  // namespace stripctx
