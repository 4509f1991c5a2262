// The levels of a pyramid, passed to an operator as one operand.
#pragma once

#include <vector>

#include "core/interpolation.hpp"
#include "core/view.hpp"

namespace stripctx {

constexpr int kMostLevels = 8;

// A map, and how it is interpolated along H and W, if at all.
struct Level : View {
  Mode mode = Mode::kBilinear;
  double ratio[2] = {0, 0};  // input size over output size; 0 to use the sizes
};

// One tensor per level, all in the layout of the map.
template <class Each>
struct LevelsOf {
  int count = 0;
  Each level[kMostLevels];

  STRIPCTX_HOST_DEVICE Each& operator[](int64_t k) { return level[k]; }
  STRIPCTX_HOST_DEVICE const Each& operator[](int64_t k) const { return level[k]; }

  STRIPCTX_HOST_DEVICE bool channels_last() const {
    for (int k = 0; k < count; ++k) {
      if (level[k].stride[1] != 1) return false;
    }
    return true;
  }

  // The number of elements in all levels.
  STRIPCTX_HOST_DEVICE int64_t numel() const {
    int64_t sum = 0;
    for (int k = 0; k < count; ++k) sum += level[k].numel();
    return sum;
  }

  // The bins of each level along H (dimension 2) or W (3).
  std::vector<int64_t> bins(int dimension) const {
    std::vector<int64_t> result;
    for (int k = 0; k < count; ++k) result.push_back(level[k].size[dimension]);
    return result;
  }
};

using Levels = LevelsOf<Level>;
using PooledLevels = LevelsOf<View>;  // two of them fit in a kernel's 4 KB of parameters

}  // namespace stripctx
