// Half precision types on the CPU. They are used for storage only; arithmetic is in float.
#pragma once

#include <bit>
#include <cstdint>

#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace stripctx::cpu {

struct BFloat16 {
  uint16_t bits;

  BFloat16() = default;
  explicit BFloat16(float value) {
    const uint32_t word = std::bit_cast<uint32_t>(value);
    const uint32_t rounded = (word + 0x7fff + ((word >> 16) & 1)) >> 16;
    bits = value != value ? 0x7fc0 : static_cast<uint16_t>(rounded);
  }
  explicit operator float() const {
    return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
  }
};

// A struct as well: g++ 11 and clang 14 have no _Float16 on x86.
struct Float16 {
  uint16_t bits;

  Float16() = default;
  explicit Float16(float value) : bits(round(value)) {}
  explicit operator float() const { return widen(bits); }

 private:
#if defined(__F16C__)
  static uint16_t round(float value) { return _cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT); }
  static float widen(uint16_t bits) { return _cvtsh_ss(bits); }
#elif defined(__aarch64__)
  static uint16_t round(float value) {
    return std::bit_cast<uint16_t>(static_cast<_Float16>(value));
  }
  static float widen(uint16_t bits) { return std::bit_cast<_Float16>(bits); }
#else
  static uint16_t round(float value) {
    const uint32_t word = std::bit_cast<uint32_t>(value), magnitude = word & 0x7fffffff;
    uint32_t half;
    if (magnitude > 0x7f800000) {
      half = 0x7e00 | ((magnitude >> 13) & 0x1ff);
    } else if (magnitude >= 0x477ff000) {  // from 65520: rounds to 2^16, which is infinity
      half = 0x7c00;
    } else if (magnitude < 0x38800000) {  // below 2^-14: subnormal, in steps of 2^-24
      half = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + 0.5f) - 0x3f000000;
    } else {
      half = (magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13;
    }
    return static_cast<uint16_t>((word >> 16 & 0x8000) | half);
  }
  static float widen(uint16_t bits) {
    const uint32_t exponent = bits >> 10 & 31, fraction = bits & 0x3ff;
    uint32_t word;
    if (exponent == 0) {
      word = std::bit_cast<uint32_t>(static_cast<float>(fraction) * 0x1p-24f);
    } else if (exponent == 31) {
      word = 0x7f800000 | fraction << 13 | (fraction ? 0x400000 : 0);
    } else {
      word = (exponent + 112) << 23 | fraction << 13;
    }
    return std::bit_cast<float>((bits & 0x8000u) << 16 | word);
  }
#endif
};

struct Types {
  using float16 = Float16;
  using bfloat16 = BFloat16;
};

}  // namespace stripctx::cpu
