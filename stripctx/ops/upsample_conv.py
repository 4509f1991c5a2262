"""The convolution over a pyramid, `functional.pyramid_conv`: library products at each map's own
resolution and `pyramid_taps_add`.

Traces, transforms and other devices use the composition of these operators (upsample_composed). On
a CPU it would allocate a second map for the sum, and library products would return memory with a
page fault for every 4 KB. Outside of traces, CPUs therefore run a single autograd node: the levels
are added in place to the convolution of x, and each slice of the weight's gradient is written
directly into the result.

Shapes: maps (N, C_l, h, w) in the order of the concatenation; x and any number of further maps are
(N, C, H, W); weight (O, sum of C_l, kh, kw); taps of a level (N, kh*kw*O, h, w).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stripctx import _compat
from stripctx.layout import is_channels_last
from stripctx.ops import checks
from stripctx.ops.upsample_composed import Geometry, Maps, composed, concatenated
from stripctx.ops.upsample_products import (
    as_matrix,
    as_pixels,
    convolution_backward,
    joined,
    of_each_tap_at_once,
    product,
    product_backward,
    product_of_weights,
)

OPS = torch.ops.stripctx


def pyramid_conv(
    maps: Sequence[Tensor], weight: Tensor, bias: Tensor | None, geometry: Geometry
) -> Tensor:
    """conv2d over the concatenation of the maps, interpolated to the size of x."""
    if _compat.is_tracing() and not torch.onnx.is_in_onnx_export():
        return concatenated(maps, weight, bias, geometry)
    operands = [weight, *maps] if bias is None else [weight, bias, *maps]
    empty = any(map.size(1) == 0 for map in maps)
    if empty or not all(map(_runs_at_once, operands)) or _compat.is_transformed_or_traced():
        return composed(maps, weight, bias, geometry)
    if torch.is_autocast_enabled("cpu"):
        operands = [_as_under_autocast(operand) for operand in operands]
    if any(operand.dtype != operands[0].dtype for operand in operands):
        return composed(maps, weight, bias, geometry)  # raises the error
    weight, *rest = operands
    bias, maps = (None, rest) if bias is None else (rest[0], rest[1:])
    return PyramidConv.apply(geometry, weight, bias, *maps)


def _runs_at_once(operand: Tensor) -> bool:
    return (
        type(operand) in (Tensor, torch.nn.Parameter)
        and operand.device.type == "cpu"
        and operand.layout is torch.strided
        and operand.dtype in checks.DTYPES
    )


def _as_under_autocast(operand: Tensor) -> Tensor:
    """Casts as conv2d does under autocast."""
    if operand.dtype is torch.float64:
        return operand
    return operand.to(torch.get_autocast_dtype("cpu"))


def _forward(
    maps: Sequence[Tensor], weight: Tensor, bias: Tensor | None, geometry: Geometry
) -> Tensor:
    plan = Maps(maps, weight, geometry)
    maps = [map.contiguous(memory_format=plan.format) for map in maps]
    parts = plan.parts(weight)
    of_maps, of_weight = plan.together(maps), plan.together(parts)
    if plan.pointwise:
        out = product(of_maps, of_weight.flatten(1), bias)
    else:
        if plan.format is torch.contiguous_format and is_channels_last(of_weight):
            of_weight = of_weight.contiguous()  # otherwise the result would be channels_last
        out = F.conv2d(
            of_maps, of_weight, bias, padding=geometry.padding, dilation=geometry.dilation
        )
    if plan.small:
        taps = [product(maps[k], of_each_tap_at_once(parts[k])) for k in plan.small]
        OPS.pyramid_taps_add.out(out, taps, *plan.taps, out=out)
    return out


def _backward(
    grad: Tensor,
    maps: Sequence[Tensor],
    weight: Tensor,
    geometry: Geometry,
    needs: Sequence[bool],
) -> list[Tensor | None]:
    """The gradients of the maps, the weight and the bias that are needed, None for the others."""
    plan = Maps(maps, weight, geometry)
    grad = grad.contiguous(memory_format=plan.format)
    maps = [map.contiguous(memory_format=plan.format) for map in maps]
    parts, needs_weight = plan.parts(weight), needs[-2]
    grads: list[Tensor | None] = [None] * len(maps)
    of_weight: list[Tensor | None] = [None] * len(maps)
    small = [k for k in plan.small if needs[k] or needs_weight]
    if small:
        sizes = [size for k in plan.small for size in maps[k].shape[2:]]
        last = plan.format is torch.channels_last
        of_taps = OPS.pyramid_taps_add_backward(grad, sizes, *plan.taps, last)
        for k, of_tap in zip(plan.small, of_taps, strict=True):
            matrix = of_each_tap_at_once(parts[k])
            grads[k], by_tap = product_backward(of_tap, maps[k], matrix, needs[k], needs_weight)
            if by_tap is not None:
                of_weight[k] = by_tap.unflatten(0, (*plan.kernel, -1)).permute(2, 3, 0, 1)
        del of_taps
    of_bias = _backward_of_whole(plan, geometry, grad, maps, parts, needs, grads, of_weight)
    return [*grads, joined(of_weight, weight) if needs_weight else None, of_bias]


def _backward_of_whole(
    plan: Maps,
    geometry: Geometry,
    grad: Tensor,
    maps: Sequence[Tensor],
    parts: Sequence[Tensor],
    needs: Sequence[bool],
    grads: list[Tensor | None],
    of_weight: list[Tensor | None],
) -> Tensor | None:
    """Writes the gradients of the maps at full size and of their slices into `grads` and
    `of_weight`; returns the gradient of the bias."""
    needs_weight, needs_bias = needs[-2:]
    needs_maps = any(needs[k] for k in plan.whole)
    of_maps, of_part = plan.together(maps), plan.together(parts)
    to_maps = to_part = to_bias = None
    if plan.pointwise and (as_matrix(of_maps) or as_pixels(of_maps, of_part)):
        if needs_maps:
            to_maps = product(grad, of_part.flatten(1).T)
        if needs_weight:
            to_part = product_of_weights(grad, of_maps)[:, :, None, None]
        if needs_bias:
            to_bias = grad.sum((0, 2, 3))
    elif needs_maps or needs_weight or needs_bias:
        to_maps, to_part, to_bias = convolution_backward(
            grad,
            of_maps,
            of_part,
            geometry.padding,
            geometry.dilation,
            [needs_maps, needs_weight, needs_bias],
        )
    channels = [plan.channels[k] for k in plan.whole]
    for result, pieces in ((grads, to_maps), (of_weight, to_part)):
        if pieces is not None:
            for k, piece in zip(plan.whole, pieces.split(channels, 1), strict=True):
                result[k] = piece
    return to_bias if needs_bias else None


class PyramidConv(torch.autograd.Function):
    """conv2d over the concatenation of the maps, interpolated to the size of x."""

    @staticmethod
    def forward(
        ctx: Any, geometry: Geometry, weight: Tensor, bias: Tensor | None, *maps: Tensor
    ) -> Tensor:
        ctx.geometry = geometry
        ctx.save_for_backward(weight, *maps)
        return _forward(maps, weight, bias, geometry)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        weight, *maps = ctx.saved_tensors
        _, needs_weight, needs_bias, *needs_maps = ctx.needs_input_grad
        if _compat.is_batch_of_gradients(grad):
            return None, *_composed_backward(ctx, grad, weight, maps)
        *grads, of_weight, of_bias = PyramidConvBackward.apply(
            ctx.geometry, (*needs_maps, needs_weight, needs_bias), grad, weight, *maps
        )
        return None, of_weight, of_bias, *grads


def _composed_backward(
    ctx: Any, grad: Tensor, weight: Tensor, maps: Sequence[Tensor]
) -> tuple[Tensor | None, ...]:
    """The gradients of weight, bias and maps by the composition, whose operators have batching
    rules for batched gradients."""
    _, needs_weight, needs_bias, *needs_maps = ctx.needs_input_grad
    again = torch.is_grad_enabled()
    needs, inputs = [needs_weight, *needs_maps], [weight, *maps]
    with torch.enable_grad():
        if not again:
            pairs = zip(inputs, needs, strict=True)
            inputs = [one.detach().requires_grad_(need) for one, need in pairs]
        out = composed(inputs[1:], inputs[0], None, ctx.geometry)
        wanted = [one for one, need in zip(inputs, needs, strict=True) if need]
        given = torch.autograd.grad(out, wanted, grad, create_graph=again) if wanted else ()
    grads = iter(given)
    of_weight, *of_maps = (next(grads) if need else None for need in needs)
    return of_weight, grad.sum((0, 2, 3)) if needs_bias else None, *of_maps


class PyramidConvBackward(torch.autograd.Function):
    """The gradients as an autograd function. They are linear in grad, and each is linear in the
    other operand of the product."""

    @staticmethod
    def forward(
        ctx: Any, geometry: Geometry, needs: tuple[bool, ...], grad: Tensor, weight: Tensor,
        *maps: Tensor,
    ) -> tuple[Tensor | None, ...]:  # fmt: skip
        ctx.geometry, ctx.needs = geometry, needs
        ctx.save_for_backward(grad, weight, *maps)
        ctx.set_materialize_grads(False)
        return tuple(_backward(grad, maps, weight, geometry, needs))

    @staticmethod
    def backward(ctx: Any, *seconds: Tensor | None) -> tuple[Any, ...]:
        """Differentiates sum(seconds * gradients) = sum(grad * total) with
        total = conv(seconds of maps, weight) + conv(maps, second of weight) + second of bias.
        """
        grad, weight, *maps = ctx.saved_tensors
        _, _, needs_grad, needs_weight, *needs_maps = ctx.needs_input_grad
        *given, second_weight, second_bias = seconds
        second_maps = [
            map.new_zeros(map.shape) if second is None else second
            for map, second in zip(maps, given, strict=True)
        ]
        geometry, count = ctx.geometry, len(maps)
        to_grad: list[Tensor] = []
        to_weight = None
        to_maps: list[Tensor | None] = [None] * count
        if any(second is not None for second in given):
            if needs_grad:
                to_grad.append(PyramidConv.apply(geometry, weight, None, *second_maps))
            if needs_weight:
                wanted = (*[False] * count, True, False)
                gradients = PyramidConvBackward.apply(geometry, wanted, grad, weight, *second_maps)
                to_weight = gradients[count]
        if second_weight is not None:
            if needs_grad:
                to_grad.append(PyramidConv.apply(geometry, second_weight, None, *maps))
            if any(needs_maps):
                wanted = (*needs_maps, False, False)
                gradients = PyramidConvBackward.apply(geometry, wanted, grad, second_weight, *maps)
                to_maps = list(gradients[:count])
        if second_bias is not None and needs_grad:
            to_grad.append(second_bias[:, None, None].expand_as(grad))
        total = sum(to_grad) if to_grad else None
        return None, None, total, to_weight, *to_maps
