// Every CPU kernel's declaration. An operator is a number of independent work items; `run` does the
// items [begin, end), on whatever thread, with the same bits for any division.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/encoding.hpp"
#include "core/height.hpp"
#include "core/pyramid.hpp"
#include "core/reduce.hpp"
#include "core/strip.hpp"
#include "core/upsample.hpp"

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

// Rows of partial sums that an operator needs, chosen from shapes alone.
inline StripPartials partials(const StripPool&) {
  return {};
}
inline StripPartials partials(const StripAddReluBackward&) {
  return {};
}
int64_t partials(const SigmoidGateBackward& op);
inline int64_t partials(const PyramidPool&) {
  return 0;
}
inline int64_t partials(const PyramidMaxPool&) {
  return 0;
}
inline int64_t partials(const RowGateBackward&) {
  return 0;
}
int64_t partials(const Encode& op);          // of each image
int64_t partials(const EncodeBackward& op);  // of each image
int64_t partials(const ChannelGateBackward& op);

// Elements of scratch that an operator's kernel asks for.
int64_t scratch(const Encode& op);
int64_t scratch(const EncodeBackward& op);

// What is done, by as many threads, before an operator runs: (K, D) matrices by columns in its
// scratch, for all its work items.
struct CodeColumns {
  View codewords;
  View grad;     // (N, K, D), or nothing
  View columns;  // (1 + N, D, K up to whole vectors)
};
inline CodeColumns before(const Encode& op) {
  return {op.codewords, {}, op.scratch};
}
inline CodeColumns before(const EncodeBackward& op) {
  return {op.codewords, op.grad, op.scratch};
}

Work work(const SumPartials& op);
Work work(const StripPool& op);
Work work(const StripPoolBackward& op);
Work work(const StripAddRelu& op);
Work work(const StripAddReluBackward& op);
Work work(const SigmoidGate& op);
Work work(const SigmoidGateBackward& op);
Work work(const PyramidPool& op);
Work work(const PyramidPoolBackward& op);
Work work(const PyramidMaxPool& op);
Work work(const PyramidMaxPoolBackward& op);
Work work(const CodeColumns& op);
Work work(const Encode& op);
Work work(const EncodeBackward& op);
Work work(const EncodeSums& op);
Work work(const ChannelGate& op);
Work work(const ChannelGateBackward& op);
Work work(const PyramidAdd& op);
Work work(const PyramidReduce& op);
Work work(const RowGate& op);
Work work(const RowGateBackward& op);

void run(const SumPartials& op, int64_t begin, int64_t end);
void run(const StripPool& op, int64_t begin, int64_t end);
void run(const StripPoolBackward& op, int64_t begin, int64_t end);
void run(const StripAddRelu& op, int64_t begin, int64_t end);
void run(const StripAddReluBackward& op, int64_t begin, int64_t end);
void run(const SigmoidGate& op, int64_t begin, int64_t end);
void run(const SigmoidGateBackward& op, int64_t begin, int64_t end);
void run(const PyramidPool& op, int64_t begin, int64_t end);
void run(const PyramidPoolBackward& op, int64_t begin, int64_t end);
void run(const PyramidMaxPool& op, int64_t begin, int64_t end);
void run(const PyramidMaxPoolBackward& op, int64_t begin, int64_t end);
void run(const CodeColumns& op, int64_t begin, int64_t end);
void run(const Encode& op, int64_t begin, int64_t end);
void run(const EncodeBackward& op, int64_t begin, int64_t end);
void run(const EncodeSums& op, int64_t begin, int64_t end);
void run(const ChannelGate& op, int64_t begin, int64_t end);
void run(const ChannelGateBackward& op, int64_t begin, int64_t end);
void run(const PyramidAdd& op, int64_t begin, int64_t end);
void run(const PyramidReduce& op, int64_t begin, int64_t end);
void run(const RowGate& op, int64_t begin, int64_t end);
void run(const RowGateBackward& op, int64_t begin, int64_t end);

}  // namespace stripctx::cpu
