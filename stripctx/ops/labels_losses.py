"""The labels family's losses: schemas, fake kernels, autograd formulas, vmap.

Shapes: logits (N, K, h, w); target, losses, log_sums (N, H, W), H >= h and W >= w; weight (K,).
Everything computed from the logits is float32, or float64 for float64.

A loss is returned per pixel, or summed along W in a fixed order, (N, H), without a map of losses.
The log-sum-exp of each pixel is saved for the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from stripctx.layout import empty, memory_format
from stripctx.ops import checks
from stripctx.ops.batching import in_a_loop
from stripctx.ops.labels_checks import check_logits, check_size, check_target, check_wide, new
from stripctx.ops.register import define
from stripctx.reference import labels as reference

OPS = torch.ops.stripctx


def _check_smoothing(name: str, label_smoothing: float) -> None:
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"{name}: label_smoothing must be from 0 to 1, got {label_smoothing}")


# upsample_cross_entropy returns the losses, per pixel or summed along W, the sums of the weights
# along W, and the log-sum-exps.


def _check_cross_entropy(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    align_corners: bool,
    ignore_index: int,
    label_smoothing: float,
    per_pixel: bool,
    name: str = "upsample_cross_entropy",
) -> None:
    check_logits(name, logits)
    check_target(name, logits, target)
    if weight is not None:
        check_wide(name, "weight", weight, logits, (logits.size(1),))
    _check_smoothing(name, label_smoothing)


def _fake_cross_entropy(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    align_corners: bool,
    ignore_index: int,
    label_smoothing: float,
    per_pixel: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    size = tuple(target.shape)
    losses = new(logits, *(size if per_pixel else size[:2]))
    return losses, new(logits, *size[:2]), new(logits, *size)


def _save_cross_entropy(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, target, weight, *ctx.options, ctx.per_pixel = inputs
    _, weights, log_sums = output
    ctx.mark_non_differentiable(weights, log_sums)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(logits, target, weight, log_sums)


def _backward_cross_entropy(ctx: Any, grad: Tensor | None, *others: Any) -> tuple[Any, ...]:
    if grad is None:
        return (None,) * 7
    logits, target, weight, log_sums = ctx.saved_tensors
    if not ctx.per_pixel:
        grad = grad[..., None].expand(target.shape)
    to_logits = OPS.upsample_cross_entropy_backward(
        grad, logits, target, weight, log_sums, *ctx.options
    )
    return to_logits, *(None,) * 6


def _check_cross_entropy_backward(
    grad: Tensor,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    log_sums: Tensor,
    align_corners: bool,
    ignore_index: int,
    label_smoothing: float,
) -> None:
    name = "upsample_cross_entropy_backward"
    _check_cross_entropy(
        logits, target, weight, align_corners, ignore_index, label_smoothing, False, name
    )
    check_wide(name, "grad", grad, logits, tuple(target.shape))
    check_wide(name, "log_sums", log_sums, logits, tuple(target.shape))


def _like_logits(logits: Tensor) -> Tensor:
    return empty(tuple(logits.shape), logits, memory_format(logits))


def _save_all(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    is_tensor = [isinstance(value, Tensor) for value in inputs]
    ctx.tensors = [i for i, tensor in enumerate(is_tensor) if tensor]
    ctx.arguments = [None if tensor else v for v, tensor in zip(inputs, is_tensor, strict=True)]
    ctx.save_for_backward(*(inputs[i] for i in ctx.tensors))


def _differentiated(
    formula: Callable[..., Tensor], log_sums: int | None
) -> Callable[[Any, Tensor], tuple[Any, ...]]:
    """The autograd formula of a backward operator: torch differentiates its reference by grad and
    logits, the first two arguments. The argument `log_sums` depends on the logits too and is
    recomputed."""

    def backward(ctx: Any, grad_out: Tensor) -> tuple[Any, ...]:
        arguments = list(ctx.arguments)
        for i, tensor in zip(ctx.tensors, ctx.saved_tensors, strict=True):
            arguments[i] = tensor.detach()
        if log_sums is not None:
            arguments[log_sums] = None
        with torch.enable_grad():
            leaves = [argument.requires_grad_() for argument in arguments[:2]]
            value = formula(*arguments)
            toward = torch.autograd.grad(value, leaves, grad_out, allow_unused=True)
        return *toward, *(None,) * (len(arguments) - 2)

    return backward


# upsample_binary_cross_entropy: each class has its own target and loss.


def _check_binary(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    align_corners: bool,
    per_pixel: bool,
    name: str = "upsample_binary_cross_entropy",
) -> None:
    check_logits(name, logits)
    checks.tensor(name, "target", target, "(N, K, H, W)")
    shape = (*logits.shape[:2], *target.shape[2:])
    for argument, value in (("target", target), ("weight", weight), ("pos_weight", pos_weight)):
        if value is None:
            continue
        checks.tensor(name, argument, value, "(N, K, H, W)")
        checks.size(name, argument, value, shape)
        checks.alike(name, argument, value, "logits", logits)
    check_size(name, "target", logits, target.shape[2:])


def _fake_binary(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    align_corners: bool,
    per_pixel: bool,
) -> Tensor:
    shape = tuple(target.shape)
    return new(logits, *(shape if per_pixel else shape[:3]))


def _save_binary(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    logits, target, weight, pos_weight, ctx.align_corners, ctx.per_pixel = inputs
    ctx.save_for_backward(logits, target, weight, pos_weight)


def _backward_binary(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    target = ctx.saved_tensors[1]
    if not ctx.per_pixel:
        grad = grad[..., None].expand(target.shape)
    to_logits = OPS.upsample_binary_cross_entropy_backward(
        grad, *ctx.saved_tensors, ctx.align_corners
    )
    return to_logits, *(None,) * 5


def _check_binary_backward(
    grad: Tensor,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    align_corners: bool,
) -> None:
    name = "upsample_binary_cross_entropy_backward"
    _check_binary(logits, target, weight, pos_weight, align_corners, False, name)
    check_wide(name, "grad", grad, logits, tuple(target.shape))


# upsample_dice: sums over an image, per class.


def _check_dice(
    logits: Tensor,
    target: Tensor,
    align_corners: bool,
    ignore_index: int,
    name: str = "upsample_dice",
) -> None:
    check_logits(name, logits)
    check_target(name, logits, target)


def _fake_dice(
    logits: Tensor, target: Tensor, align_corners: bool, ignore_index: int
) -> tuple[Tensor, Tensor]:
    batch, classes = logits.shape[:2]
    return new(logits, batch, 3, classes), new(logits, *target.shape)


def _save_dice(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    logits, target, *ctx.options = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(logits, target, output[1])


def _backward_dice(ctx: Any, grad: Tensor | None, other: Any) -> tuple[Any, ...]:
    if grad is None:
        return (None,) * 4
    return OPS.upsample_dice_backward(grad, *ctx.saved_tensors, *ctx.options), *(None,) * 3


def _check_dice_backward(
    grad: Tensor,
    logits: Tensor,
    target: Tensor,
    log_sums: Tensor,
    align_corners: bool,
    ignore_index: int,
) -> None:
    name = "upsample_dice_backward"
    _check_dice(logits, target, align_corners, ignore_index, name)
    check_wide(name, "grad", grad, logits, (logits.size(0), 3, logits.size(1)))
    check_wide(name, "log_sums", log_sums, logits, tuple(target.shape))


define(
    "upsample_cross_entropy",
    check=_check_cross_entropy,
    reference=reference.upsample_cross_entropy,
    fake=_fake_cross_entropy,
    setup_context=_save_cross_entropy,
    backward=_backward_cross_entropy,
    vmap=in_a_loop,
)
define(
    "upsample_cross_entropy_backward",
    check=_check_cross_entropy_backward,
    reference=reference.upsample_cross_entropy_backward,
    fake=lambda grad, logits, *others: _like_logits(logits),
    setup_context=_save_all,
    backward=_differentiated(reference.upsample_cross_entropy_backward, log_sums=4),
    vmap=in_a_loop,
)
define(
    "upsample_binary_cross_entropy",
    check=_check_binary,
    reference=reference.upsample_binary_cross_entropy,
    fake=_fake_binary,
    setup_context=_save_binary,
    backward=_backward_binary,
    vmap=in_a_loop,
)
define(
    "upsample_binary_cross_entropy_backward",
    check=_check_binary_backward,
    reference=reference.upsample_binary_cross_entropy_backward,
    fake=lambda grad, logits, *others: _like_logits(logits),
    setup_context=_save_all,
    backward=_differentiated(reference.upsample_binary_cross_entropy_backward, log_sums=None),
    vmap=in_a_loop,
)
define(
    "upsample_dice",
    check=_check_dice,
    reference=reference.upsample_dice,
    fake=_fake_dice,
    setup_context=_save_dice,
    backward=_backward_dice,
    vmap=in_a_loop,
)
define(
    "upsample_dice_backward",
    check=_check_dice_backward,
    reference=reference.upsample_dice_backward,
    fake=lambda grad, logits, *others: _like_logits(logits),
    setup_context=_save_all,
    backward=_differentiated(reference.upsample_dice_backward, log_sums=3),
    vmap=in_a_loop,
)
