// Products of float32 matrices on tensor cores at three precisions, on top of mma.cuh. An operand
// is given by what stands where, `at(row, k)` or `at(k, column)`, and split into a high part that
// the tensor core can hold and a low part for the rest; three products then keep what one would
// lose.
//
//   kTf32            one product, 10 bits of mantissa
//   kSplitTf32       high and low tf32: 21 bits, float32 in effect ("3xTF32")
//   kSplitBFloat16   high and low bfloat16: 16 bits, more than float16 or bfloat16 maps hold, with
//                    float32's range, at half the cost of the above
#pragma once

#include "cuda/mma.cuh"

namespace stripctx::cuda {

enum class Precision { kTf32, kSplitTf32, kSplitBFloat16 };

// Rows or columns along k that one multiplication covers.
template <Precision kPrecision>
constexpr int kProductDepth = kPrecision == Precision::kSplitBFloat16 ? 16 : 8;

// What one lane holds of an operand: kCount registers for each part.
template <Precision kPrecision, int kCount>
struct Fragment {
  Tf32 high[kCount], low[kCount];
};
template <int kCount>
struct Fragment<Precision::kSplitBFloat16, kCount> {
  Pack<__nv_bfloat16, 2> high[kCount], low[kCount];
};

// Fills a fragment from `at(i, j)`, element j of register i; tf32 registers hold one element.
template <Precision kPrecision, int kCount, class At>
__device__ inline Fragment<kPrecision, kCount> split(const At& at) {
  Fragment<kPrecision, kCount> fragment;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    if constexpr (kPrecision == Precision::kSplitBFloat16) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const float value = at(i, j);
        const __nv_bfloat16 high = __float2bfloat16_rn(value);
        fragment.high[i][j] = high;
        fragment.low[i][j] = __float2bfloat16_rn(value - __bfloat162float(high));
      }
    } else {
      const float value = at(i, 0);
      fragment.high[i] = to_tf32(value);
      if constexpr (kPrecision == Precision::kSplitTf32) {
        fragment.low[i] = to_tf32(value - fragment.high[i].value);
      }
    }
  }
  return fragment;
}

// The left operand, 16 rows.
template <Precision kPrecision, class At>
__device__ inline Fragment<kPrecision, 4> left_operand(const At& at) {
  const int g = lane_index() / 4, t = lane_index() % 4;
  return split<kPrecision, 4>([&](int i, int j) {
    const int row = g + 8 * (i % 2);
    if constexpr (kPrecision == Precision::kSplitBFloat16) {
      return at(row, 2 * t + 8 * (i / 2) + j);
    } else {
      return at(row, t + 4 * (i / 2));
    }
  });
}

// The right operand, 8 columns.
template <Precision kPrecision, class At>
__device__ inline Fragment<kPrecision, 2> right_operand(const At& at) {
  const int g = lane_index() / 4, t = lane_index() % 4;
  return split<kPrecision, 2>([&](int i, int j) {
    if constexpr (kPrecision == Precision::kSplitBFloat16) {
      return at(2 * t + 8 * i + j, g);
    } else {
      return at(t + 4 * i, g);
    }
  });
}

__device__ inline void multiply(float (&d)[4], const Fragment<Precision::kTf32, 4>& a,
                                const Fragment<Precision::kTf32, 2>& b) {
  mma_m16n8k8(d, a.high, b.high);
}

// The small products first: they would be lost on the sum of the large ones.
__device__ inline void multiply(float (&d)[4], const Fragment<Precision::kSplitTf32, 4>& a,
                                const Fragment<Precision::kSplitTf32, 2>& b) {
  mma_m16n8k8(d, a.low, b.high);
  mma_m16n8k8(d, a.high, b.low);
  mma_m16n8k8(d, a.high, b.high);
}

__device__ inline void multiply(float (&d)[4], const Fragment<Precision::kSplitBFloat16, 4>& a,
                                const Fragment<Precision::kSplitBFloat16, 2>& b) {
  mma_m16n8k16(d, a.low, b.high);
  mma_m16n8k16(d, a.high, b.low);
  mma_m16n8k16(d, a.high, b.high);
}

// Where element i of a lane's product d stands.
__device__ inline int product_row(int i) {
  return lane_index() / 4 + 8 * (i / 2);
}
__device__ inline int product_column(int i) {
  return 2 * (lane_index() % 4) + i % 2;
}

}  // namespace stripctx::cuda
