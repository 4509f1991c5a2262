"""HANet's losses, which weigh classes by their frequency in every image: image-weighted
cross-entropy and the relaxed boundary loss."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from stripctx.losses.labels import (
    checked,
    class_counts,
    is_small,
    nll,
    one_hot,
    pixel_weights,
    weighted_mean,
)


def image_weighted_cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    ignore_index: int = 255,
    align_corners: bool = True,
    upper_bound: float = 1.0,
    inverse: bool = False,
    per_batch: bool = False,
    reduction: str = "mean",
) -> Tensor:
    """Cross-entropy of every image under class weights from its own class frequencies.

    HANet's loss (Choi et al., CVPR 2020, as released). With f_k the share of class k among the
    labelled pixels of an image, w_k = 1 + upper_bound * (1 - f_k) where f_k > 0, else 1, and the
    image's loss is the w-weighted mean over its labelled pixels.

    Upstream sums over the images, counts labels equal to K as K-1 (its last histogram bin is
    closed) and needs a NumPy that is gone. Here the label K is unlabelled, and `reduction` is
    `mean` unless asked otherwise; a learning rate tuned for the sum wants `sum`.

    Args:
        weight: (K,), times w.
        upper_bound: how much rarity adds at most.
        inverse: w_k = 1 + upper_bound / f_k instead.
        per_batch: frequencies of the whole batch.
        reduction: `mean` or `sum` over the images, or `none` for one value (N,) each.

    Examples:
        >>> target = torch.tensor([[[0, 0, 0, 1]]])
        >>> image_weighted_cross_entropy(torch.zeros(1, 2, 1, 4), target)
        tensor(0.6931)
    """
    name = "image_weighted_cross_entropy"
    logits, labels = checked(name, logits, target, weight, ignore_index)
    counts = class_counts(labels, logits.shape[1]).to(logits.dtype)[:, :-1]
    factors = _rarity(counts, counts, upper_bound, inverse, per_batch)
    if weight is not None:
        factors = factors * weight.to(factors)
    losses = weighted_mean(
        nll(logits, labels, align_corners), pixel_weights(logits, labels, factors), (1, 2)
    )
    return _reduce(name, losses, reduction)


def relaxed_boundary_loss(
    logits: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    ignore_index: int = 255,
    align_corners: bool = True,
    border: int = 1,
    upper_bound: float = 1.0,
    inverse: bool = False,
    per_batch: bool = False,
    reduction: str = "mean",
) -> Tensor:
    """-log of the probability that the class is any of those in the pixel's neighbourhood.

    Zhu et al., CVPR 2019, with HANet's class weights. For the set S of the classes
    within `border` pixels, a pixel loses -log(sum over S of softmax(logits)) times the mean over S
    of w_k; an image loses the sum over its pixels divided by their number plus one, as upstream. A
    pixel whose S is empty counts nowhere. w_k is that of `image_weighted_cross_entropy` with f_k
    the share of k in the sum of the sizes of S, unlabelled counted as one more class, as is what
    lies beyond the edge of the image.

    Upstream takes the sets as its target, (N, K+1, H, W), made by the data loader; here they are
    made on the device, as large as the logits at the target's size: smaller logits are interpolated
    first. Computed in logarithms: no probability is too small.

    Args:
        border: the radius of the square neighbourhood.
        weight, upper_bound, inverse, per_batch, reduction: as in `image_weighted_cross_entropy`.

    Examples:
        >>> relaxed_boundary_loss(torch.zeros(1, 2, 1, 2), torch.tensor([[[0, 1]]]))
        tensor(0.)
    """
    name = "relaxed_boundary_loss"
    if border < 0:
        raise ValueError(f"{name}: border must not be negative, got {border}")
    logits, labels = checked(name, logits, target, weight, ignore_index)
    if is_small(logits, labels):  # the sets are as large as the logits would be
        logits = F.interpolate(
            logits, labels.shape[1:], mode="bilinear", align_corners=align_corners
        )
    classes = logits.shape[1]
    padded = F.pad(labels, (border,) * 4, value=classes)
    near = F.max_pool2d(one_hot(padded, classes + 1, logits.dtype), 2 * border + 1, stride=1)
    totals = near.sum((2, 3))
    factors = _rarity(totals[:, :-1], totals, upper_bound, inverse, per_batch)
    if weight is not None:
        factors = factors * weight.to(factors)
    near = near[:, :-1]
    sizes = near.sum(1)
    known = (sizes > 0).to(logits.dtype)
    # a pixel with an empty set sums over all classes: log 1, and no infinite gradient
    inside = (near > 0) | (sizes == 0)[:, None]
    chance = logits.masked_fill(~inside, -torch.inf).logsumexp(1) - logits.logsumexp(1)
    factor = (near * factors[:, :, None, None]).sum(1) / sizes.clamp_min(1)
    losses = -(chance * factor * known).sum((1, 2)) / (known.sum((1, 2)) + 1)
    return _reduce(name, losses, reduction)


def _rarity(
    counts: Tensor, totals: Tensor, upper_bound: float, inverse: bool, per_batch: bool
) -> Tensor:
    """(N, K): HANet's class weights. The share of a class is its count (N, K) of all `totals`."""
    if per_batch:
        counts = counts.sum(0, keepdim=True).expand_as(counts)
        totals = totals.sum(0, keepdim=True).expand_as(totals)
    share = counts / totals.sum(1, keepdim=True).clamp_min(1)
    rarity = 1 / torch.where(share > 0, share, 1.0) if inverse else 1 - share
    return torch.where(share > 0, 1 + upper_bound * rarity, 1.0)


def _reduce(function: str, losses: Tensor, reduction: str) -> Tensor:
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"{function}: reduction must be mean, sum or none, got {reduction!r}")
    if reduction == "none":
        return losses
    return losses.sum() / (max(1, losses.shape[0]) if reduction == "mean" else 1)
