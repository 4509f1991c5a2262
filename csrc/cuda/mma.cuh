// Small matrix products by a warp, d += a b with float32 accumulators: on tensor cores from sm_80
// on, with shuffles and fused multiply-adds on older chips, and in the emulator by
// tests/simt/mma.hpp. All 32 lanes must call. Fragments have the layout of PTX's mma.sync.aligned,
// row.col: with g = lane / 4, t = lane % 4,
//
//   m16n8k8, tf32          a[i] = A[g + 8 (i % 2)][t + 4 (i / 2)]      b[i] = B[t + 4 i][g]
//   m16n8k16, half, bf16   a[i] = A[g + 8 (i % 2)][2 t + 8 (i / 2) + {0, 1}]
//                          b[i] = B[2 t + 8 i + {0, 1}][g]
//   both                   d[i] = D[g + 8 (i / 2)][2 t + i % 2]
//
// The order of additions depends on the hardware: results of these paths agree up to rounding, not
// bit for bit.
#pragma once

#include <cfloat>

#include "cuda/device.cuh"

namespace stripctx::cuda {

// Whether products run on tensor cores on the device that this code is compiled for.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
constexpr bool has_tensor_cores = false;
#else
constexpr bool has_tensor_cores = true;
#endif

// On the host: whether the current device has them.
inline bool device_has_tensor_cores() {
#if defined(__CUDACC__)
  return device_attribute(cudaDevAttrComputeCapabilityMajor) >= 8;
#else
  return true;
#endif
}

// A float rounded to tf32 (10 bits of mantissa) by to_tf32. The bits below are 0, so the
// difference value - to_tf32(value).value is exact.
struct Tf32 {
  float value;
};

// Rounds to nearest, ties away from zero, as cvt.rna.tf32 does. ptxas expands that instruction to
// the same instructions on all chips from sm_80 to sm_120; older chips lack it.
__device__ inline Tf32 to_tf32(float value) {
  unsigned bits;
  memcpy(&bits, &value, sizeof(bits));
  if (fabsf(value) <= FLT_MAX) bits += 0x1000u;
  bits &= 0xffffe000u;
  // NaN with a payload only in the low bits would become infinity
  if (value != value) bits = 0x7fffffffu;
  Tf32 rounded;
  memcpy(&rounded, &bits, sizeof(bits));
  return rounded;
}

// Splits a float in two parts with fewer instructions than `split`. The high part is rounded to
// nearest, ties away from zero; the low part is truncated by the tensor core, which ignores the
// bits below tf32's. If value is NaN or infinite, the low part is NaN.
struct QuickParts {
  Tf32 high, low;
};
__device__ inline QuickParts quick_split(float value) {
  unsigned bits;
  memcpy(&bits, &value, sizeof(bits));
  bits = (bits + 0x1000u) & 0xffffe000u;
  QuickParts parts;
  memcpy(&parts.high, &bits, sizeof(bits));
  parts.low.value = value - parts.high.value;
#if !defined(__CUDACC__)  // as the tensor core does
  memcpy(&bits, &parts.low, sizeof(bits));
  bits &= 0xffffe000u;
  memcpy(&parts.low, &bits, sizeof(bits));
#endif
  return parts;
}

// mma_m16n8k8 without tensor cores: each lane reads the rows and columns of its four sums by
// shuffles.
__device__ inline void mma_m16n8k8_plain(float (&d)[4], const Tf32 (&a)[4], const Tf32 (&b)[2]) {
  const int g = lane_index() / 4, t = lane_index() % 4;
#pragma unroll
  for (int k = 0; k < 8; ++k) {
    const int half = k / 4;
    float row[2], column[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      row[i] = __shfl_sync(kFullMask, a[2 * half + i].value, 4 * g + k % 4);
      column[i] = __shfl_sync(kFullMask, b[half].value, 4 * (2 * t + i) + k % 4);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) d[i] = fmaf(row[i / 2], column[i % 2], d[i]);
  }
}

template <class T>
__device__ inline void mma_m16n8k16_plain(float (&d)[4], const Pack<T, 2> (&a)[4],
                                          const Pack<T, 2> (&b)[2]) {
  const int g = lane_index() / 4, t = lane_index() % 4;
  const auto fetch = [](const Pack<T, 2>& pair, int lane) {
    unsigned bits;
    memcpy(&bits, &pair, sizeof(bits));
    bits = __shfl_sync(kFullMask, bits, lane);
    Pack<T, 2> fetched;
    memcpy(&fetched, &bits, sizeof(bits));
    return fetched;
  };
#pragma unroll
  for (int pair = 0; pair < 8; ++pair) {  // k = 2 pair and 2 pair + 1
    const int half = pair / 4;
    Pack<T, 2> row[2], column[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      row[i] = fetch(a[2 * half + i], 4 * g + pair % 4);
      column[i] = fetch(b[half], 4 * (2 * t + i) + pair % 4);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        d[i] = fmaf(to_accumulate(row[i / 2][j]), to_accumulate(column[i % 2][j]), d[i]);
      }
    }
  }
}

