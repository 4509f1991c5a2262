// The warp-level products of cuda/mma.cuh, which has the layout of the fragments. They gather the
// fragments of all lanes and add as a tensor core does: the products of rounded operands are exact;
// the addends, including the accumulator, are aligned to the largest and truncated, and their sum
// is truncated to float32, so towards zero in both steps. The errors of a long sum in an
// accumulator add up here as on the device.
#pragma once

#include <cmath>
#include <limits>
#include <source_location>

#include "core/pack.hpp"
#include "memory.hpp"
#include "warp.hpp"

namespace stripctx::simt {

// The sum of `count` addends, each exact in double, as a tensor core computes it. Addends keep
// kExtraBits bits below the last bit of a float with the exponent of the largest addend.
inline float truncated_sum(const double* addends, int count) {
  constexpr int kFloatBits = 24, kExtraBits = 2;
  double plain = 0, largest = 0;
  for (int k = 0; k < count; ++k) {
    plain += addends[k];
    largest = std::fmax(largest, std::fabs(addends[k]));
  }
  if (!(largest <= std::numeric_limits<double>::max()) || std::isnan(plain)) {
    return static_cast<float>(plain);  // infinities and NaN
  }
  if (largest == 0) return static_cast<float>(plain);
  int exponent = 0;
  std::frexp(largest, &exponent);
  const int unit = exponent - kFloatBits - kExtraBits;
  int64_t sum = 0;
  for (int k = 0; k < count; ++k) {
    sum += static_cast<int64_t>(std::scalbn(addends[k], -unit));  // truncates
  }
  const double exact = std::scalbn(static_cast<double>(sum), unit);
  const float nearest = static_cast<float>(exact);
  return std::fabs(static_cast<double>(nearest)) > std::fabs(exact) ? std::nextafter(nearest, 0.0f)
                                                                    : nearest;
}

// The product of a warp with fragments A and B. at(register, element) is an element of a register
// of a fragment.
template <class A, class B, class At>
void mma(const Site& site, float (&d)[4], const A& a, const B& b, int depth, At&& at) {
  struct Fragments {
    A a;
    B b;
  };
  static_assert(sizeof(Fragments) <= sizeof(Slot));
  Fragments mine;
  memcpy(static_cast<void*>(&mine.a), &a, sizeof(A));
  memcpy(static_cast<void*>(&mine.b), &b, sizeof(B));
  const Gathered gathered = running->exchange(site, &mine, sizeof(mine));
  if (gathered.lanes != 0xffffffffu)
    running->fault(site.operation + std::string(" needs 32 lanes"));
  const auto lane = [&](int index) -> const Fragments& {
    return *reinterpret_cast<const Fragments*>(gathered.slots[index].bytes);
  };
  const int g = running->lane() / 4, t = running->lane() % 4;
  const int half = depth / 2, run = depth / 8;  // a lane holds `run` adjacent k, twice
  double addends[17];
  for (int i = 0; i < 4; ++i) {
    for (int k = 0; k < depth; ++k) {
      const int neighbour = k % half / run, register_of_k = k / half, element = k % run;
      const double left = at(lane(4 * g + neighbour).a[2 * register_of_k + i / 2], element);
      const double right = at(lane(4 * (2 * t + i % 2) + neighbour).b[register_of_k], element);
      addends[k] = left * right;
    }
    addends[depth] = d[i];
    d[i] = truncated_sum(addends, depth + 1);
  }
}

template <class Tf32>
void mma_m16n8k8(float (&d)[4], const Tf32 (&a)[4], const Tf32 (&b)[2],
                 std::source_location where = std::source_location::current()) {
  mma({"mma_m16n8k8", where}, d, a, b, 8, [](Tf32 operand, int) { return operand.value; });
}

template <class T>
void mma_m16n8k16(float (&d)[4], const Pack<T, 2> (&a)[4], const Pack<T, 2> (&b)[2],
                  std::source_location where = std::source_location::current()) {
  mma({"mma_m16n8k16", where}, d, a, b, 16,
      [](const Pack<T, 2>& pair, int element) { return static_cast<float>(pair[element]); });
}

// ldmatrix: each lane reads the row that it passes, then takes its elements from the rows of all
// lanes.
template <bool kTurned, class T>
void load_matrices(Pack<T, 2> (&to)[4], const cuda::Shared<T>& from, int row,
                   std::source_location where = std::source_location::current()) {
  const Pack<T, 8> mine = from.template load_pack<8>(row);
  const Gathered gathered = running->exchange({"ldmatrix", where}, &mine, sizeof(mine));
  if (gathered.lanes != 0xffffffffu) running->fault("ldmatrix needs 32 lanes");
  const int g = running->lane() / 4, t = running->lane() % 4;
  for (int j = 0; j < 4; ++j) {
    for (int i = 0; i < 2; ++i) {
      Pack<T, 8> source;
      const int lane = 8 * j + (kTurned ? 2 * t + i : g);
      memcpy(static_cast<void*>(&source), gathered.slots[lane].bytes, sizeof(source));
      to[j][i] = source[kTurned ? g : 2 * t + i];
    }
  }
}

}  // namespace stripctx::simt
