// Interpolation of one output by itself, for what the kernels that share work between outputs do
// not support.
#pragma once

#include "upsample/params.hpp"

#include "cuda/device.cuh"

namespace stripctx::cuda {

// The sum of the levels at one position; 0 outside of the interpolated levels.
template <class T>
__device__ Accumulate<T> interpolate_at(const PyramidAdd& op, int64_t n, int64_t c, int64_t h,
                                        int64_t w) {
  using A = Accumulate<T>;
  A sum = 0;
  for (int l = 0; l < op.levels.count; ++l) {
    const Level& level = op.levels[l];
    const Axis<A> rows = op.taps.template axis<A>(level, 0);
    const Axis<A> columns = op.taps.template axis<A>(level, 1);
    for (int64_t tap = 0; tap < op.taps.kernel[0] * op.taps.kernel[1]; ++tap) {
      const int64_t row = h + op.taps.offset(0, tap / op.taps.kernel[1]);
      const int64_t column = w + op.taps.offset(1, tap % op.taps.kernel[1]);
      if (row < 0 || row >= rows.extent || column < 0 || column >= columns.extent) continue;
      const Sample<A> down = rows.at(row), across = columns.at(column);
      const auto of_row = [&](int64_t i) {
        const auto cell = [&](int64_t j) {
          return to_accumulate(Global<const T>(level).load(
              n * level.stride[0] + (tap * op.out.size[1] + c) * level.stride[1] +
              i * level.stride[2] + j * level.stride[3]));
        };
        return across.first_weight * cell(across.first) +
               across.second_weight * cell(across.second);
      };
      sum += down.first_weight * of_row(down.first) + down.second_weight * of_row(down.second);
    }
  }
  return sum;
}

}  // namespace stripctx::cuda
