// The second stage of a fixed-order reduction: out[m] = (sum over p of partials[p, m]) / divisor, p
// in a fixed order.
#pragma once

#include "core/view.hpp"
#include "cpu/work.hpp"
#include "cuda/launch.hpp"

namespace stripctx {

struct SumPartials {
  View partials;  // (P, M, 1, 1), dense, in the accumulation type of `out`
  View out;       // M elements, dense, in the order of the partials
  double divisor = 1;
};

}  // namespace stripctx

namespace stripctx::cpu {

Work work(const SumPartials& op);
void run(const SumPartials& op, int64_t begin, int64_t end);

}  // namespace stripctx::cpu

namespace stripctx::cuda {

void launch(const SumPartials& op, Stream stream);

}  // namespace stripctx::cuda
