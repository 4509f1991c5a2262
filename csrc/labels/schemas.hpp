// The schemas of the labels family's operators. csrc/bind defines the operators from this text
// where Python does not, and stripctx/ops/schemas.py parses it: no default values, no comments
// inside.
#pragma once

namespace stripctx {

constexpr const char* kSchemas[] = {
    "upsample_argmax(Tensor logits, SymInt[] size, bool align_corners, int bytes) -> Tensor",
    "upsample_softmax_max(Tensor logits, SymInt[] size, bool align_corners, int bytes)"
    " -> (Tensor, Tensor)",
    "upsample_cross_entropy(Tensor logits, Tensor target, Tensor? weight, bool align_corners,"
    " int ignore_index, float label_smoothing, bool per_pixel) -> (Tensor, Tensor, Tensor)",
    "upsample_cross_entropy_backward(Tensor grad, Tensor logits, Tensor target, Tensor? weight,"
    " Tensor log_sums, bool align_corners, int ignore_index, float label_smoothing) -> Tensor",
    "upsample_binary_cross_entropy(Tensor logits, Tensor target, Tensor? weight,"
    " Tensor? pos_weight, bool align_corners, bool per_pixel) -> Tensor",
    "upsample_binary_cross_entropy_backward(Tensor grad, Tensor logits, Tensor target,"
    " Tensor? weight, Tensor? pos_weight, bool align_corners) -> Tensor",
    "upsample_dice(Tensor logits, Tensor target, bool align_corners, int ignore_index)"
    " -> (Tensor, Tensor)",
    "upsample_dice_backward(Tensor grad, Tensor logits, Tensor target, Tensor log_sums,"
    " bool align_corners, int ignore_index) -> Tensor",
};

}  // namespace stripctx
