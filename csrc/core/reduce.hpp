// The second stage of a fixed-order reduction: out[m] = sum over p of partials[p, m], p ascending.
#pragma once

#include "core/view.hpp"

namespace stripctx {

struct SumPartials {
  View partials;  // (P, M, 1, 1), contiguous, in the accumulation type of `out`
  View out;       // (1, M, 1, 1)
};

}  // namespace stripctx
