// Products of float32 matrices on tensor cores (mma.cuh) at three precisions. An operand is given
// by a function of its elements, `at(row, k)` or `at(k, column)`. Elements are split into a high
// part, which the tensor core's type represents, and a low part for the remainder; three products
// (low x high, high x low, high x high) then replace one.
//
//   kTf32            one product, 10 bits of mantissa
//   kSplitTf32       high and low tf32: 21 bits, float32 in effect ("3xTF32")
//   kSplitBFloat16   high and low bfloat16: 16 bits, more than float16 or bfloat16 maps hold, with
//                    float32's range, at half the cost of kSplitTf32
#pragma once

#include "cuda/mma.cuh"

namespace stripctx::cuda {

enum class Precision { kTf32, kSplitTf32, kSplitBFloat16 };

// Length along k of one mma.
template <Precision kPrecision>
constexpr int kProductDepth = kPrecision == Precision::kSplitBFloat16 ? 16 : 8;

// One lane's share of an operand: kCount registers for each part.
template <Precision kPrecision, int kCount>
struct Fragment {
  Tf32 high[kCount], low[kCount];
};
template <int kCount>
struct Fragment<Precision::kSplitBFloat16, kCount> {
  Pack<__nv_bfloat16, 2> high[kCount], low[kCount];
};

// Fills a fragment from at(i, j), element j of register i. tf32 registers hold one element.
template <Precision kPrecision, int kCount, class At>
__device__ inline Fragment<kPrecision, kCount> split(const At& at) {
  Fragment<kPrecision, kCount> fragment;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    if constexpr (kPrecision == Precision::kSplitBFloat16) {
      const float first = at(i, 0), second = at(i, 1);
      const auto high = pair_from_accumulate<__nv_bfloat16>(first, second);
      fragment.high[i] = high;
      fragment.low[i] = pair_from_accumulate<__nv_bfloat16>(first - __bfloat162float(high[0]),
                                                            second - __bfloat162float(high[1]));
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

// Sets register i of a tf32 fragment.
template <Precision kPrecision, int kCount>
__device__ inline void set(Fragment<kPrecision, kCount>& fragment, int i, float value) {
  if constexpr (kPrecision == Precision::kSplitTf32) {
    const QuickParts parts = quick_split(value);
    fragment.high[i] = parts.high;
    fragment.low[i] = parts.low;
  } else {
    fragment.high[i] = to_tf32(value);
  }
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

// d += a b. A tensor core truncates towards zero when it adds, and in an accumulator that lives
// over many steps these errors add up to many units in the last place. So, unless kTf32 is enough,
// the products are summed from zero in a fragment of their own, the small ones first, which would
// be lost beside the large ones, and then added to d with rounding to nearest.
template <Precision kPrecision>
__device__ inline void multiply(float (&d)[4], const Fragment<kPrecision, 4>& a,
                                const Fragment<kPrecision, 2>& b) {
  if constexpr (kPrecision == Precision::kTf32) {
    mma_m16n8k8(d, a.high, b.high);
  } else {
    float sum[4] = {};
    if constexpr (kPrecision == Precision::kSplitTf32) {
      mma_m16n8k8(sum, a.low, b.high);
      mma_m16n8k8(sum, a.high, b.low);
      mma_m16n8k8(sum, a.high, b.high);
    } else {
      mma_m16n8k16(sum, a.low, b.high);
      mma_m16n8k16(sum, a.high, b.low);
      mma_m16n8k16(sum, a.high, b.high);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) d[i] += sum[i];
  }
}

// The same for tf32, but accumulated in the tensor core: only for sums of a few steps.
template <Precision kPrecision>
__device__ inline void multiply_short(float (&d)[4], const Fragment<kPrecision, 4>& a,
                                      const Fragment<kPrecision, 2>& b) {
  if constexpr (kPrecision == Precision::kSplitTf32) {
    mma_m16n8k8(d, a.low, b.high);
    mma_m16n8k8(d, a.high, b.low);
  }
  mma_m16n8k8(d, a.high, b.high);
}

// Row and column of element i of a lane's product d.
__device__ inline int product_row(int i) {
  return lane_index() / 4 + 8 * (i / 2);
}
__device__ inline int product_column(int i) {
  return 2 * (lane_index() % 4) + i % 2;
}

}  // namespace stripctx::cuda
