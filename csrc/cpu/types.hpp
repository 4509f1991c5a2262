// What the CPU calls the half types. Memory holds them; arithmetic is in float.
#pragma once

#include <bit>
#include <cstdint>

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

struct Types {
  using float16 = _Float16;
  using bfloat16 = BFloat16;
};

}  // namespace stripctx::cpu
