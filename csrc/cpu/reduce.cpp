// The second stage of every fixed-order reduction on the CPU: reads each partial sum once.
#include "core/reduce.hpp"

#include "core/dispatch.hpp"
#include "cpu/simd.hpp"

namespace stripctx::cpu {

namespace {

constexpr int64_t kBlock = 64;  // sums of one work item

template <class T>
void sum_block(const SumPartials& op, int64_t begin, int64_t end) {
  using A = Accumulate<T>;
  const A* partials = static_cast<const A*>(op.partials.data) + begin;
  T* out = static_cast<T*>(op.out.data) + begin;
  for_vectors<A>(end - begin, [&](int64_t i, auto load, auto store) {
    Vec<A> sum{};
    for (int64_t p = 0; p < op.partials.size[0]; ++p) {
      sum += load(partials + p * op.partials.size[1] + i);
    }
    store(out + i, sum / A(op.divisor));
  });
}

}  // namespace

Work work(const SumPartials& op) {
  return share(ceil_div(op.partials.size[1], kBlock), op.partials.numel());
}

void run(const SumPartials& op, int64_t begin, int64_t end) {
  const int64_t last = std::min(end * kBlock, op.partials.size[1]);
  dispatch<Types>(op.out.dtype, [&]<class T>() { sum_block<T>(op, begin * kBlock, last); });
}

}  // namespace stripctx::cpu
