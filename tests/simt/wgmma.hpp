// The products of cuda/wgmma.cuh. finish_products computes them, from what the operands hold then:
// a product whose operands change meanwhile has another result, as has one whose operands were
// written without fence_operands. Until then d holds NaN.
#pragma once

#include <algorithm>
#include <array>
#include <limits>
#include <source_location>
#include <string>

#include "mma.hpp"

namespace stripctx::simt {

inline bool has_warpgroup_products() {
  return compute_capability() == 90;
}

// An operand as the hardware finds it by its descriptor (PTX ISA, asynchronous warpgroup-level
// matrix instructions).
class WarpgroupOperand {
 public:
  WarpgroupOperand(uint64_t descriptor, bool half, bool turned)
      : half_(half),
        turned_(turned),
        begin_(field(descriptor, 0)),
        eight_rows_(field(descriptor, 32)),
        row_bytes_(descriptor >> 62 == 1 ? 128 : 64) {
    if (descriptor >> 62 != 1 && descriptor >> 62 != 2) {
      running->fault("wgmma: an operand without permutation of 64 or 128 bytes");
    }
    if (begin_ % (8 * row_bytes_) >= row_bytes_) {
      running->fault("wgmma: an operand that does not begin in the first of eight rows");
    }
  }

  // Element `index` of its rows (a) or columns (b), and k.
  float at(int index, int k) const {
    const int row = turned_ ? k : index, column = turned_ ? index : k, run = row_bytes_ / 2;
    if (column >= run) running->fault("wgmma: an operand of several runs");
    int64_t address = begin_ + row % 8 * row_bytes_ + row / 8 * eight_rows_ + column * 2;
    address ^= (address >> 7 & (row_bytes_ == 128 ? 7 : 3)) << 4;
    if (address + 2 > running->shared_bytes()) running->fault("wgmma: an operand out of bounds");
    const auto read = [&]<class T>(T value) {
      memcpy(static_cast<void*>(&value), running->operands() + address, sizeof(value));
      return static_cast<float>(value);
    };
    return half_ ? read(__half{}) : read(__nv_bfloat16{});
  }

 private:
  static int field(uint64_t descriptor, int first) {
    return static_cast<int>(descriptor >> first & 0x3fff) * 16;
  }

  bool half_, turned_;
  int begin_, eight_rows_, row_bytes_;
};

// This thread's elements of a product.
inline void multiply(const Product& product, float* d) {
  constexpr int kDepth = 16;
  const int warp = running->thread() / 32 % 4, g = running->lane() / 4, t = running->lane() % 4;
  const WarpgroupOperand a(product.a, product.half, product.turned_a);
  const WarpgroupOperand b(product.b, product.half, product.turned_b);
  double left[2][kDepth], addends[kDepth + 1];
  for (int i = 0; i < 2; ++i) {
    for (int k = 0; k < kDepth; ++k) left[i][k] = a.at(16 * warp + g + 8 * i, k);
  }
  for (int j = 0; j < product.columns / 8; ++j) {
    for (int column = 0; column < 2; ++column) {
      double right[kDepth];
      for (int k = 0; k < kDepth; ++k) right[k] = b.at(8 * j + 2 * t + column, k);
      for (int i = 0; i < 2; ++i) {
        for (int k = 0; k < kDepth; ++k) addends[k] = left[i][k] * right[k];
        float& sum = d[4 * j + 2 * i + column];
        addends[kDepth] = product.adds ? sum : 0.0f;
        sum = truncated_sum(addends, kDepth + 1);
      }
    }
  }
}

}  // namespace stripctx::simt

namespace stripctx::cuda {

inline void fence_operands() {
  simt::running->fence_operands();
}

inline void begin_products(std::source_location where = std::source_location::current()) {
  const bool nothing = false;
  simt::running->exchange({"wgmma.fence", where}, &nothing, sizeof(nothing));
}

template <class T, bool kTurnedA, bool kTurnedB, int kColumns>
void multiply_async(float (&d)[kColumns / 2], uint64_t a, uint64_t b, bool adds,
                    std::source_location where = std::source_location::current()) {
  static_assert(kColumns == 32 || kColumns == 64);
  const char* name = kColumns == 32 ? "wgmma_m64n32k16" : "wgmma_m64n64k16";
  using Descriptors = std::array<uint64_t, 2>;
  const Descriptors mine{a, b};
  const simt::Gathered gathered = simt::running->exchange({name, where}, &mine, sizeof(mine));
  if (simt::read_lane<Descriptors>(gathered, 0, name) != mine) {
    simt::running->fault(std::string(name) + ": the lanes of a warp pass different operands");
  }
  simt::Products& products = simt::running->products();
  if (products.begun.empty()) {
    products.sum = d;
    products.before.assign(d, d + kColumns / 2);
    std::fill(d, d + kColumns / 2, std::numeric_limits<float>::quiet_NaN());
  } else if (products.sum != d) {
    simt::running->fault(std::string(name) + ": two sums at a time");
  }
  products.begun.push_back({kColumns, std::is_same_v<T, __half>, kTurnedA, kTurnedB, adds, a, b});
  if (simt::tracing && simt::running->lane() == 0) {  // a warp's share, 128 bytes at a time
    simt::tracer().operand(64 * 16 * 2 / 4);
    simt::tracer().operand(kColumns * 16 * 2 / 4);
  }
}

template <int kCount>
void finish_products(float (&d)[kCount],
                     std::source_location where = std::source_location::current()) {
  const bool nothing = false;
  simt::running->exchange({"wgmma.wait_group", where}, &nothing, sizeof(nothing));
  simt::Products& products = simt::running->products();
  if (products.begun.empty()) return;
  if (products.sum != d) simt::running->fault("wgmma.wait_group: another sum than that begun");
  std::copy(products.before.begin(), products.before.end(), d);
  for (const simt::Product& product : products.begun) simt::multiply(product, d);
  products.begun.clear();
}

}  // namespace stripctx::cuda
