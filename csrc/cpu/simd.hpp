// Vectors of the machine's register width, using the compiler's vector types. The tail of a loop
// runs the same arithmetic on a partly filled vector, so an element's result does not depend on its
// position in the array.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX512F__) || defined(__F16C__)
#include <immintrin.h>
#endif

#include "core/dispatch.hpp"
#include "cpu/types.hpp"

namespace stripctx::cpu {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <class A>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(A));

template <class A, int Bytes = kVectorBytes>
struct VectorOf {
  typedef A type __attribute__((vector_size(Bytes)));
};

// Arithmetic runs on Vec<float> or Vec<double>.
template <class A>
using Vec = typename VectorOf<A>::type;

template <class A>
inline Vec<A> splat(A value) {
  return value - Vec<A>{};
}

// Returns the value unchanged but opaque to the optimiser. Three uses: a value that is needed twice
// stays in a register, where g++ would load or broadcast it from memory again; a product is rounded
// before it is added, not contracted to a fused multiply-add; and all loads of a group are issued
// before the first use of any.
template <class V>
inline V opaque(V value) {
#if defined(__x86_64__)
  asm("" : "+v"(value));
#elif defined(__aarch64__)
  asm("" : "+w"(value));
#else
  asm("" : "+m"(value));
#endif
  return value;
}

