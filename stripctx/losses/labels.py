"""Operations on labels for the losses: check, mark unlabelled pixels, count, weigh, average."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from stripctx import functional


def class_presence(target: Tensor, num_classes: int, ignore_index: int = 255) -> Tensor:
    """Which classes each image contains: the target of the semantic encoding loss.

    EncNet (Zhang et al., CVPR 2018). One scatter on the target's device; upstream computes a
    histogram per image on the CPU.

    Args:
        target: (N, H, W) integers.
        num_classes: K.
        ignore_index: a label to ignore, like all labels outside [0, K).

    Returns:
        (N, K) float32, 1 where the class is present and 0 elsewhere.

    Examples:
        >>> class_presence(torch.tensor([[[0, 2], [2, 255]]]), 3)
        tensor([[1., 0., 1.]])
    """
    labels = marked("class_presence", target, num_classes, ignore_index).flatten(1)
    absent = torch.zeros((labels.shape[0], num_classes + 1), device=target.device)
    return absent.scatter(1, labels, 1.0)[:, :num_classes]


def marked(function: str, target: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """The target as int64, with K for every unlabelled pixel."""
    if target.dim() != 3:
        raise ValueError(f"{function}: target must be 3-D (N, H, W), got {tuple(target.shape)}")
    if target.is_floating_point() or target.is_complex() or target.dtype is torch.bool:
        raise ValueError(f"{function}: target must hold integers, got {target.dtype}")
    target = target.long()
    known = (target >= 0) & (target < num_classes) & (target != ignore_index)
    return torch.where(known, target, num_classes)


def checked(
    function: str, logits: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int
) -> tuple[Tensor, Tensor]:
    """Logits in float32 or float64, not interpolated, and the labels as returned by `marked`."""
    if logits.dim() != 4 or not logits.is_floating_point():
        raise ValueError(
            f"{function}: logits must be a floating map (N, K, H, W), "
            f"got {logits.dtype} {tuple(logits.shape)}"
        )
    batch, classes, height, width = logits.shape
    size = tuple(target.shape)
    if len(size) != 3 or size[0] != batch or size[1] < height or size[2] < width:
        raise ValueError(
            f"{function}: target must have shape {(batch, height, width)}, or be larger than "
            f"logits, got {size}"
        )
    if weight is not None and weight.shape != (classes,):
        raise ValueError(
            f"{function}: weight must have shape {(classes,)}, got {tuple(weight.shape)}"
        )
    return at_least_float32(logits), marked(function, target, classes, ignore_index)


def at_least_float32(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def is_small(logits: Tensor, labels: Tensor) -> bool:
    """Whether logits are to be interpolated to the size of the labels."""
    return logits.shape[2:] != labels.shape[1:]


def nll(logits: Tensor, labels: Tensor, align_corners: bool) -> Tensor:
    """(N, H, W), 0 at unlabelled pixels."""
    unlabelled = logits.shape[1]
    if not is_small(logits, labels):
        return F.cross_entropy(logits, labels, ignore_index=unlabelled, reduction="none")
    return functional.upsample_cross_entropy(
        logits, labels, align_corners=align_corners, ignore_index=unlabelled, reduction="none"
    )


def pixel_weights(logits: Tensor, labels: Tensor, weight: Tensor | None) -> Tensor:
    """The weight (K,) or (N, K) of each pixel's class, (N, H, W); 0 at unlabelled pixels."""
    if weight is None:
        return (labels < logits.shape[1]).to(logits.dtype)
    weight = F.pad(weight.to(logits), (0, 1))
    if weight.dim() == 1:
        return weight[labels]
    return weight.gather(1, labels.flatten(1)).view_as(labels)


def weighted_mean(x: Tensor, weight: Tensor, dim: tuple[int, ...] | None) -> Tensor:
    """0 where the weights sum to 0."""
    total = weight.sum(dim)
    return (x * weight).sum(dim) / torch.where(total > 0, total, 1.0)


def class_counts(labels: Tensor, num_classes: int) -> Tensor:
    """The number of pixels per label, unlabelled last, (N, K+1). Integers: exact in any order."""
    labels = labels.flatten(1)
    counts = labels.new_zeros((labels.shape[0], num_classes + 1))
    return counts.scatter_add(1, labels, torch.ones_like(labels))


def one_hot(labels: Tensor, num_classes: int, dtype: torch.dtype) -> Tensor:
    """(N, num_classes, H, W)."""
    batch, height, width = labels.shape
    zeros = torch.zeros((batch, num_classes, height, width), dtype=dtype, device=labels.device)
    return zeros.scatter(1, labels[:, None], 1.0)


def shrunk(target: Tensor, height: int, width: int) -> Tensor:
    """Labels at another size: those of pixel floor(i * size / new size), as torch's `nearest`."""
    rows = torch.arange(height, device=target.device) * target.shape[1] // height
    cols = torch.arange(width, device=target.device) * target.shape[2] // width
    return target[:, rows[:, None], cols]
