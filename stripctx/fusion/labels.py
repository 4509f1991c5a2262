"""Losses and label maps of interpolated logits, computed from the small logits:

    F.cross_entropy, F.binary_cross_entropy_with_logits      upsample_(binary_)cross_entropy
    argmax, max over the classes                             upsample_argmax
    softmax over the classes, then either                    upsample_argmax, upsample_softmax_max

A label outside [0, K) is ignored, where torch raises an error (see stripctx.functional).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from stripctx import functional
from stripctx.fusion import cost
from stripctx.fusion.lazy import CONSUMERS, METHODS, Lazy
from stripctx.fusion.lazy_maps import Level

_LABELS = (torch.int64, torch.uint8)  # accepted by F.cross_entropy


class Softmax(Lazy):
    """Probabilities of interpolated logits."""

    def __init__(self, logits: Level) -> None:
        super().__init__(logits.shape, logits.inputs)
        self.logits = logits

    def make(self) -> Tensor:
        return self.logits.tensor().softmax(1)


class Largest(Lazy):
    """The maximum over the classes, of logits or probabilities."""

    def __init__(self, scores: Level | Softmax, keepdim: bool) -> None:
        batch, _, *size = scores.shape
        super().__init__((batch, *([1] if keepdim else []), *size), scores.inputs)
        self.scores, self.keepdim = scores, keepdim

    def make(self) -> Tensor:
        return self.scores.tensor().amax(1, self.keepdim)


class Maximum(NamedTuple):
    """The result of `torch.max`. `values` may be lazy, since callers often use only `indices`."""

    values: Any
    indices: Tensor


def _is_small(logits: Any) -> bool:
    """Whether these are lazily interpolated logits that the labels family can take: bilinear, with
    the ratio given by the sizes."""
    if not isinstance(logits, Level) or not logits.waits or logits.mode != "bilinear":
        return False
    if logits.is_identity or min(logits.shape) == 0:
        return False
    factors = logits.scale_factor
    if factors is None or logits.align_corners:
        return True
    sizes = zip(logits.shape[2:], logits.level.shape[2:], factors, strict=True)
    return all(extent == cells * factor for extent, cells, factor in sizes)


def _taken(logits: Any) -> tuple[Tensor, bool]:
    logits.check()
    cost.note([logits])
    return logits.level, bool(logits.align_corners)


def _as_torch(loss: Tensor, logits: Tensor) -> Tensor:
    """The loss in the dtype that torch returns: under autocast, losses are float32."""
    return loss if torch.is_autocast_enabled(logits.device.type) else loss.to(logits.dtype)


def _is_usual(size_average: Any, reduce: Any, reduction: Any) -> bool:
    """Whether the deprecated arguments size_average and reduce are unset."""
    return size_average is None and reduce is None and reduction in ("mean", "sum", "none")


def _cross_entropy(
    input: Any,
    target: Any,
    weight: Any = None,
    size_average: Any = None,
    ignore_index: int = -100,
    reduce: Any = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Any:
    if not _is_small(input) or not isinstance(target, Tensor) or target.dtype not in _LABELS:
        return NotImplemented
    expected = (input.shape[0], *input.shape[2:])
    if tuple(target.shape) != expected or target.device != input.device:
        return NotImplemented
    if not _is_usual(size_average, reduce, reduction):
        return NotImplemented
    if weight is not None and not _is_plain_weight(weight, (input.shape[1],), input):
        return NotImplemented
    logits, align_corners = _taken(input)
    loss = functional.upsample_cross_entropy(
        logits,
        target,
        weight,
        align_corners=align_corners,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        reduction=reduction,
    )
    return _as_torch(loss, logits)


def _is_plain_weight(weight: Any, shape: Sequence[int], logits: Any) -> bool:
    return (
        isinstance(weight, Tensor)
        and not weight.requires_grad
        and tuple(weight.shape) == tuple(shape)
        and weight.device == logits.device
    )


def _binary_cross_entropy(
    input: Any,
    target: Any,
    weight: Any = None,
    size_average: Any = None,
    reduce: Any = None,
    reduction: str = "mean",
    pos_weight: Any = None,
) -> Any:
    if not _is_small(input) or not isinstance(target, Tensor) or target.shape != input.shape:
        return NotImplemented
    if target.dtype != input.dtype or target.device != input.device or target.requires_grad:
        return NotImplemented
    if not _is_usual(size_average, reduce, reduction):
        return NotImplemented
    for factor in (weight, pos_weight):
        if factor is not None and (not isinstance(factor, Tensor) or factor.requires_grad):
            return NotImplemented
    logits, align_corners = _taken(input)
    loss = functional.upsample_binary_cross_entropy(
        logits,
        target,
        weight,
        pos_weight=pos_weight,
        align_corners=align_corners,
        reduction=reduction,
    )
    return _as_torch(loss, logits)


def _scores(input: Any) -> Level | None:
    """The lazily interpolated logits behind logits or probabilities; None if they are not lazy."""
    logits = input.logits if isinstance(input, Softmax) and input.waits else input
    return logits if _is_small(logits) else None


def _argmax(input: Any, dim: int | None = None, keepdim: bool = False) -> Any:
    small = _scores(input)
    if small is None or dim not in (1, -3):
        return NotImplemented
    logits, align_corners = _taken(small)
    labels = functional.upsample_argmax(logits, small.shape[2:], align_corners=align_corners)
    return labels.unsqueeze(1) if keepdim else labels


def _max(input: Any, dim: Any = None, keepdim: bool = False) -> Any:
    small = _scores(input)
    if small is None or not isinstance(dim, int) or dim not in (1, -3):
        return NotImplemented
    if isinstance(input, Softmax) and not input.requires_grad:
        logits, align_corners = _taken(small)
        labels, chance = functional.upsample_softmax_max(
            logits, small.shape[2:], align_corners=align_corners
        )
        chance = chance.to(logits.dtype)
        pair = (chance.unsqueeze(1), labels.unsqueeze(1)) if keepdim else (chance, labels)
        return Maximum(*pair)
    return Maximum(Largest(input, keepdim), _argmax(input, dim, keepdim))


def _softmax(input: Any, dim: Any = None, _stacklevel: int = 3, dtype: Any = None) -> Any:
    small = _is_small(input) and dim in (1, -3) and dtype is None
    return Softmax(input) if small else NotImplemented


def _softmax_of(input: Any, dim: Any = None, dtype: Any = None) -> Any:
    return _softmax(input, dim, dtype=dtype)


CONSUMERS.update(
    {
        F.cross_entropy: _cross_entropy,
        F.binary_cross_entropy_with_logits: _binary_cross_entropy,
        torch.argmax: _argmax,
        torch.Tensor.argmax: _argmax,
        torch.max: _max,
        torch.Tensor.max: _max,
        F.softmax: _softmax,
        torch.softmax: _softmax_of,
        torch.Tensor.softmax: _softmax_of,
    }
)
METHODS.update({"argmax": _argmax, "max": _max, "softmax": _softmax_of})
