// The labels family: label maps and losses from logits smaller than the image. Each operator
// interpolates the logits bilinearly to the image's size and reduces them over the classes, pixel
// by pixel; neither the interpolated logits nor their gradient is ever stored as a whole.
//
// Shapes: logits, grad_logits (N, K, h, w); maps of pixels (N, H, W), in a View (N, H, W, 1).
// Everything but the logits and their gradient is in the accumulation type.
#pragma once

#include "core/interpolation.hpp"
#include "core/view.hpp"
#include "cpu/work.hpp"
#include "cuda/launch.hpp"

namespace stripctx {

// Integers of 1, 4 or 8 bytes. A target outside [0, K) or equal to ignore_index is ignored.
struct LabelMap : View {
  int64_t bytes = 8;
};

// Logits, and the size of the image that they are interpolated to, which is at least theirs.
struct WideLogits : View {
  int64_t image[2] = {0, 0};
  Mode mode = Mode::kBilinear;
  bool channels_last = false;  // the fastest dimension is K, else w

  STRIPCTX_HOST_DEVICE int64_t classes() const { return size[1]; }
  STRIPCTX_HOST_DEVICE int64_t pixels() const { return size[0] * image[0] * image[1]; }

  // The interpolation along `axis`: 0 for H, 1 for W.
  template <class A>
  STRIPCTX_HOST_DEVICE Axis<A> axis(int axis) const {
    return Axis<A>(size[2 + axis], image[axis], mode);
  }
};

// The target of a loss.
struct Target : LabelMap {
  int64_t ignore_index = 0;

  // The label, or -1 if it is ignored.
  STRIPCTX_HOST_DEVICE int64_t known(int64_t label, int64_t classes) const {
    return label >= 0 && label < classes && label != ignore_index ? label : -1;
  }
};

// labels = argmax over k of z_k and, if `chance` has data, chance = max over k of softmax(z)_k.
struct UpsampleArgmax {
  WideLogits logits;
  LabelMap labels;
  View chance;
};

// With s = log_sums = log of the sum of exp(z_k), class weights w (1 without data), smoothing e and
// label t, a pixel's loss is (1 - e) w_t (s - z_t) + e / K * sum over k of w_k (s - z_k). Sums
// along W are stored in row_parts parts, (row_parts, N * H).
struct UpsampleCrossEntropy {
  WideLogits logits;
  Target target;
  View weight;  // (K), or no data
  double smoothing;
  View losses;    // (N, H, W), or partial sums along W
  View weights;   // partial sums of w_t
  View log_sums;  // (N, H, W)
  bool per_pixel;
};

// The derivative by z_k is g (p_k ((1 - e) w_t + e / K * sum of w) - (1 - e) w_t [k = t] - e / K *
// w_k) with p = exp(z - s). grad_logits is the interpolation's adjoint applied to it.
struct UpsampleCrossEntropyBackward {
  View grad;  // (N, H, W), of any strides
  WideLogits logits;
  Target target;
  View weight;
  double smoothing;
  View log_sums, grad_logits;
};

// A loss per class and pixel: w [(1 - y) z + (1 + (p - 1) y) log(1 + exp(-z))] for targets y.
// Weights w and positive weights p are (N, K, H, W) of any strides, or have no data. Sums along W
// are stored in parts as above, (row_parts, N * K * H).
struct UpsampleBinary {
  WideLogits logits;
  View target, weight, pos_weight;
  View losses;  // (N, K, H, W), or partial sums along W
  bool per_pixel;
};

// The derivative by z is g w [(1 - y) - (1 + (p - 1) y) sigmoid(-z)].
struct UpsampleBinaryBackward {
  View grad;  // (N, K, H, W), of any strides
  WideLogits logits;
  View target, weight, pos_weight;
  View grad_logits;
};

// Sums over the labelled pixels: overlap_k of p_k [k = t], mass_k of p_k and truth_k of [k = t], in
// parts (P, N, 3, K) of some rows each; P = dice_parts.
struct UpsampleDice {
  WideLogits logits;
  Target target;
  View log_sums;
  void* parts;
};

// Per pixel, dots = sum over k of p_k q_k with q_k = grad_mass_k + [k = t] grad_overlap_k.
struct UpsampleDiceDots {
  View grad;  // (N, 3, K), dense
  WideLogits logits;
  Target target;
  View log_sums, dots;
};

// The derivative by z_k is p_k (q_k - dots).
struct UpsampleDiceBackward {
  View grad;
  WideLogits logits;
  Target target;
  View log_sums, dots, grad_logits;
};

}  // namespace stripctx

namespace stripctx::cpu {

// One part: a work item has whole rows.
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
