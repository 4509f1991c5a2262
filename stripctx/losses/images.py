"""HANet's losses, with class weights from the frequencies in each image: image-weighted
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
    """Cross-entropy with class weights from the class frequencies of each image.

    HANet's loss (Choi et al., CVPR 2020, as released). With f_k the share of class k among the
    labelled pixels of an image, w_k = 1 + upper_bound * (1 - f_k) if f_k > 0, else 1, and the loss
    of the image is the w-weighted mean over its labelled pixels.

    Upstream sums over the images, counts the label K as K-1 (its last histogram bin is closed) and
    needs an old version of NumPy. Here the label K is unlabelled, and `reduction` defaults to
    `mean`; use `sum` with a learning rate tuned for upstream.

    Args:
        logits, target, ignore_index, align_corners: see `cross_entropy`.
        weight: (K,), multiplied with w.
        upper_bound: the largest addition to a weight.
        inverse: use w_k = 1 + upper_bound / f_k instead.
        per_batch: take the frequencies over the whole batch.
        reduction: `mean` or `sum` over the images, or `none` for one value per image, (N,).

    Returns:
        A scalar, or (N,) for `none`.

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
    """-log of the probability of any class in the neighbourhood of the pixel.

    Zhu et al., CVPR 2019, with HANet's class weights. With S the set of classes within `border`
    pixels, the loss of a pixel is -log(sum over S of softmax(logits)) times the mean of w_k over S.
    The loss of an image is the sum over its pixels divided by their number plus one, as upstream.
    Pixels with an empty S are ignored. w_k is that of `image_weighted_cross_entropy`, with f_k the
    share of k in the sum of the sizes of all S. Unlabelled pixels and positions outside the image
    count as one more class there.

    Upstream's target is the sets, (N, K+1, H, W), built by the data loader. Here they are built on
    the device at the target's size, so smaller logits are interpolated first. Computed in log
    space, which avoids underflow.

    Args:
        logits, target, ignore_index, align_corners: see `cross_entropy`.
        border: the radius in pixels of the square neighbourhood.
        weight, upper_bound, inverse, per_batch, reduction: as in `image_weighted_cross_entropy`.

    Returns:
        A scalar, or (N,) for `none`.

    Examples:
        >>> relaxed_boundary_loss(torch.zeros(1, 2, 1, 2), torch.tensor([[[0, 1]]]))
        tensor(0.)
    """
    name = "relaxed_boundary_loss"
    if border < 0:
        raise ValueError(f"{name}: border must not be negative, got {border}")
    logits, labels = checked(name, logits, target, weight, ignore_index)
    if is_small(logits, labels):  # the sets have the size of the interpolated logits anyway
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
    # with an empty set, sum over all classes: log 1, without an infinite gradient
    inside = (near > 0) | (sizes == 0)[:, None]
    chance = logits.masked_fill(~inside, -torch.inf).logsumexp(1) - logits.logsumexp(1)
    factor = (near * factors[:, :, None, None]).sum(1) / sizes.clamp_min(1)
    losses = -(chance * factor * known).sum((1, 2)) / (known.sum((1, 2)) + 1)
    return _reduce(name, losses, reduction)


def _rarity(
    counts: Tensor, totals: Tensor, upper_bound: float, inverse: bool, per_batch: bool
) -> Tensor:
    """HANet's class weights, (N, K). The share of a class is its count (N, K) divided by the sum of
    `totals`."""
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
