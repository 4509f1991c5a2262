"""Label maps and losses from logits smaller than the image, in plain PyTorch: the logits are
interpolated bilinearly, then reduced over the classes. Forward and explicit backward.

Shapes: logits (N, K, h, w); target, labels, losses and log_sums (N, H, W); weight (K,). Half types
are computed in float32; losses, sums and probabilities are float32, or float64 for float64.

Pixels with a label outside [0, K) or equal to ignore_index are ignored.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from stripctx.layout import memory_format
from stripctx.reference.common import widen
from stripctx.reference.upsample import BILINEAR, BILINEAR_ALIGNED, upsample, upsample_adjoint

DTYPES = {1: torch.uint8, 4: torch.int32, 8: torch.int64}  # of label maps, by bytes


def upsample_argmax(logits: Tensor, size: Sequence[int], align_corners: bool, bytes: int) -> Tensor:
    labels = _wide_logits(logits, size, align_corners).argmax(1)
    return labels.to(DTYPES[bytes]).contiguous()


def upsample_softmax_max(
    logits: Tensor, size: Sequence[int], align_corners: bool, bytes: int
) -> tuple[Tensor, Tensor]:
    wide = _wide_logits(logits, size, align_corners)
    largest, labels = wide.max(1)
    chance = (largest - _log_sums(wide)).exp()
    return labels.to(DTYPES[bytes]).contiguous(), chance.contiguous()


def upsample_cross_entropy(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    align_corners: bool,
    ignore_index: int,
    label_smoothing: float,
    per_pixel: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """With s = log_sums and w the weights, the loss of a pixel labelled t is
    (1 - e) w_t (s - z_t) + e / K * sum over k of w_k (s - z_k)."""
    wide = _wide_logits(logits, target.shape[1:], align_corners)
    classes = wide.size(1)
    log_sums = _log_sums(wide)
    labels, known = _known(target, classes, ignore_index)
    factors = _pixel_weights(labels, known, weight, wide)
    picked = log_sums - wide.gather(1, labels[:, None])[:, 0]
    losses = (1 - label_smoothing) * factors * picked
    if label_smoothing > 0:
        each = wide.new_ones(classes) if weight is None else weight
        all_classes = ((log_sums[:, None] - wide) * each.view(-1, 1, 1)).sum(1)
        losses = losses + label_smoothing / classes * all_classes
    losses = torch.where(known, losses, 0)
    losses = losses if per_pixel else losses.sum(2)
    return losses.contiguous(), factors.sum(2).contiguous(), log_sums.contiguous()


def upsample_cross_entropy_backward(
    grad: Tensor,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    log_sums: Tensor | None,
    align_corners: bool,
    ignore_index: int,
    label_smoothing: float,
) -> Tensor:
    """The derivative by z_k: p_k ((1 - e) w_t + e / K * sum of w) - (1 - e) w_t [k = t] - e / K *
    w_k."""
    wide = _wide_logits(logits, target.shape[1:], align_corners)
    classes = wide.size(1)
    labels, known = _known(target, classes, ignore_index)
    scale = torch.where(known, grad, 0)
    hit = (1 - label_smoothing) * scale * _pixel_weights(labels, known, weight, wide)
    slope = _softmax(wide, log_sums) * hit[:, None]
    slope = slope - _one_hot(labels, classes, wide) * hit[:, None]
    if label_smoothing > 0:
        each = wide.new_ones(classes) if weight is None else weight
        share = label_smoothing / classes * scale[:, None]
        slope = slope + share * (_softmax(wide, log_sums) * each.sum() - each.view(-1, 1, 1))
    return _to_logits(torch.where(known[:, None], slope, 0), logits, align_corners)


def upsample_binary_cross_entropy(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    align_corners: bool,
    per_pixel: bool,
) -> Tensor:
    """w [(1 - y) z + (1 + (p - 1) y) log(1 + exp(-z))] for a target y and a positive weight p."""
    wide = _wide_logits(logits, target.shape[2:], align_corners)
    losses = F.binary_cross_entropy_with_logits(
        wide,
        widen(target),
        None if weight is None else widen(weight),
        reduction="none",
        pos_weight=None if pos_weight is None else widen(pos_weight),
    )
    return losses.contiguous() if per_pixel else losses.sum(3).contiguous()


def upsample_binary_cross_entropy_backward(
    grad: Tensor,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    align_corners: bool,
) -> Tensor:
    """The derivative by z: w [(1 - y) - (1 + (p - 1) y) sigmoid(-z)]."""
    wide = _wide_logits(logits, target.shape[2:], align_corners)
    y = widen(target)
    positive = y if pos_weight is None else y * widen(pos_weight)
    slope = (1 - y) - (1 - y + positive) * torch.sigmoid(-wide)
    if weight is not None:
        slope = slope * widen(weight)
    return _to_logits(slope * grad, logits, align_corners)


def upsample_dice(
    logits: Tensor, target: Tensor, align_corners: bool, ignore_index: int
) -> tuple[Tensor, Tensor]:
    """Sums (N, 3, K) over the labelled pixels of p [k = t], of p and of [k = t]."""
    wide = _wide_logits(logits, target.shape[1:], align_corners)
    labels, known = _known(target, wide.size(1), ignore_index)
    log_sums = _log_sums(wide)
    truth = _one_hot(labels, wide.size(1), wide) * known[:, None]
    chance = torch.where(known[:, None], _softmax(wide, log_sums), 0)
    sums = [(chance * truth).sum((2, 3)), chance.sum((2, 3)), truth.sum((2, 3))]
    return torch.stack(sums, 1), log_sums.contiguous()


def upsample_dice_backward(
    grad: Tensor,
    logits: Tensor,
    target: Tensor,
    log_sums: Tensor | None,
    align_corners: bool,
    ignore_index: int,
) -> Tensor:
    """The derivative by z_k: p_k (q_k - sum over j of p_j q_j), with q_k = grad_mass_k + [k = t]
    grad_overlap_k."""
    wide = _wide_logits(logits, target.shape[1:], align_corners)
    labels, known = _known(target, wide.size(1), ignore_index)
    chance = _softmax(wide, log_sums)
    truth = _one_hot(labels, wide.size(1), wide)
    toward = grad[:, 1, :, None, None] + truth * grad[:, 0, :, None, None]
    slope = chance * (toward - (chance * toward).sum(1, keepdim=True))
    return _to_logits(torch.where(known[:, None], slope, 0), logits, align_corners)


def _wide_logits(logits: Tensor, size: Sequence[int], align_corners: bool) -> Tensor:
    return upsample(widen(logits), size[0], size[1], _mode(align_corners))


def _to_logits(slope: Tensor, logits: Tensor, align_corners: bool) -> Tensor:
    height, width = logits.shape[2:]
    grad = upsample_adjoint(slope, height, width, _mode(align_corners)).to(logits.dtype)
    return grad.contiguous(memory_format=memory_format(logits))


def _mode(align_corners: bool) -> int:
    return BILINEAR_ALIGNED if align_corners else BILINEAR


def _log_sums(wide: Tensor) -> Tensor:
    """log of the sum of exp over the classes; NaN wherever torch's log_softmax is NaN."""
    largest = wide.detach().amax(1, keepdim=True)
    return (wide - largest).exp().sum(1).log() + largest[:, 0]


def _softmax(wide: Tensor, log_sums: Tensor | None) -> Tensor:
    return wide.softmax(1) if log_sums is None else (wide - log_sums[:, None]).exp()


def _known(target: Tensor, classes: int, ignore_index: int) -> tuple[Tensor, Tensor]:
    """The labels, with ignored ones as 0, and a mask of those that are not ignored."""
    labels = target.long()
    known = (labels >= 0) & (labels < classes) & (labels != ignore_index)
    return torch.where(known, labels, 0), known


def _pixel_weights(labels: Tensor, known: Tensor, weight: Tensor | None, like: Tensor) -> Tensor:
    return known.to(like.dtype) if weight is None else torch.where(known, weight[labels], 0)


def _one_hot(labels: Tensor, classes: int, like: Tensor) -> Tensor:
    return (labels[:, None] == torch.arange(classes, device=labels.device).view(-1, 1, 1)).to(like)
