// The labels family: label maps and losses from logits smaller than the image. The logits are
// interpolated bilinearly to the image's size and reduced over the classes, pixel by pixel; neither
// the interpolated logits nor their gradient exist as a whole.
// Shapes: logits, grad_logits (N, K, h, w); maps of pixels (N, H, W), in a View (N, H, W, 1). What
// is not a logit is in the type that sums run in.
#pragma once

#include "core/interpolation.hpp"
#include "core/view.hpp"
#include "cpu/work.hpp"
#include "cuda/launch.hpp"

namespace stripctx {

// Integers of 1, 4 or 8 bytes. As a target: outside [0, K), or ignore_index, counts nowhere.
struct LabelMap : View {
  int64_t bytes = 8;
};

// Logits and the image they are interpolated to, not smaller than they.
struct WideLogits : View {
  int64_t image[2] = {0, 0};
  Mode mode = Mode::kBilinear;
  bool channels_last = false;  // the fastest dimension is K, else w

  STRIPCTX_HOST_DEVICE int64_t classes() const { return size[1]; }
  STRIPCTX_HOST_DEVICE int64_t pixels() const { return size[0] * image[0] * image[1]; }

  // 0 rows, 1 columns.
  template <class A>
  STRIPCTX_HOST_DEVICE Axis<A> axis(int axis) const {
    return Axis<A>(size[2 + axis], image[axis], mode);
  }
};

// The labels of a loss.
struct Target : LabelMap {
  int64_t ignore_index = 0;

  // The label where it counts, else -1.
  STRIPCTX_HOST_DEVICE int64_t known(int64_t label, int64_t classes) const {
    return label >= 0 && label < classes && label != ignore_index ? label : -1;
  }
};

// labels = argmax over k of z_k, and, where there is memory for it, chance = max of softmax(z).
struct UpsampleArgmax {
  WideLogits logits;
  LabelMap labels;
  View chance;
};

// With s = log_sums = log sum exp z and weights w (1 where there are none): a pixel labelled t
// loses (1 - e) w_t (s - z_t) + e / K * sum over k of w_k (s - z_k). Sums along W are left in as
// many parts as row_parts says, (parts, N * H).
struct UpsampleCrossEntropy {
  WideLogits logits;
  Target target;
  View weight;  // (K), or no data
  double smoothing;
  View losses;    // (N, H, W), or the parts of their sums
  View weights;   // the parts of the sums of w_t
  View log_sums;  // (N, H, W)
  bool per_pixel;
};

// Toward z_k: g (p_k ((1 - e) w_t + e / K * sum of w) - (1 - e) w_t [k = t] - e / K * w_k), with
// p = exp(z - s); grad_logits is that of z, brought back by the interpolation's adjoint.
struct UpsampleCrossEntropyBackward {
  View grad;  // (N, H, W), of any strides
  WideLogits logits;
  Target target;
  View weight;
  double smoothing;
  View log_sums, grad_logits;
};

// w [(1 - y) z + (1 + (p - 1) y) log(1 + exp(-z))] for targets y; weights w and positive weights p
// are (N, K, H, W) of any strides, or no data. Sums along W as above, (parts, N * K * H).
struct UpsampleBinary {
  WideLogits logits;
  View target, weight, pos_weight;
  View losses;  // (N, K, H, W), or the parts of their sums
  bool per_pixel;
};

// Toward z: g w [(1 - y) - (1 + (p - 1) y) sigmoid(-z)].
struct UpsampleBinaryBackward {
  View grad;  // (N, K, H, W), of any strides
  WideLogits logits;
  View target, weight, pos_weight;
  View grad_logits;
};

// Over the labelled pixels the sums of p_k [k = t], of p_k and of [k = t], in parts (P, N, 3, K)
// with P = dice_parts, each of some rows.
struct UpsampleDice {
  WideLogits logits;
  Target target;
  View log_sums;
  void* parts;
};

// With q_k = grad_mass_k + [k = t] grad_overlap_k: dots = sum over k of p_k q_k.
struct UpsampleDiceDots {
  View grad;  // (N, 3, K), dense
  WideLogits logits;
  Target target;
  View log_sums, dots;
};

// Toward z_k: p_k (q_k - dots).
struct UpsampleDiceBackward {
  View grad;
  WideLogits logits;
  Target target;
  View log_sums, dots, grad_logits;
};

}  // namespace stripctx

namespace stripctx::cpu {

// One: a work item owns whole rows.
inline int64_t row_parts(const WideLogits&) {
  return 1;
}
int64_t dice_parts(const WideLogits& logits);

Work work(const UpsampleArgmax& op);
Work work(const UpsampleCrossEntropy& op);
Work work(const UpsampleCrossEntropyBackward& op);
Work work(const UpsampleBinary& op);
Work work(const UpsampleBinaryBackward& op);
Work work(const UpsampleDice& op);
Work work(const UpsampleDiceDots& op);
Work work(const UpsampleDiceBackward& op);
void run(const UpsampleArgmax& op, int64_t begin, int64_t end);
void run(const UpsampleCrossEntropy& op, int64_t begin, int64_t end);
void run(const UpsampleCrossEntropyBackward& op, int64_t begin, int64_t end);
void run(const UpsampleBinary& op, int64_t begin, int64_t end);
void run(const UpsampleBinaryBackward& op, int64_t begin, int64_t end);
void run(const UpsampleDice& op, int64_t begin, int64_t end);
void run(const UpsampleDiceDots& op, int64_t begin, int64_t end);
void run(const UpsampleDiceBackward& op, int64_t begin, int64_t end);

}  // namespace stripctx::cpu

namespace stripctx::cuda {

int64_t row_parts(const WideLogits& logits);
int64_t dice_parts(const WideLogits& logits);
void launch(const UpsampleArgmax& op, Stream stream);
void launch(const UpsampleCrossEntropy& op, Stream stream);
void launch(const UpsampleCrossEntropyBackward& op, Stream stream);
void launch(const UpsampleBinary& op, Stream stream);
void launch(const UpsampleBinaryBackward& op, Stream stream);
void launch(const UpsampleDice& op, Stream stream);
void launch(const UpsampleDiceDots& op, Stream stream);
void launch(const UpsampleDiceBackward& op, Stream stream);

}  // namespace stripctx::cuda
