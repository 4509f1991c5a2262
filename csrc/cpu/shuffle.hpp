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

namespace detail {

// Selects lanes from the concatenation of `first` and `second` by compile-time indices.
template <class A, int... kLane>
inline Vec<A> pick(const Vec<A>& first, const Vec<A>& second,
                   std::integer_sequence<int, kLane...>) {
#if defined(__clang__)
  return __builtin_shufflevector(first, second, kLane...);
#else
  return __builtin_shuffle(first, second, IndexVec<A>{kLane...});
#endif
}

template <class A, int kFrom, int... kLane>
inline Vec<A> interleave(const Vec<A>& first, const Vec<A>& second,
                         std::integer_sequence<int, kLane...>) {
  constexpr int count = sizeof...(kLane);
  return pick<A>(first, second,
                 std::integer_sequence<int, (kFrom + kLane / 2 + kLane % 2 * count)...>{});
}

template <class A, int kFrom, int... kLane>
inline Vec<A> every_second(const Vec<A>& first, const Vec<A>& second,
                           std::integer_sequence<int, kLane...>) {
  return pick<A>(first, second, std::integer_sequence<int, (kFrom + 2 * kLane)...>{});
}

template <class A>
using EachLane = std::make_integer_sequence<int, kLanes<A>>;

}  // namespace detail

// a0 b0 a1 b1 ... from the lower halves of a and b.
template <class A>
inline Vec<A> interleave_low(const Vec<A>& a, const Vec<A>& b) {
  return detail::interleave<A, 0>(a, b, detail::EachLane<A>{});
}

// The same from the upper halves.
template <class A>
inline Vec<A> interleave_high(const Vec<A>& a, const Vec<A>& b) {
  return detail::interleave<A, kLanes<A> / 2>(a, b, detail::EachLane<A>{});
}

// a0 a2 ... b0 b2 ...
template <class A>
inline Vec<A> even_lanes(const Vec<A>& a, const Vec<A>& b) {
  return detail::every_second<A, 0>(a, b, detail::EachLane<A>{});
}

// a1 a3 ... b1 b3 ...
template <class A>
inline Vec<A> odd_lanes(const Vec<A>& a, const Vec<A>& b) {
  return detail::every_second<A, 1>(a, b, detail::EachLane<A>{});
}

// Lane i of the result is lane choice[i] of `value`.
template <class A>
inline Vec<A> permute(const Vec<A>& value, const IndexVec<A>& choice) {
#if !defined(__clang__)
  return __builtin_shuffle(value, choice);
#else
#if defined(__AVX512F__)
  if constexpr (sizeof(A) == 4)
    return (Vec<A>)_mm512_permutexvar_ps((__m512i)choice, (__m512)value);
  if constexpr (sizeof(A) == 8)
    return (Vec<A>)_mm512_permutexvar_pd((__m512i)choice, (__m512d)value);
#elif defined(__AVX2__)
  if constexpr (sizeof(A) == 4) {
    return (Vec<A>)_mm256_permutevar8x32_ps((__m256)value, (__m256i)choice);
  }
#endif
  Vec<A> result{};
  for (int i = 0; i < kLanes<A>; ++i) result[i] = value[choice[i]];
  return result;
#endif
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
#endif
  A both[2 * kLanes<A>];
  std::memcpy(both, &first, sizeof(first));
  std::memcpy(both + kLanes<A>, &second, sizeof(second));
  Vec<A> result{};
  for (int i = 0; i < kLanes<A>; ++i) result[i] = both[choice[i]];
  return result;
#endif
}

}  // namespace stripctx::cpu
