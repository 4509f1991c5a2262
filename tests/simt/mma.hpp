// The warp-level products of cuda/mma.cuh: gathers the fragments of all lanes, whose layout stands
// there, and multiplies in float32. Products of rounded operands are exact, and k runs upwards; a
// tensor core adds in its own order and truncates, so its last bits differ.
#pragma once

#include <source_location>

#include "core/pack.hpp"
#include "warp.hpp"

namespace stripctx::simt {

// A warp's product with fragments A and B; `a_at(fragment, i)` is operand i of a lane's fragment.
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
  const int half = depth / 2, run = depth / 8;  // a lane holds `run` neighbours in k, twice
  for (int i = 0; i < 4; ++i) {
    for (int k = 0; k < depth; ++k) {
      const int neighbour = k % half / run, register_of_k = k / half, element = k % run;
      const float left = at(lane(4 * g + neighbour).a[2 * register_of_k + i / 2], element);
      const float right = at(lane(4 * (2 * t + i % 2) + neighbour).b[register_of_k], element);
      d[i] += left * right;
    }
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

}  // namespace stripctx::simt
