// How a CPU kernel's work is divided: an operator consists of independent work items, and `run`
// computes the items [begin, end) on any thread. The bits of a result do not depend on the
// division.
#pragma once

#include <algorithm>
#include <cstdint>

namespace stripctx::cpu {

struct Work {
  int64_t items;
  int64_t grain;  // minimum number of items per thread
};

// `items` work items that access `elements` elements in total. A further thread pays off from about
// 16,000 elements.
inline Work share(int64_t items, int64_t elements) {
  const int64_t each = std::max<int64_t>(1, elements / std::max<int64_t>(1, items));
  return {items, std::max<int64_t>(1, 16384 / each)};
}

}  // namespace stripctx::cpu
