// Permutations of vector lanes. g++ and clang have different builtins, and only g++'s accepts
// indices that are not compile-time constants.
#pragma once

#include <utility>

#include "cpu/simd.hpp"

namespace stripctx::cpu {

// An integer for every lane of Vec<A>.
template <class A>
using Index = std::conditional_t<sizeof(A) == 8, int64_t, int32_t>;
template <class A>
using IndexVec = typename VectorOf<Index<A>>::type;

// Lane i of the result is lane Choice{}(i) of the concatenation of `first` and `second`.
template <class A, class Choice>
inline Vec<A> shuffle(const Vec<A>& first, const Vec<A>& second, Choice) {
  return [&]<int... kLane>(std::integer_sequence<int, kLane...>) {
#if defined(__clang__)
    return __builtin_shufflevector(first, second, Choice{}(kLane)...);
#else
    return __builtin_shuffle(first, second, IndexVec<A>{Choice{}(kLane)...});
#endif
  }(std::make_integer_sequence<int, kLanes<A>>{});
}

// a0 b0 a1 b1 ... from the lower halves of a and b.
template <class A>
inline Vec<A> interleave_low(const Vec<A>& a, const Vec<A>& b) {
  return shuffle<A>(a, b, [](int i) { return i / 2 + i % 2 * kLanes<A>; });
}

// The same from the upper halves.
template <class A>
inline Vec<A> interleave_high(const Vec<A>& a, const Vec<A>& b) {
  return shuffle<A>(a, b, [](int i) { return (kLanes<A> + i) / 2 + i % 2 * kLanes<A>; });
}

// a0 a2 ... b0 b2 ...
template <class A>
inline Vec<A> even_lanes(const Vec<A>& a, const Vec<A>& b) {
  return shuffle<A>(a, b, [](int i) { return 2 * i; });
}

// a1 a3 ... b1 b3 ...
template <class A>
inline Vec<A> odd_lanes(const Vec<A>& a, const Vec<A>& b) {
  return shuffle<A>(a, b, [](int i) { return 2 * i + 1; });
}

// Sums the lanes in a fixed tree: the upper half is added to the lower half.
template <class A, int kHalf = kLanes<A> / 2>
inline A sum_lanes(const Vec<A>& value) {
  if constexpr (kHalf == 0) {
    return value[0];
  } else {
    const Vec<A> upper = shuffle<A>(value, value, [](int i) { return i + kHalf; });
    return sum_lanes<A, kHalf / 2>(value + upper);
  }
}

// Lane i of the result is lane choice[i] of the concatenation of `first` and `second`.
template <class A>
inline Vec<A> permute(const Vec<A>& first, const Vec<A>& second, const IndexVec<A>& choice) {
#if !defined(__clang__)
  return __builtin_shuffle(first, second, choice);
#else
#if defined(__AVX512F__)
  if constexpr (sizeof(A) == 4) {
    return (Vec<A>)_mm512_permutex2var_ps((__m512)first, (__m512i)choice, (__m512)second);
  }
  if constexpr (sizeof(A) == 8) {
    return (Vec<A>)_mm512_permutex2var_pd((__m512d)first, (__m512i)choice, (__m512d)second);
  }
#elif defined(__AVX2__)
  if constexpr (sizeof(A) == 4) {
    const auto low = (Vec<A>)_mm256_permutevar8x32_ps((__m256)first, (__m256i)choice);
    const auto high = (Vec<A>)_mm256_permutevar8x32_ps((__m256)second, (__m256i)choice);
    return choice < kLanes<A> ? low : high;
  }
#endif
  Vec<A> result{};
  for (int i = 0; i < kLanes<A>; ++i) {
    result[i] = choice[i] < kLanes<A> ? first[choice[i]] : second[choice[i] - kLanes<A>];
  }
  return result;
#endif
}

// Lane i of the result is lane choice[i] of `value`.
template <class A>
inline Vec<A> permute(const Vec<A>& value, const IndexVec<A>& choice) {
  return permute<A>(value, value, choice);
}

}  // namespace stripctx::cpu
