// out = relu(x + x * gate) on CUDA, and its gradients (Zhang et al., Context Encoding, CVPR 2018,
// section 3.1). Forward reads one map and writes one. Backward reads two, writes one and sums the
// gradient of the gate in the same pass.
#include "encoding/params.hpp"

#include "cuda/gate.cuh"

namespace stripctx::cuda {

namespace {

struct Forward {
  static constexpr auto kPlanes = "channel_gate_planes", kPixels = "channel_gate_pixels";
  static constexpr int kInputs = 1, kOutputs = 1;
  static constexpr bool kSums = false;

  template <class A>
  __device__ static void apply(const A (&in)[kInputs], A gate, A (&out)[kOutputs], A& /*sum*/) {
    const A gated = in[0] + in[0] * gate;
    out[0] = gated < 0 ? A(0) : gated;  // keeps NaN
  }
};

struct Backward {
  static constexpr auto kPlanes = "channel_gate_backward_planes";
  static constexpr auto kPixels = "channel_gate_backward_pixels";
  static constexpr int kInputs = 2, kOutputs = 1;
  static constexpr bool kSums = true;

  template <class A>
  __device__ static void apply(const A (&in)[kInputs], A gate, A (&out)[kOutputs], A& sum) {
    const auto [grad, x] = in;
    const A passed = x + x * gate <= 0 ? A(0) : grad;
    sum += passed * x;
    out[0] = passed + passed * gate;
  }
};

Gate<Backward> gate(const ChannelGateBackward& op) {
  return {{op.grad, op.x}, {op.grad_x}, op.gate, op.partials.data};
}

}  // namespace

int64_t partials(const ChannelGateBackward& op) {
  return gate_pieces(gate(op));
}

void launch(const ChannelGate& op, Stream stream) {
  launch_gate<Forward>({{op.x}, {op.out}, op.gate}, stream);
}

void launch(const ChannelGateBackward& op, Stream stream) {
  launch_gate(gate(op), stream);
}

}  // namespace stripctx::cuda
