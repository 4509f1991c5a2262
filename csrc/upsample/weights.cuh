// Shared by the CUDA kernels of interpolation: bounds on the cells that a tile reads, access to the
// cells from global or shared memory, and interpolation along H.
#pragma once

#include "upsample/params.hpp"

#include "cuda/device.cuh"

namespace stripctx::cuda {

// An upper bound on the cells of an axis that `span` consecutive positions read.
STRIPCTX_HOST_DEVICE inline int64_t cells_read(int64_t cells, int64_t extent, int64_t span) {
  const int64_t most = (span - 1) * cells / (extent > 1 ? extent - 1 : 1) + 3;
  return most < cells ? most : cells;
}

// The cells of one channel of a level, over all taps.
STRIPCTX_HOST_DEVICE inline int64_t tap_cells(const Taps& taps, const View& level) {
  return taps.kernel[0] * taps.kernel[1] * level.size[2] * level.size[3];
}

// sum + weight * value, but `sum` for a weight of 0: its product with an infinite value would be
// NaN.
template <class A>
__device__ inline A add_weighted(A sum, A weight, A value) {
  return weight != 0 ? weight * value + sum : sum;
}

// The cells of M adjacent channels of all levels. If `is_staged`, they are read from shared memory,
// where those of cell k are at k * pitch + lane; otherwise from global memory.
template <class T, int M>
class Cells {
  using A = Accumulate<T>;

 public:
  __device__ Cells(const PyramidAdd& op, const Shared<A>& staged, bool is_staged, int pitch,
                   int lane, int64_t n, int64_t c)
      : op_(op), staged_(staged), is_staged_(is_staged), pitch_(pitch), lane_(lane), n_(n), c_(c) {}

  // Copies cells first, first + step, ... of each level to shared memory. The caller must
  // synchronize before they are read.
  __device__ void stage(int64_t first, int64_t step) const {
    int64_t base = 0;
    for (int64_t l = 0; l < op_.levels.count; ++l) {
      const Level& level = op_.levels.level[l];
      const int64_t plane = level.size[2] * level.size[3], cells = tap_cells(op_.taps, level);
      for (int64_t k = first; k < cells; k += step) {
        const int64_t tap = k / plane, i = k % plane / level.size[3], j = k % level.size[3];
        const Pack<T, M> pack = load(level, tap, i, j);
        for (int m = 0; m < M; ++m) {
          staged_[static_cast<int>((base + k) * pitch_ + lane_ + m)] = to_accumulate(pack[m]);
        }
      }
      base += cells;
    }
  }

  // Adds to `sum` column j of a level, interpolated along H to output row h and summed over the
  // taps of kernel column dx. `base` is the number of cells of the previous levels.
  __device__ void add_column(const Level& level, int64_t base, int64_t dx, int64_t h, int64_t j,
                             A (&sum)[M]) const {
    const Axis<A> rows = op_.taps.template axis<A>(level, 0);
    for (int64_t dy = 0; dy < op_.taps.kernel[0]; ++dy) {
      const int64_t position = h + op_.taps.offset(0, dy);
      if (position < 0 || position >= rows.extent) continue;
      const Sample<A> sample = rows.at(position);
      const int64_t tap = dy * op_.taps.kernel[1] + dx;
      A low[M], high[M];
      read(level, base, tap, sample.first, j, low);
      read(level, base, tap, sample.second, j, high);
      for (int m = 0; m < M; ++m) {
        sum[m] += sample.first_weight * low[m] + sample.second_weight * high[m];
      }
    }
  }

 private:
  __device__ Pack<T, M> load(const View& level, int64_t tap, int64_t i, int64_t j) const {
    return Global<const T>(level).template load_pack<M>(
        n_ * level.stride[0] + (tap * op_.out.size[1] + c_) * level.stride[1] +
        i * level.stride[2] + j * level.stride[3]);
  }

  __device__ void read(const Level& level, int64_t base, int64_t tap, int64_t i, int64_t j,
                       A (&value)[M]) const {
    if (is_staged_) {
      const int64_t cell = base + (tap * level.size[2] + i) * level.size[3] + j;
      for (int m = 0; m < M; ++m) value[m] = staged_[static_cast<int>(cell * pitch_ + lane_ + m)];
    } else {
      const Pack<T, M> pack = load(level, tap, i, j);
      for (int m = 0; m < M; ++m) value[m] = to_accumulate(pack[m]);
    }
  }

  const PyramidAdd& op_;
  const Shared<A> staged_;
  const bool is_staged_;
  const int pitch_, lane_;
  const int64_t n_, c_;
};

}  // namespace stripctx::cuda
