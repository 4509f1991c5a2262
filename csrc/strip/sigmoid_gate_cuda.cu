// out = x * sigmoid(logits + bias) on CUDA, and its gradients. Forward reads two maps and writes
// one. Backward reads three, writes two and sums the bias gradient in the same pass.
#include "strip/params.hpp"

#include "cuda/gate.cuh"
#include "cuda/sigmoid.cuh"

namespace stripctx::cuda {

namespace {

struct Forward {
  static constexpr auto kPlanes = "sigmoid_gate_planes", kPixels = "sigmoid_gate_pixels";
  static constexpr int kInputs = 2, kOutputs = 1;
  static constexpr bool kSums = false;

  template <class A>
  __device__ static void apply(const A (&in)[kInputs], A bias, A (&out)[kOutputs], A& /*sum*/) {
    const auto [x, logit] = in;
    out[0] = x * sigmoid(logit + bias).gate;
  }
};

struct Backward {
  static constexpr auto kPlanes = "sigmoid_gate_backward_planes";
  static constexpr auto kPixels = "sigmoid_gate_backward_pixels";
  static constexpr int kInputs = 3, kOutputs = 2;
  static constexpr bool kSums = true;

  template <class A>
  __device__ static void apply(const A (&in)[kInputs], A bias, A (&out)[kOutputs], A& sum) {
    const auto [grad, x, logit] = in;
    const Sigmoid<A> s = sigmoid(logit + bias);
    out[0] = grad * s.gate;
    out[1] = grad * x * s.slope;
    sum += out[1];
  }
};

View for_all_images(View bias) {
  bias.stride[0] = 0;
  return bias;
}

Gate<Backward> gate(const SigmoidGateBackward& op) {
  return {{op.grad, op.x, op.logits},
          {op.grad_x, op.grad_logits},
          for_all_images(op.bias),
          op.partials.data};
}

}  // namespace

int64_t partials(const SigmoidGateBackward& op) {
  return op.x.size[0] * gate_pieces(gate(op));
}

void launch(const SigmoidGate& op, Stream stream) {
  launch_gate<Forward>({{op.x, op.logits}, {op.out}, for_all_images(op.bias)}, stream);
}

void launch(const SigmoidGateBackward& op, Stream stream) {
  launch_gate(gate(op), stream);
}

}  // namespace stripctx::cuda
