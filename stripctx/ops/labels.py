"""The labels family's operators that return label maps: schemas, fake kernels, vmap. The losses are
in labels_losses.

Shapes: logits (N, K, h, w); labels (N, H, W), H >= h and W >= w. Probabilities are float32, or
float64 for float64. The public functions are in stripctx.functional, the arithmetic in
stripctx.reference.labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from stripctx.ops.batching import in_a_loop
from stripctx.ops.labels_checks import check_logits, check_size, new
from stripctx.ops.register import define
from stripctx.reference import labels as reference


def _nothing(ctx: Any, *grads: Any) -> tuple[None, ...]:
    return (None,) * 4


def _save_nothing(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    outputs = (output,) if isinstance(output, Tensor) else output
    ctx.mark_non_differentiable(*outputs)


# upsample_argmax: the class of the largest interpolated logit; upsample_softmax_max also returns
# its probability. Neither has a gradient.


def _check_argmax(
    name: str, logits: Tensor, size: Sequence[int], align_corners: bool, bytes: int
) -> None:
    check_logits(name, logits)
    check_size(name, "size", logits, size)
    if bytes not in reference.DTYPES:
        raise ValueError(f"{name}: bytes must be 1, 4 or 8, got {bytes}")
    if bytes == 1 and logits.size(1) > 256:
        raise ValueError(
            f"{name}: a uint8 label map holds at most 256 classes, got {logits.size(1)}"
        )


def _fake_argmax(logits: Tensor, size: Sequence[int], align_corners: bool, bytes: int) -> Tensor:
    shape = (logits.size(0), *size)
    return torch.empty(shape, dtype=reference.DTYPES[bytes], device=logits.device)


def _fake_softmax_max(
    logits: Tensor, size: Sequence[int], align_corners: bool, bytes: int
) -> tuple[Tensor, Tensor]:
    labels = _fake_argmax(logits, size, align_corners, bytes)
    return labels, new(logits, logits.size(0), *size)


define(
    "upsample_argmax",
    check=partial(_check_argmax, "upsample_argmax"),
    reference=reference.upsample_argmax,
    fake=_fake_argmax,
    setup_context=_save_nothing,
    backward=_nothing,
    vmap=in_a_loop,
)
define(
    "upsample_softmax_max",
    check=partial(_check_argmax, "upsample_softmax_max"),
    reference=reference.upsample_softmax_max,
    fake=_fake_softmax_max,
    setup_context=_save_nothing,
    backward=_nothing,
    vmap=in_a_loop,
)
