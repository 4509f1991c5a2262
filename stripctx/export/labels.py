"""The labels family in standard operators: interpolates the logits and reduces them with the
runtime's operators (see reference.labels)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from stripctx.export.axes import Size
from stripctx.export.upsample import upsample
from stripctx.reference import labels as reference
from stripctx.reference.common import widen
from stripctx.reference.upsample import BILINEAR, BILINEAR_ALIGNED


def upsample_argmax(
    logits: Tensor, size: Sequence[Size], align_corners: bool, bytes: int
) -> Tensor:
    return _wide(logits, size, align_corners).argmax(1).to(reference.DTYPES[bytes])


def upsample_softmax_max(
    logits: Tensor, size: Sequence[Size], align_corners: bool, bytes: int
) -> tuple[Tensor, Tensor]:
    wide = _wide(logits, size, align_corners)
    return wide.argmax(1).to(reference.DTYPES[bytes]), wide.softmax(1).amax(1)


def upsample_cross_entropy(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    align_corners: bool,
    ignore_index: int,
    label_smoothing: float,
    per_pixel: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    wide = _wide(logits, target.shape[1:], align_corners)
    return reference.upsample_cross_entropy(
        wide, target, weight, align_corners, ignore_index, label_smoothing, per_pixel
    )


def upsample_binary_cross_entropy(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    align_corners: bool,
    per_pixel: bool,
) -> Tensor:
    wide = _wide(logits, target.shape[2:], align_corners)
    return reference.upsample_binary_cross_entropy(
        wide, target, weight, pos_weight, align_corners, per_pixel
    )


def upsample_dice(
    logits: Tensor, target: Tensor, align_corners: bool, ignore_index: int
) -> tuple[Tensor, Tensor]:
    wide = _wide(logits, target.shape[1:], align_corners)
    return reference.upsample_dice(wide, target, align_corners, ignore_index)


def _wide(logits: Tensor, size: Sequence[Size], align_corners: bool) -> Tensor:
    mode = BILINEAR_ALIGNED if align_corners else BILINEAR
    return upsample(widen(logits), size, mode, (0.0, 0.0))
