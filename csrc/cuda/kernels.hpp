// Every CUDA launcher's declaration, in plain C++ for the bindings. Each queues its kernels on a
// stream and returns; the number of partial sums depends on shapes alone, never on the device.
#pragma once

#include "core/encoding.hpp"
#include "core/height.hpp"
#include "core/pyramid.hpp"
#include "core/reduce.hpp"
#include "core/strip.hpp"
#include "core/upsample.hpp"
#include "cuda/launch.hpp"

namespace stripctx::cuda {

StripPartials partials(const StripPool& op);
StripPartials partials(const StripAddReluBackward& op);
int64_t partials(const SigmoidGateBackward& op);
int64_t partials(const PyramidPool& op);
int64_t partials(const PyramidMaxPool& op);
int64_t partials(const RowGateBackward& op);
int64_t partials(const Encode& op);          // of each image
int64_t partials(const EncodeBackward& op);  // of each image
int64_t partials(const ChannelGateBackward& op);

// Elements of scratch that an operator's kernel asks for.
int64_t scratch(const Encode& op);
int64_t scratch(const EncodeBackward& op);

void launch(const SumPartials& op, Stream stream);
inline void launch(const EncodeSums& op, Stream stream) {
  launch(SumPartials{op.partials, op.sums}, stream);
}
void launch(const StripPool& op, Stream stream);
void launch(const StripPoolBackward& op, Stream stream);
void launch(const StripAddRelu& op, Stream stream);
void launch(const StripAddReluBackward& op, Stream stream);
void launch(const SigmoidGate& op, Stream stream);
void launch(const SigmoidGateBackward& op, Stream stream);
void launch(const PyramidPool& op, Stream stream);
void launch(const PyramidPoolBackward& op, Stream stream);
void launch(const PyramidMaxPool& op, Stream stream);
void launch(const PyramidMaxPoolBackward& op, Stream stream);
void launch(const Encode& op, Stream stream);
void launch(const EncodeBackward& op, Stream stream);
void launch(const ChannelGate& op, Stream stream);
void launch(const ChannelGateBackward& op, Stream stream);
void launch(const PyramidAdd& op, Stream stream);
void launch(const PyramidReduce& op, Stream stream);
void launch(const RowGate& op, Stream stream);
void launch(const RowGateBackward& op, Stream stream);

}  // namespace stripctx::cuda
