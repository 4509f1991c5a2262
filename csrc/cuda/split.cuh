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

// Sets register i of a fragment of tf32.
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

// d += a b. A tensor core cuts off what does not fit where it adds, always towards zero, and in an
// accumulator that lives over many steps the cuts add up to many units in its last place. So where
// more than tf32's bits are wanted, the products form in a fragment of zeros, the small ones first,
// which would be lost on the large ones, and join d by additions that round to the nearest.
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

// The same products of tf32 added in the tensor core: for the few steps of a short sum only.
template <Precision kPrecision>
__device__ inline void multiply_short(float (&d)[4], const Fragment<kPrecision, 4>& a,
                                      const Fragment<kPrecision, 2>& b) {
  if constexpr (kPrecision == Precision::kSplitTf32) {
    mma_m16n8k8(d, a.low, b.high);
    mma_m16n8k8(d, a.high, b.low);
  }
  mma_m16n8k8(d, a.high, b.high);
}

// Where element i of a lane's product d stands.
__device__ inline int product_row(int i) {
  return lane_index() / 4 + 8 * (i / 2);
}
__device__ inline int product_column(int i) {
  return 2 * (lane_index() % 4) + i % 2;
}

}  // namespace stripctx::cuda
