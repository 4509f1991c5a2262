"""The losses that the four systems train with, and their weighted sum over a network's outputs.

Logits are (N, K, H, W), targets integers (N, H, W). Logits may be smaller than the target: they are
then interpolated bilinearly with `align_corners`, pixel by pixel, without allocating the
interpolated logits (see `stripctx.functional.upsample_cross_entropy`).

A pixel whose label is `ignore_index` or lies outside [0, K) is unlabelled and ignored; without any
labelled pixel a loss is 0, not NaN. Half precision is computed in float32. No loss synchronises
with the device. All losses of logits and a target take the same `weight` (K,), one factor per
class, `ignore_index` and `align_corners`. Invalid arguments raise ValueError.
"""

from stripctx.losses.images import image_weighted_cross_entropy, relaxed_boundary_loss
from stripctx.losses.labels import class_presence
from stripctx.losses.pixels import cross_entropy, dice_loss, ohem_cross_entropy
from stripctx.losses.total import SegmentationLoss

__all__ = [
    "SegmentationLoss",
    "class_presence",
    "cross_entropy",
    "dice_loss",
    "image_weighted_cross_entropy",
    "ohem_cross_entropy",
    "relaxed_boundary_loss",
]