namespace detail {

using Half16 = typename VectorOf<uint16_t, kLanes<float> * 2>::type;
using Word32 = typename VectorOf<uint32_t>::type;
using Integer32 = typename VectorOf<int32_t>::type;

// The memory image of kLanes<Accumulate<T>> elements of type T; below, its conversions.
template <class T>
using Image = std::conditional_t<sizeof(T) == 2, Half16, Vec<Accumulate<T>>>;

// One instruction, where the compiler's conversion between 16 and 32 bits takes several.
inline Word32 zero_extend(const Half16& image) {
#if defined(__AVX512F__)
  return (Word32)_mm512_cvtepu16_epi32((__m256i)image);
#elif defined(__AVX2__)
  return (Word32)_mm256_cvtepu16_epi32((__m128i)image);
#else
  return __builtin_convertvector(image, Word32);
#endif
}

inline Half16 low_halves(const Word32& word) {
#if defined(__AVX512F__)
  return (Half16)_mm512_cvtepi32_epi16((__m512i)word);
#else
  return __builtin_convertvector(word, Half16);
#endif
}

// float and double are stored as they are.
template <class V>
inline const V& widen(const void*, const V& image) {
  return image;
}
template <class V>
inline const V& narrow(const void*, const V& value) {
  return value;
}

inline Vec<float> widen(const BFloat16*, const Half16& image) {
  return (Vec<float>)(zero_extend(image) << 16);
}

inline Half16 narrow(const BFloat16*, const Vec<float>& value) {
#if defined(__AVX512BF16__) && defined(__AVX512DQ__)
  constexpr int kSubnormal = 0x20;  // the instruction flushes subnormals to zero
  if (_mm512_fpclass_ps_mask((__m512)value, kSubnormal) == 0) [[likely]] {
    return (Half16)_mm512_cvtneps_pbh((__m512)value);
  }
#endif
  const Word32 word = (Word32)value;
  const Word32 rounded = (word + 0x7fff + ((word >> 16) & 1)) >> 16;
  const Word32 quiet = Word32{} + 0x7fc0;
  return low_halves(value == value ? rounded : quiet);
}

inline Vec<float> widen(const Float16*, const Half16& image) {
#if defined(__AVX512F__)
  return (Vec<float>)_mm512_maskz_cvtph_ps(0xffff, (__m256i)image);  // g++ warns without a mask
#elif defined(__F16C__)
  return (Vec<float>)_mm256_cvtph_ps((__m128i)image);
#else
  const Word32 half = zero_extend(image), exponent = half & 0x7c00, shifted = (half & 0x7fff) << 13;
  const Vec<float> fraction = __builtin_convertvector((Integer32)(half & 0x3ff), Vec<float>);
  const Word32 subnormal = (Word32)(fraction * 0x1p-24f);
  const Word32 other = exponent == 0x7c00 ? shifted | 0x7f800000 : shifted + (112 << 23);
  return (Vec<float>)((exponent == 0 ? subnormal : other) | (half & 0x8000) << 16);
#endif
}

inline Half16 narrow(const Float16*, const Vec<float>& value) {
#if defined(__AVX512F__)
  return (Half16)_mm512_cvtps_ph((__m512)value, _MM_FROUND_TO_NEAREST_INT);
#elif defined(__F16C__)
  return (Half16)_mm256_cvtps_ph((__m256)value, _MM_FROUND_TO_NEAREST_INT);
#else
  const Word32 word = (Word32)value, magnitude = word & 0x7fffffff;
  const Word32 infinite = Word32{} + 0x7c00, nan = 0x7e00 | ((magnitude >> 13) & 0x1ff);
  const Word32 normal = (magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  // below 2^-14, in steps of 2^-24
  const Word32 subnormal = (Word32)((Vec<float>)magnitude + 0.5f) - 0x3f000000;
  Word32 half = magnitude < 0x38800000 ? subnormal : normal;
  half = magnitude >= 0x477ff000 ? infinite : half;  // from 65520: rounds to 2^16
  half = value == value ? half : nan;
  return low_halves((word >> 16 & 0x8000) | half);
#endif
}

}  // namespace detail

// kLanes<Accumulate<T>> elements from p, widened.
template <class T>
inline Vec<Accumulate<T>> load(const T* p) {
  detail::Image<T> image;
  std::memcpy(&image, p, sizeof(image));
  return detail::widen(p, image);
}

template <class T>
inline void store(T* p, const Vec<Accumulate<T>>& value) {
  const detail::Image<T> image = detail::narrow(p, value);
  std::memcpy(p, &image, sizeof(image));
}

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#define STRIPCTX_MASKS
#endif

// The first `count` elements from p, zero beyond.
template <class T>
inline Vec<Accumulate<T>> load(const T* p, int count) {
  detail::Image<T> image{};
#if defined(STRIPCTX_MASKS)
  const auto mask = static_cast<__mmask16>((1u << count) - 1);
  if constexpr (sizeof(T) == 8) image = (Vec<double>)_mm512_maskz_loadu_pd(mask, p);
  if constexpr (sizeof(T) == 4) image = (Vec<float>)_mm512_maskz_loadu_ps(mask, p);
  if constexpr (sizeof(T) == 2) image = (detail::Half16)_mm256_maskz_loadu_epi16(mask, p);
#else
  std::memcpy(&image, p, count * sizeof(T));
#endif
  return detail::widen(p, image);
}

template <class T>
inline void store(T* p, const Vec<Accumulate<T>>& value, int count) {
  const detail::Image<T> image = detail::narrow(p, value);
#if defined(STRIPCTX_MASKS)
  const auto mask = static_cast<__mmask16>((1u << count) - 1);
  if constexpr (sizeof(T) == 8) _mm512_mask_storeu_pd(p, mask, (__m512d)image);
  if constexpr (sizeof(T) == 4) _mm512_mask_storeu_ps(p, mask, (__m512)image);
  if constexpr (sizeof(T) == 2) _mm256_mask_storeu_epi16(p, mask, (__m256i)image);
#else
  std::memcpy(p, &image, count * sizeof(T));
#endif
}

// One element, widened.
template <class T>
inline Accumulate<T> value_of(const T* p) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    return std::bit_cast<float>(uint32_t{p->bits} << 16);
  } else if constexpr (std::is_same_v<T, Float16>) {
    return detail::widen(p, detail::Half16{} + p->bits)[0];
  } else {
    return *p;
  }
}

// Calls body(i, load, store) for every vector of [0, count): full ones first, then the tail, with
// loads and stores that access only its elements.
template <class A, class Body>
inline void for_vectors(int64_t count, Body&& body) {
  constexpr int lanes = kLanes<A>;
  const auto load_full = [](const auto* p) { return load(p); };
  const auto store_full = [](auto* p, const Vec<A>& value) { store(p, value); };
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) body(i, load_full, store_full);
  if (i < count) {
    const int rest = static_cast<int>(count - i);
    const auto load_rest = [rest](const auto* p) { return load(p, rest); };
    const auto store_rest = [rest](auto* p, const Vec<A>& value) { store(p, value, rest); };
    body(i, load_rest, store_rest);
  }
}

