// bfloat16 matrices in shared memory and the operands that a warp reads from them by ldmatrix, for
// the encoding layer's resident kernels.
#pragma once

#include "cuda/device.cuh"
#include "cuda/mma.cuh"
#include "cuda/split.cuh"

namespace stripctx::cuda {

// 16 x 16 elements, spread over a warp.
using Operand = Pack<__nv_bfloat16, 2>[4];

// 8 elements on their way: as words, lest each become a register.
struct Words {
  unsigned word[4];

  __device__ static Words of(const Pack<__nv_bfloat16, 8>& pack) {
    Words words;
    memcpy(&words, &pack, sizeof(words));
    return words;
  }
  __device__ Pack<__nv_bfloat16, 8> pack() const {
    Pack<__nv_bfloat16, 8> pack;
    memcpy(&pack, word, sizeof(pack));
    return pack;
  }
};

constexpr int kResidentThreads = 512, kResidentWarps = kResidentThreads / 32;

// Lane and warp, and where element i of a product stands (split.cuh), for a block of one row of
// threads: nothing worth a register.
__device__ inline int own_lane() {
  return static_cast<int>(threadIdx.x % kWarpSize);
}
__device__ inline int own_warp() {
  return static_cast<int>(threadIdx.x / kWarpSize);
}
__device__ inline int own_row(int i) {
  return own_lane() / 4 + 8 * (i / 2);
}
__device__ inline int own_column(int i) {
  return 2 * (own_lane() % 4) + i % 2;
}

// A matrix in shared memory. Rows begin kPitch elements apart, 8 more than they have, so that the
// same 16 bytes of 8 neighbouring rows lie in different banks.
template <int kPitch>
struct Matrix {
  Shared<__nv_bfloat16> data;

  __device__ static int at(int row, int column) { return row * kPitch + column; }

  // The left operand whose first row and k stand at (row, column); kTurned: whose first k and row
  // do.
  template <bool kTurned>
  __device__ void left(Operand& to, int row, int column) const {
    load<kTurned, !kTurned>(to, row, column);
  }
  // Two right operands, side by side, whose first k and column stand at (row, column); kTurned:
  // whose first column and k do.
  template <bool kTurned>
  __device__ void right(Operand& to, int row, int column) const {
    load<!kTurned, !kTurned>(to, row, column);
  }

 private:
  // The first two of four blocks of 8 x 8 lie one below the other, or side by side.
  template <bool kTurned, bool kBelow>
  __device__ void load(Operand& to, int row, int column) const {
    const int which = own_lane() / 8, first = which % 2 * 8, second = which / 2 * 8;
    const int lane = at((kBelow ? first : second) + own_lane() % 8, kBelow ? second : first);
    load_matrices<kTurned>(to, data, lane + at(row, column));
  }
};

// d[n] += a b_n for the two operands of b.
__device__ inline void multiply_pair(float (&d)[2][4], const Operand& a, const Operand& b) {
  mma_m16n8k16(d[0], a, {b[0], b[1]});
  mma_m16n8k16(d[1], a, {b[2], b[3]});
}

}  // namespace stripctx::cuda
