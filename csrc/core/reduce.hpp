// The second stage of a fixed-order reduction: out[m] = (sum over p of partials[p, m]) / divisor, p
// in a fixed order.
#pragma once

#include "core/view.hpp"

namespace stripctx {

struct SumPartials {
  View partials;  // (P, M, 1, 1), dense, in the accumulation type of `out`
  View out;       // M elements, dense, in the order of the partials
  double divisor = 1;
};

}  // namespace stripctx