// The same with kTogether vectors at a time, for bodies with an inner loop that keeps sums in
// registers. Calls body.operator()<vectors>(i, load, store); remaining vectors come one at a time.
template <class A, int kTogether, class Body>
inline void for_vector_groups(int64_t count, Body&& body) {
  constexpr int64_t group = kTogether * kLanes<A>;
  const int64_t grouped = count / group * group;
  const auto load_full = [](const auto* p) { return load(p); };
  const auto store_full = [](auto* p, const Vec<A>& value) { store(p, value); };
  for (int64_t i = 0; i < grouped; i += group) {
    body.template operator()<kTogether>(i, load_full, store_full);
  }
  for_vectors<A>(count - grouped, [&](int64_t i, auto load_some, auto store_some) {
    body.template operator()<1>(grouped + i, load_some, store_some);
  });
}

// exp(x) for x <= 0, to 2 units in the last place; 0 below the smallest normal number.
inline Vec<float> exp_nonpositive(const Vec<float>& x) {
  constexpr float kLog2E = 1.44269504088896341f;
  constexpr float kLn2High = 0.693359375f;             // exact in 10 bits: n * kLn2High is exact
  constexpr float kLn2Low = -2.12194440054690583e-4f;  // ln 2 - kLn2High
  constexpr float kRound = 12582912.0f;                // 1.5 * 2^23: adding it rounds to an integer
  constexpr float kSmallest = -87.33654f;              // log(2^-126)
  const Vec<float> lowest = splat(kSmallest);
  const Vec<float> clamped = x < lowest ? lowest : x;
  const Vec<float> shifted = clamped * kLog2E + kRound;
  const Vec<float> n = shifted - kRound;
  const Vec<float> r = (clamped - n * kLn2High) - n * kLn2Low;
  Vec<float> p = r * (1.0f / 5040) + 1.0f / 720;  // Taylor: |r| <= ln(2)/2, error below 2^-27
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const detail::Word32 exponent = ((detail::Word32)shifted + 127)
                                  << 23;  // n stands in the low bits
  const Vec<float> result = p * (Vec<float>)exponent;
  return x < lowest ? Vec<float>{} : result;
}

inline Vec<double> exp_nonpositive(const Vec<double>& x) {
  Vec<double> result;
  for (int i = 0; i < kLanes<double>; ++i) result[i] = std::exp(x[i]);
  return result;
}

// log(1 + x) for x in [0, 1], to 2 units in the last place, small x included: 2 atanh(x / (2 + x))
// by its series.
inline Vec<float> log1p_to_one(const Vec<float>& x) {
  const Vec<float> s = x / (x + 2.0f), square = s * s;
  Vec<float> p = square * (1.0f / 15) + 1.0f / 13;  // s <= 1/3: the rest is below 2^-27
  p = p * square + 1.0f / 11;
  p = p * square + 1.0f / 9;
  p = p * square + 1.0f / 7;
  p = p * square + 1.0f / 5;
  p = p * square + 1.0f / 3;
  return 2.0f * (s + s * square * p);
}

inline Vec<double> log1p_to_one(const Vec<double>& x) {
  Vec<double> result;
  for (int i = 0; i < kLanes<double>; ++i) result[i] = std::log1p(x[i]);
  return result;
}

// log(x) for x >= 1, finite or NaN; NaN gives NaN.
inline Vec<float> log_from_one(const Vec<float>& x) {
  constexpr float kLn2 = 0.693147180559945f;
  const detail::Word32 bits = (detail::Word32)x;
  const auto exponent = (detail::Integer32)(bits >> 23) - 127;
  const Vec<float> mantissa = (Vec<float>)((bits & 0x007fffff) | 0x3f800000);
  const Vec<float> result =
      __builtin_convertvector(exponent, Vec<float>) * kLn2 + log1p_to_one(mantissa - 1.0f);
  return x == x ? result : x;
}

inline Vec<double> log_from_one(const Vec<double>& x) {
  Vec<double> result;
  for (int i = 0; i < kLanes<double>; ++i) result[i] = std::log(x[i]);
  return result;
}

// sigmoid(z) and its slope s(1 - s), both without cancellation: with e = exp(-|z|), s is 1 / (1 +
// e) or e / (1 + e), and the slope is e / (1 + e)^2.
template <class V>
struct Sigmoid {
  V gate, slope;
};

template <class V>
inline Sigmoid<V> sigmoid(const V& z) {
  const V e = exp_nonpositive(z < 0 ? z : -z);
  const V inverse = 1 / (1 + e);
  return {z < 0 ? e * inverse : inverse, e * inverse * inverse};
}

}  // namespace stripctx::cpu
