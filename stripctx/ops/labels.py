"""The labels family's operators: schemas, fake kernels, autograd formulas, vmap.

Shapes: logits (N, K, h, w); target, labels, losses, log_sums (N, H, W), H >= h and W >= w; weight
(K,). What is computed from logits is float32, float64 for float64, whatever type they have. The
functions a user calls are in stripctx.functional, the arithmetic in stripctx.reference.labels.

A loss is returned a pixel, or summed along W, (N, H): no map is written that nobody asked for, and
the order of the sums is fixed. Log-sum-exps are kept for the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from stripctx.layout import empty, memory_format
from stripctx.ops import checks
from stripctx.ops.batching import in_a_loop
from stripctx.ops.register import define
from stripctx.reference import labels as reference

OPS = torch.ops.stripctx

MOST_CLASSES = 2**24  # so that a class and its number are exact in float32
MOST_POSITIONS = 2**31 - 1  # along one axis of the image


def accumulate_dtype(logits: Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype is torch.float64 else torch.float32


def _check_logits(name: str, logits: Tensor) -> None:
    checks.tensor(name, "logits", logits, "(N, K, h, w)")
    classes, height, width = logits.shape[1:]
    if classes < 1 or height < 1 or width < 1:
        raise ValueError(
            f"{name}: logits must have a class, a row and a column, got {checks.sizes(logits)}"
        )
    if classes > MOST_CLASSES:
        raise ValueError(f"{name}: logits must have at most {MOST_CLASSES} classes, got {classes}")


def _check_size(name: str, argument: str, logits: Tensor, size: Sequence[int]) -> None:
    height, width = logits.shape[2:]
    if len(size) != 2 or size[0] < height or size[1] < width:
        raise ValueError(
            f"{name}: {argument} must be at least the size of logits, "
            f"({height}, {width}), got {checks.text(size)}"
        )
    if size[0] > MOST_POSITIONS or size[1] > MOST_POSITIONS:
        raise ValueError(
            f"{name}: {argument} must be at most {MOST_POSITIONS}, got {checks.text(size)}"
        )


def _check_target(name: str, logits: Tensor, target: Tensor) -> None:
    checks.given(name, "target", target)
    if target.dim() != 3:
        raise ValueError(
            f"{name}: target must be 3-D (N, H, W), got {target.dim()}-D {checks.sizes(target)}"
        )
    if target.dtype not in reference.DTYPES.values():
        raise ValueError(
            f"{name}: target must be int64, int32 or uint8, got {checks.dtype(target.dtype)}"
        )
    if target.layout is not torch.strided:
        raise ValueError(f"{name}: target must be a dense tensor, got {target.layout}")
    checks.same_device(name, "target", target, "logits", logits)
    checks.size(name, "target", target, (logits.size(0), *target.shape[1:]))
    _check_size(name, "target", logits, target.shape[1:])


def _check_wide(
    name: str, argument: str, value: Tensor, logits: Tensor, shape: tuple[Any, ...]
) -> None:
    """`value` has this shape and the type that sums over logits have."""
    checks.given(name, argument, value)
    checks.size(name, argument, value, shape)
    if value.layout is not torch.strided:
        raise ValueError(f"{name}: {argument} must be a dense tensor, got {value.layout}")
    if value.dtype is not accumulate_dtype(logits):
        raise ValueError(
            f"{name}: {argument} must be {checks.dtype(accumulate_dtype(logits))}, "
            f"got {checks.dtype(value.dtype)}"
        )
    checks.same_device(name, argument, value, "logits", logits)


def _check_smoothing(name: str, label_smoothing: float) -> None:
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"{name}: label_smoothing must be from 0 to 1, got {label_smoothing}")


def _new(logits: Tensor, *shape: int | torch.SymInt) -> Tensor:
    return torch.empty(shape, dtype=accumulate_dtype(logits), device=logits.device)


def _nothing(ctx: Any, *grads: Any) -> tuple[None, ...]:
    return (None,) * 4


def _save_nothing(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    outputs = (output,) if isinstance(output, Tensor) else output
    ctx.mark_non_differentiable(*outputs)


# upsample_argmax: the class of the largest interpolated logit; upsample_softmax_max: and its
# probability. Neither has a gradient.


def _check_argmax(
    name: str, logits: Tensor, size: Sequence[int], align_corners: bool, bytes: int
) -> None:
    _check_logits(name, logits)
    _check_size(name, "size", logits, size)
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
    return labels, _new(logits, logits.size(0), *size)


# upsample_cross_entropy: losses, a pixel or summed along W; the sums along W of the weights;
# log-sum-exps.


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
    _check_logits(name, logits)
    _check_target(name, logits, target)
    if weight is not None:
        _check_wide(name, "weight", weight, logits, (logits.size(1),))
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
    losses = _new(logits, *(size if per_pixel else size[:2]))
    return losses, _new(logits, *size[:2]), _new(logits, *size)


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
    _check_wide(name, "grad", grad, logits, tuple(target.shape))
    _check_wide(name, "log_sums", log_sums, logits, tuple(target.shape))


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
    """The autograd formula of a backward operator: its reference, differentiated by torch with
    respect to grad and logits, its first two arguments. Log-sum-exps, argument `log_sums`, depend
    on the logits too, and are computed again."""

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


# upsample_binary_cross_entropy: an output a class, each against a target of its own.


def _check_binary(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    align_corners: bool,
    per_pixel: bool,
    name: str = "upsample_binary_cross_entropy",
) -> None:
    _check_logits(name, logits)
    checks.tensor(name, "target", target, "(N, K, H, W)")
    shape = (*logits.shape[:2], *target.shape[2:])
    for argument, value in (("target", target), ("weight", weight), ("pos_weight", pos_weight)):
        if value is None:
            continue
        checks.tensor(name, argument, value, "(N, K, H, W)")
        checks.size(name, argument, value, shape)
        checks.alike(name, argument, value, "logits", logits)
    _check_size(name, "target", logits, target.shape[2:])


def _fake_binary(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    align_corners: bool,
    per_pixel: bool,
) -> Tensor:
    shape = tuple(target.shape)
    return _new(logits, *(shape if per_pixel else shape[:3]))


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
    _check_wide(name, "grad", grad, logits, tuple(target.shape))


# upsample_dice: a class' sums over an image.


def _check_dice(
    logits: Tensor,
    target: Tensor,
    align_corners: bool,
    ignore_index: int,
    name: str = "upsample_dice",
) -> None:
    _check_logits(name, logits)
    _check_target(name, logits, target)


def _fake_dice(
    logits: Tensor, target: Tensor, align_corners: bool, ignore_index: int
) -> tuple[Tensor, Tensor]:
    batch, classes = logits.shape[:2]
    return _new(logits, batch, 3, classes), _new(logits, *target.shape)


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
    _check_wide(name, "grad", grad, logits, (logits.size(0), 3, logits.size(1)))
    _check_wide(name, "log_sums", log_sums, logits, tuple(target.shape))


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
