// bfloat16 matrices in shared memory and the mma operands that a warp loads from them by ldmatrix,
// for the encoding layer's resident kernels.
#pragma once

#include "cuda/device.cuh"
#include "cuda/mma.cuh"
#include "cuda/split.cuh"

namespace stripctx::cuda {

// 16 x 16 elements, distributed over a warp.
using Operand = Pack<__nv_bfloat16, 2>[4];

// 8 elements in flight from global memory, kept as 32-bit words: separate bfloat16 values would
// take one register each.
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

// Lane, warp, and the position of element i of a product (as in split.cuh) for one-dimensional
// blocks. They are cheap to recompute, so no register holds them.
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

// A matrix in shared memory. The row stride kPitch is the row length plus 8 elements, so that the
// same 16 bytes of 8 adjacent rows lie in different banks.
template <int kPitch>
struct Matrix {
  Shared<__nv_bfloat16> data;

  __device__ static int at(int row, int column) { return row * kPitch + column; }

  // The left operand that begins at (row, column). The matrix is indexed [row][k], or [k][row] if
  // kTurned.
  template <bool kTurned>
  __device__ void left(Operand& to, int row, int column) const {
    load<kTurned, !kTurned>(to, row, column);
  }
  // Two adjacent right operands that begin at (row, column). The matrix is indexed [k][column], or
  // [column][k] if kTurned.
  template <bool kTurned>
  __device__ void right(Operand& to, int row, int column) const {
    load<!kTurned, !kTurned>(to, row, column);
  }

 private:
  // kBelow: of the four 8 x 8 blocks, the second lies below the first; else beside it.
  template <bool kTurned, bool kBelow>
  __device__ void load(Operand& to, int row, int column) const {
    const int which = own_lane() / 8, first = which % 2 * 8, second = which / 2 * 8;
    const int lane = at((kBelow ? first : second) + own_lane() % 8, kBelow ? second : first);
    load_matrices<kTurned>(to, data, lane + at(row, column));
  }
};

// d[n] += a b_n for the two right operands in b.
__device__ inline void multiply_pair(float (&d)[2][4], const Operand& a, const Operand& b) {
  mma_m16n8k16(d[0], a, {b[0], b[1]});
  mma_m16n8k16(d[1], a, {b[2], b[3]});
}

}  // namespace stripctx::cuda
