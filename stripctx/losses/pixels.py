"""Losses over all pixels of a batch: cross-entropy, its hard-example form, and Dice."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from stripctx import functional
from stripctx.functional.labels import cross_entropy_sums
from stripctx.losses.labels import (
    checked,
    is_small,
    nll,
    one_hot,
    pixel_weights,
    weighted_mean,
)


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    ignore_index: int = 255,
    align_corners: bool = True,
) -> Tensor:
    """The weighted mean of -log softmax(logits)[label] over all labelled pixels.

    Like `nn.CrossEntropyLoss`, except for the treatment of unlabelled pixels (see
    `stripctx.losses`).

    Args:
        logits: (N, K, h, w), any floating dtype.
        target: (N, H, W), integers; H >= h, W >= w.
        weight: (K,), one factor per class.
        ignore_index: the label to ignore, like all labels outside [0, K).
        align_corners: of the interpolation, for logits smaller than the target.

    Returns:
        A scalar; float32 for half precision logits, else their dtype.

    Examples:
        >>> cross_entropy(torch.zeros(1, 4, 1, 1), torch.zeros(1, 1, 1, dtype=torch.long))
        tensor(1.3863)
    """
    logits, labels = checked("cross_entropy", logits, target, weight, ignore_index)
    if is_small(logits, labels):
        loss, total = cross_entropy_sums(
            logits,
            labels,
            weight,
            align_corners=align_corners,
            ignore_index=logits.shape[1],
        )
        return loss / torch.where(total > 0, total, 1.0)
    losses = nll(logits, labels, align_corners)
    return weighted_mean(losses, pixel_weights(logits, labels, weight), None)


def ohem_cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    ignore_index: int = 255,
    align_corners: bool = True,
    threshold: float = 0.7,
    min_kept: int = 100_000,
) -> Tensor:
    """Cross-entropy over the hard pixels only (online hard example mining).

    After Shrivastava et al., CVPR 2016, as used in segmentation. A labelled pixel is kept if the
    probability of its label is below `threshold` or among the `min_kept` lowest of the batch
    (including ties).

    Args:
        logits, target, weight, ignore_index, align_corners: see `cross_entropy`.
        threshold: a probability.
        min_kept: the minimum number of pixels to keep per batch, positive.

    Returns:
        A scalar.

    Examples:
        >>> logits = torch.tensor([[[[0.0, 9.0]], [[0.0, -9.0]]]])
        >>> ohem_cross_entropy(logits, torch.tensor([[[0, 0]]]), min_kept=1)
        tensor(0.6931)
    """
    name = "ohem_cross_entropy"
    if min_kept < 1:
        raise ValueError(f"{name}: min_kept must be positive, got {min_kept}")
    logits, labels = checked(name, logits, target, weight, ignore_index)
    losses = nll(logits, labels, align_corners)
    with torch.no_grad():
        known = labels < logits.shape[1]
        chance = torch.where(known, (-losses).exp(), 2.0)  # larger than any probability
        ascending = F.pad(chance.flatten(), (0, 1), value=2.0).sort().values
        hardest = ascending[min(min_kept, ascending.numel()) - 1]
        hard = known & ((chance < threshold) | (chance <= hardest))
    return weighted_mean(losses, pixel_weights(logits, labels, weight) * hard, None)


def dice_loss(
    logits: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    ignore_index: int = 255,
    align_corners: bool = True,
    smooth: float = 1.0,
) -> Tensor:
    """1 - (2 * sum of p*y + smooth) / (sum of p + sum of y + smooth), the mean over the classes.

    After Milletari et al., 3DV 2016. p is softmax(logits), y the one-hot target, and the sums run
    over all labelled pixels of the batch.

    Args:
        logits, target, ignore_index, align_corners: see `cross_entropy`.
        weight: (K,), the weights of the mean over the classes.
        smooth: added to both sides of the ratio.

    Returns:
        A scalar.

    Examples:
        >>> target = torch.tensor([[[0, 1]]])
        >>> dice_loss(40.0 * torch.eye(2).view(1, 2, 1, 2), target)
        tensor(0.)
    """
    logits, labels = checked("dice_loss", logits, target, weight, ignore_index)
    overlap, mass = _dice_sums(logits, labels, align_corners)
    # without smoothing, a class that is neither present nor predicted counts as 0 / 0 := 1
    empty = (mass + smooth == 0).to(mass.dtype)
    ratio = (2 * overlap + smooth + empty) / (mass + smooth + empty)
    factors = torch.ones_like(ratio) if weight is None else weight.to(ratio)
    return weighted_mean(1 - ratio, factors, None)


def _dice_sums(logits: Tensor, labels: Tensor, align_corners: bool) -> tuple[Tensor, Tensor]:
    """(K,): the sums of p * y, and of p and y."""
    classes = logits.shape[1]
    if is_small(logits, labels):
        overlap, mass, count = functional.upsample_dice(
            logits, labels, align_corners=align_corners, ignore_index=classes
        )
        return overlap.sum(0), mass.sum(0) + count.sum(0)
    truth = one_hot(labels, classes + 1, logits.dtype)[:, :classes]
    chance = logits.softmax(1) * (labels < classes)[:, None]
    return (chance * truth).sum((0, 2, 3)), chance.sum((0, 2, 3)) + truth.sum((0, 2, 3))
