// The order in which threads run if CUDA does not define it. A correct kernel gives the same bits
// in every order; one that lacks a barrier does not.
#pragma once

#include <cstdint>
#include <numeric>
#include <string>

namespace stripctx::simt {

struct Order {
  enum class Kind { kAscending, kDescending, kRandom };
  Kind kind = Kind::kAscending;
  uint64_t seed = 0;
};

// Accepts "ascending", "descending", "random" and "random:seed"; else throws std::runtime_error.
Order parse_order(const std::string& text);

// The order of the next launches: the last one set, else STRIPCTX_SIMT_ORDER, else ascending.
Order current_order();
void set_order(const Order& order);

// xorshift64*: small, and with the same numbers on every platform.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15u + 0x2545f4914f6cdd1du) {
    if (state_ == 0) state_ = 1;
  }
  uint64_t next() {
    state_ ^= state_ >> 12;
    state_ ^= state_ << 25;
    state_ ^= state_ >> 27;
    return (state_ * 0x2545f4914f6cdd1du) >> 16;
  }

 private:
  uint64_t state_;
};

// A permutation of 0 ... count - 1.
class Permutation {
 public:
  Permutation() = default;
  Permutation(const Order& order, int64_t count, Random& random) : count_(count) {
    if (order.kind == Order::Kind::kDescending) {
      start_ = step_ = count - 1;
    } else if (order.kind == Order::Kind::kRandom && count > 1) {
      start_ = static_cast<int64_t>(random.next()) % count;
      do {
        step_ = 1 + static_cast<int64_t>(random.next()) % (count - 1);
      } while (std::gcd(step_, count) != 1);
    }
  }
  int64_t operator[](int64_t i) const {
    return static_cast<int64_t>((static_cast<unsigned __int128>(i) * step_ + start_) % count_);
  }

 private:
  int64_t count_ = 1, start_ = 0, step_ = 1;
};

// A permutation of the 32 lanes of a warp, quick to compute. Odd steps are coprime to 32.
class LanePermutation {
 public:
  LanePermutation() = default;
  LanePermutation(const Order& order, Random& random) {
    if (order.kind == Order::Kind::kDescending) {
      start_ = step_ = 31;
    } else if (order.kind == Order::Kind::kRandom) {
      const uint64_t bits = random.next();
      start_ = bits & 31;
      step_ = bits >> 8 | 1;
    }
  }
  int operator[](int i) const {
    return static_cast<int>((static_cast<uint64_t>(i) * step_ + start_) & 31);
  }

 private:
  uint64_t start_ = 0, step_ = 1;
};

}  // namespace stripctx::simt
