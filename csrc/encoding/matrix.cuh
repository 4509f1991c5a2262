// The mma operands that a warp loads by ldmatrix from swizzled matrices in shared memory, for the
// encoding layer's resident kernels.
#pragma once

#include "cuda/device.cuh"
#include "cuda/mma.cuh"
#include "cuda/split.cuh"
#include "cuda/wgmma.cuh"

namespace stripctx::cuda {

// 16 x 16 elements, distributed over a warp.
template <class T>
using Operand = Pack<T, 2>[4];

// 8 elements in flight from global memory, kept as 32-bit words: separate values would take
// one register each.
struct Words {
  unsigned word[4];

  template <class T>
  __device__ static Words of(const Pack<T, 8>& pack) {
    Words words;
    memcpy(&words, &pack, sizeof(words));
    return words;
  }
  template <class T>
  __device__ Pack<T, 8> pack() const {
    Pack<T, 8> pack;
    memcpy(&pack, word, sizeof(pack));
    return pack;
  }
};

// A power of two and its inverse.
struct Scale {
  float factor = 1, inverse = 1;

  // Multiplies `largest` to a value of this exponent; 1 if it is not finite.
  __device__ static Scale to_exponent(int exponent, float largest) {
    if (!(largest <= FLT_MAX)) return {};
    unsigned bits;
    memcpy(&bits, &largest, sizeof(bits));
    const int by = min(126, exponent + 127 - static_cast<int>(bits >> 23));
    const unsigned both[2] = {static_cast<unsigned>(127 + by) << 23, static_cast<unsigned>(127 - by)
                                                                         << 23};
    Scale scale;
    memcpy(&scale.factor, &both[0], sizeof(float));
    memcpy(&scale.inverse, &both[1], sizeof(float));
    return scale;
  }
};

constexpr int kResidentThreads = 512, kResidentWarps = kResidentThreads / 32;

// Lane and warp of one-dimensional blocks, and again recomputed, for kernels that need the
// registers; the position of element i of a product (as in split.cuh).
__device__ inline int own_lane() {
  return static_cast<int>(threadIdx.x % kWarpSize);
}
__device__ inline int own_warp() {
  return static_cast<int>(threadIdx.x / kWarpSize);
}
__device__ inline int fresh_lane() {
  return recompute(static_cast<int>(threadIdx.x)) % 32;
}
__device__ inline int fresh_warp() {
  return recompute(static_cast<int>(threadIdx.x)) / 32;
}
__device__ inline int own_row(int i) {
  return fresh_lane() / 4 + 8 * (i / 2);
}
__device__ inline int own_column(int i) {
  return 2 * (fresh_lane() % 4) + i % 2;
}

// kBelow: of the four 8 x 8 blocks, the second lies below the first; else beside it.
template <bool kTurned, bool kBelow, class T, class Matrix>
__device__ inline void load_operand(Operand<T>& to, const Matrix& from, int row, int column) {
  const int which = fresh_lane() / 8, first = which % 2 * 8, second = which / 2 * 8;
  const int lane_row = (kBelow ? first : second) + fresh_lane() % 8;
  const int lane_column = kBelow ? second : first;
  load_matrices<kTurned>(to, from.data, from.at_in_block(row, column, lane_row, lane_column));
}

// The left operand that begins at (row, column) of a matrix indexed [row][k], or [k][row] if
// kTurned.
template <bool kTurned, class T, class Matrix>
__device__ inline void load_left(Operand<T>& to, const Matrix& from, int row, int column) {
  load_operand<kTurned, !kTurned>(to, from, row, column);
}

// Two adjacent right operands that begin at (row, column) of a matrix indexed [k][column], or
// [column][k] if kTurned.
template <bool kTurned, class T, class Matrix>
__device__ inline void load_right(Operand<T>& to, const Matrix& from, int row, int column) {
  load_operand<!kTurned, !kTurned>(to, from, row, column);
}

// d[n] += a b_n for the two right operands in b.
template <class T>
__device__ inline void multiply_pair(float (&first)[4], float (&second)[4], const Operand<T>& a,
                                     const Operand<T>& b) {
  mma_m16n8k16<T>(first, a, {b[0], b[1]});
  mma_m16n8k16<T>(second, a, {b[2], b[3]});
}

}  // namespace stripctx::cuda