// d (16 x 8) += a (16 x 8) b (8 x 8).
__device__ inline void mma_m16n8k8(float (&d)[4], const Tf32 (&a)[4], const Tf32 (&b)[2]) {
#if !defined(__CUDACC__)
  simt::mma_m16n8k8(d, a, b);
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  const auto bits = [](Tf32 operand) { return __float_as_uint(operand.value); };
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(bits(a[0])), "r"(bits(a[1])), "r"(bits(a[2])), "r"(bits(a[3])), "r"(bits(b[0])),
        "r"(bits(b[1])));
#else
  mma_m16n8k8_plain(d, a, b);
#endif
}

// d (16 x 8) += a (16 x 16) b (16 x 8), T either half type.
template <class T>
__device__ inline void mma_m16n8k16(float (&d)[4], const Pack<T, 2> (&a)[4],
                                    const Pack<T, 2> (&b)[2]) {
  static_assert(std::is_same_v<T, __half> || std::is_same_v<T, __nv_bfloat16>);
#if !defined(__CUDACC__)
  simt::mma_m16n8k16(d, a, b);
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  const auto bits = [](const Pack<T, 2>& pair) {
    unsigned word;
    memcpy(&word, &pair, sizeof(word));
    return word;
  };
  if constexpr (std::is_same_v<T, __half>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(bits(a[0])), "r"(bits(a[1])), "r"(bits(a[2])), "r"(bits(a[3])), "r"(bits(b[0])),
          "r"(bits(b[1])));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(bits(a[0])), "r"(bits(a[1])), "r"(bits(a[2])), "r"(bits(a[3])), "r"(bits(b[0])),
          "r"(bits(b[1])));
  }
#else
  mma_m16n8k16_plain(d, a, b);
#endif
}

// Loads four 8 x 8 matrices of half-type elements from shared memory (ldmatrix). Lane 8 j + r
// passes the offset of row r of matrix j, aligned to 16 bytes. to[j] = M_j[g][2 t + {0, 1}], or
// M_j[2 t + {0, 1}][g] if kTurned.
template <bool kTurned, class T>
__device__ inline void load_matrices(Pack<T, 2> (&to)[4], const Shared<T>& from, int row) {
  static_assert(sizeof(T) == 2);
#if !defined(__CUDACC__)
  simt::load_matrices<kTurned>(to, from, row);
#else
  const auto address = static_cast<unsigned>(__cvta_generic_to_shared(&from[row]));
  unsigned word[4];
  if constexpr (kTurned) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(word[0]), "=r"(word[1]), "=r"(word[2]), "=r"(word[3])
                 : "r"(address)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(word[0]), "=r"(word[1]), "=r"(word[2]), "=r"(word[3])
                 : "r"(address)
                 : "memory");
  }
  memcpy(&to, &word, sizeof(word));
#endif
}

}  // namespace stripctx::cuda
