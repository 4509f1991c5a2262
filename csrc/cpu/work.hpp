// How a CPU kernel is divided: an operator is a number of independent work items, and `run` does
// the items [begin, end) on whatever thread, with the same bits for any division.
#pragma once

#include <algorithm>
#include <cstdint>

namespace stripctx::cpu {

struct Work {
  int64_t items;
  int64_t grain;  // fewest items worth a thread of their own
};

// `items` that touch `elements` elements together; a thread is worth starting for some 16,000.
inline Work share(int64_t items, int64_t elements) {
  const int64_t each = std::max<int64_t>(1, elements / std::max<int64_t>(1, items));
  return {items, std::max<int64_t>(1, 16384 / each)};
}

}  // namespace stripctx::cpu
