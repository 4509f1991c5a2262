// Half precision types on the CPU, for storage only: simd.hpp converts them, and arithmetic is in
// float. Structs, because g++ 11 and clang 14 have no _Float16 on x86.
#pragma once

#include <cstdint>

namespace stripctx::cpu {

struct Float16 {
  Float16() = default;  // and no other: a cast of a number does not compile
  uint16_t bits;
};
struct BFloat16 {
  BFloat16() = default;
  uint16_t bits;
};

struct Types {
  using float16 = Float16;
  using bfloat16 = BFloat16;
};

}  // namespace stripctx::cpu
