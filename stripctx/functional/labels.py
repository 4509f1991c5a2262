"""The labels family: label maps and losses from logits smaller than the image, without allocating
their interpolation to the size of the image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from stripctx.ops.calls import call
from stripctx.ops.labels_checks import accumulate_dtype

_OPS = torch.ops.stripctx
_BYTES = {torch.uint8: 1, torch.int32: 4, torch.int64: 8}


def upsample_argmax(
    logits: Tensor,
    size: Sequence[int],
    *,
    align_corners: bool,
    dtype: torch.dtype = torch.int64,
) -> Tensor:
    """The class of the largest logit at every pixel of the image.

    Equals `F.interpolate(logits, size, mode="bilinear", align_corners=...).argmax(1)`: the first of
    equal logits wins, and NaN is the largest. Half precision logits are interpolated in float32.
    Not differentiable.

    Args:
        logits: (N, K, h, w).
        size: (H, W), at least (h, w).
        align_corners: as in `torch.nn.functional.interpolate`.
        dtype: of the result: int64, int32, or uint8 for up to 256 classes.

    Returns:
        (N, H, W).

    Examples:
        >>> logits = torch.tensor([[[[0.0, 3.0]], [[1.0, 1.0]]]])
        >>> upsample_argmax(logits, (1, 4), align_corners=True)
        tensor([[[1, 0, 0, 0]]])
    """
    bytes = _bytes("upsample_argmax", dtype)
    return call(_OPS.upsample_argmax, logits, list(size), align_corners, bytes)


def upsample_softmax_max(
    logits: Tensor,
    size: Sequence[int],
    *,
    align_corners: bool,
    dtype: torch.dtype = torch.int64,
) -> tuple[Tensor, Tensor]:
    """The label map of `upsample_argmax` and the probability of each label.

    Equals `F.interpolate(...).softmax(1).max(1)`. Not differentiable.

    Args:
        logits, size, align_corners, dtype: see `upsample_argmax`.

    Returns:
        labels (N, H, W); probabilities (N, H, W), float32, or float64 for float64.

    Examples:
        >>> logits = torch.zeros(1, 4, 1, 1)
        >>> labels, chance = upsample_softmax_max(logits, (1, 2), align_corners=False)
        >>> labels, chance
        (tensor([[[0, 0]]]), tensor([[[0.2500, 0.2500]]]))
    """
    name = "upsample_softmax_max"
    return call(_OPS.upsample_softmax_max, logits, list(size), align_corners, _bytes(name, dtype))


def upsample_cross_entropy(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    align_corners: bool,
    ignore_index: int = 255,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """Cross-entropy of logits interpolated to the size of the labels.

    Equals `F.cross_entropy(F.interpolate(logits, target.shape[1:], mode="bilinear", ...), target,
    ...)`, with one read of the logits and the labels. One number per pixel is saved for the
    backward pass, which recomputes the softmax and never allocates the gradient of the interpolated
    logits.

    Args:
        logits: (N, K, h, w).
        target: (N, H, W), int64, int32 or uint8; H >= h, W >= w. Labels outside [0, K) are ignored,
            like ignore_index; a check would have to synchronise with the device.
        weight: (K,), one factor per class; receives no gradient.
        align_corners: of the interpolation.
        ignore_index, label_smoothing: as in `torch.nn.functional.cross_entropy`.
        reduction: "mean" over the weights of all labelled pixels (NaN if there are none), "sum", or
            "none", one loss per pixel.

    Returns:
        A scalar, or (N, H, W) for "none"; float32 for half precision logits, else their dtype.

    Examples:
        >>> target = torch.tensor([[[0, 1, 255]]])
        >>> upsample_cross_entropy(torch.zeros(1, 4, 1, 1), target, align_corners=False)
        tensor(1.3863)
    """
    name = "upsample_cross_entropy"
    _check_reduction(name, reduction)
    options: dict[str, Any] = {
        "align_corners": align_corners,
        "ignore_index": ignore_index,
        "label_smoothing": label_smoothing,
    }
    if reduction == "none":
        return _cross_entropy(logits, target, weight, per_pixel=True, **options)[0]
    total, weights = cross_entropy_sums(logits, target, weight, **options)
    return total / weights if reduction == "mean" else total


def cross_entropy_sums(
    logits: Tensor, target: Tensor, weight: Tensor | None, **options: Any
) -> tuple[Tensor, Tensor]:
    """The sums of losses and of weights over all pixels; arguments as above."""
    losses, weights = _cross_entropy(logits, target, weight, per_pixel=False, **options)
    # one axis at a time, so that the order of additions does not depend on the number of threads
    return losses.sum(1).sum(), weights.sum(1).sum()


def _cross_entropy(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    *,
    per_pixel: bool,
    align_corners: bool,
    ignore_index: int,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor]:
    if weight is not None:
        weight = weight.detach().to(accumulate_dtype(logits))
    options = align_corners, ignore_index, label_smoothing, per_pixel
    losses, weights, _ = call(_OPS.upsample_cross_entropy, logits, target, weight, *options)
    return losses, weights


def upsample_binary_cross_entropy(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    pos_weight: Tensor | None = None,
    align_corners: bool,
    reduction: str = "mean",
) -> Tensor:
    """Binary cross-entropy of logits interpolated to the size of the targets, for one or several
    independent classes.

    Equals `F.binary_cross_entropy_with_logits(F.interpolate(logits, target.shape[2:],
    mode="bilinear", ...), target, ...)`.

    Args:
        logits: (N, K, h, w).
        target: (N, K, H, W), numbers in [0, 1] of any dtype, cast to that of logits; H >= h,
            W >= w. Receives no gradient.
        weight: a factor on the loss, broadcast to target.
        pos_weight: a factor on the positive part of the loss, broadcast to target.
        align_corners: of the interpolation.
        reduction: "mean" over all elements, "sum", or "none".

    Returns:
        A scalar, or (N, K, H, W) for "none"; float32 for half precision logits, else their dtype.

    Examples:
        >>> logits, target = torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 2, 2)
        >>> upsample_binary_cross_entropy(logits, target, align_corners=False)
        tensor(0.6931)
    """
    name = "upsample_binary_cross_entropy"
    _check_reduction(name, reduction)
    target = target.detach().to(logits.dtype)
    factors = []
    for argument, value in (("weight", weight), ("pos_weight", pos_weight)):
        if value is not None:
            value = _expanded(name, argument, value.detach().to(logits.dtype), target)
        factors.append(value)
    operands = logits, target, *factors, align_corners, reduction == "none"
    losses = call(_OPS.upsample_binary_cross_entropy, *operands)
    if reduction == "none":
        return losses
    total = losses.sum(2).sum(1).sum()
    return total / target.numel() if reduction == "mean" else total


def upsample_dice(
    logits: Tensor, target: Tensor, *, align_corners: bool, ignore_index: int = 255
) -> tuple[Tensor, Tensor, Tensor]:
    """The sums used by Dice, Jaccard and Tversky losses, from logits interpolated to the size of
    the labels.

    With p = softmax(interpolated logits) and y the one-hot labels, over the labelled pixels of each
    image and for each class: the sums of p * y, of p and of y (Milletari et al., 3DV 2016).

    Args:
        logits, target, align_corners, ignore_index: see `upsample_cross_entropy`.

    Returns:
        overlap, mass and count, each (N, K), float32, or float64 for float64. The first two are
        differentiable.

    Examples:
        >>> overlap, mass, count = upsample_dice(
        ...     torch.zeros(1, 2, 1, 1), torch.tensor([[[0, 1, 1]]]), align_corners=False
        ... )
        >>> overlap, mass, count
        (tensor([[0.5000, 1.0000]]), tensor([[1.5000, 1.5000]]), tensor([[1., 2.]]))
    """
    sums, _ = call(_OPS.upsample_dice, logits, target, align_corners, ignore_index)
    overlap, mass, count = sums.unbind(1)
    return overlap, mass, count.detach()


def _bytes(name: str, dtype: torch.dtype) -> int:
    if dtype not in _BYTES:
        raise ValueError(f"{name}: dtype must be int64, int32 or uint8, got {dtype}")
    return _BYTES[dtype]


def _check_reduction(name: str, reduction: str) -> None:
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"{name}: reduction must be mean, sum or none, got {reduction!r}")


def _expanded(name: str, argument: str, value: Tensor, target: Tensor) -> Tensor:
    try:
        return value.expand(target.shape)
    except RuntimeError:
        raise ValueError(
            f"{name}: {argument} must broadcast to {tuple(target.shape)}, got {tuple(value.shape)}"
        ) from None
