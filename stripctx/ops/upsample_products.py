"""Building blocks of the convolution over a pyramid (upsample_conv.py): library products that write
into memory with huge pages, and `pyramid_taps_add` into an existing map. All but `of_each_tap` run
below autograd."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stripctx.ops import checks, upsample_taps
from stripctx.ops.schemas import LIBRARY, declare
from stripctx.reference import upsample as reference

OPS = torch.ops.stripctx
LARGE = 2**20  # bytes; malloc serves smaller blocks from memory it already has
MAPPED_AFRESH = 2**25  # bytes; malloc maps larger blocks anew each time


def as_matrix(map: Tensor) -> bool:
    """Whether a 1x1 convolution runs as a matrix product. The CPU's convolutions convert a
    contiguous map to a blocked layout and back; matrix products use it directly. In float16 they
    take many times as long as a convolution."""
    if torch.onnx.is_in_onnx_export():
        return False
    return map.device.type == "cpu" and map.is_contiguous() and map.dtype is not torch.float16


def memory(shape: Sequence[int], like: Tensor) -> Tensor:
    """An uninitialised contiguous tensor; if it is large, with huge pages."""
    size = list(shape)
    if like.device.type == "cpu" and like.element_size() * torch.Size(size).numel() >= LARGE:
        return OPS.map_memory(size, like)
    return like.new_empty(size)


def as_pixels(map: Tensor, matrix: Tensor) -> bool:
    """Whether the 1x1 convolution of a channels_last map runs as a product of one matrix, a row per
    pixel. The library's convolution is faster, unless malloc would map its result, or the gradient
    of the map, anew in small pages."""
    last = map.is_contiguous(memory_format=torch.channels_last)
    if map.device.type != "cpu" or not last or map.dtype is torch.float16:
        return False
    positions = map.size(0) * map.size(2) * map.size(3)
    return positions * max(matrix.shape) * map.element_size() > MAPPED_AFRESH


def by_pixel(map: Tensor) -> Tensor:
    """(N*H*W, C), a view."""
    return map.permute(0, 2, 3, 1).flatten(0, 2)


def product(map: Tensor, matrix: Tensor, bias: Tensor | None = None) -> Tensor:
    """The 1x1 convolution by `matrix` (O, C), below autograd."""
    images, size = map.size(0), map.shape[2:]
    if as_matrix(map):
        out = memory((images, matrix.size(0), size.numel()), map)
        matrices, columns = matrix.expand(images, -1, -1), map.flatten(2)
        if bias is None:
            torch.bmm(matrices, columns, out=out)
        else:
            torch.baddbmm(bias[:, None], matrices, columns, out=out)
        return out.unflatten(2, size)
    if as_pixels(map, matrix):
        pixels = memory((images * size.numel(), matrix.size(0)), map)
        if bias is None:
            torch.mm(by_pixel(map), matrix.T, out=pixels)
        else:
            torch.addmm(bias, by_pixel(map), matrix.T, out=pixels)
        return pixels.unflatten(0, (images, *size)).permute(0, 3, 1, 2)
    return F.conv2d(map, matrix[:, :, None, None], bias)


def product_backward(
    grad: Tensor, map: Tensor, matrix: Tensor, needs_map: bool, needs_matrix: bool
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of the map and the matrix of `product`; grad has the layout of the map."""
    if not as_matrix(map) and not as_pixels(map, matrix):
        needs = [needs_map, needs_matrix, False]
        kernel = matrix[:, :, None, None]
        of_map, of_kernel, _ = convolution_backward(grad, map, kernel, [0, 0], [1, 1], needs)
        return of_map if needs_map else None, of_kernel.flatten(1) if needs_matrix else None
    to_map = product(grad, matrix.T) if needs_map else None
    return to_map, product_of_weights(grad, map) if needs_matrix else None


def product_of_weights(grad: Tensor, map: Tensor) -> Tensor:
    if not as_matrix(map):
        return torch.mm(by_pixel(grad).T, by_pixel(map))
    products = torch.bmm(grad.flatten(2), map.flatten(2).transpose(1, 2))
    return products.sum(0) if map.size(0) > 1 else products.flatten(0, 1)


def convolution_backward(
    grad: Tensor, map: Tensor, weight: Tensor, padding: list[int], dilation: list[int],
    needs: list[bool],
) -> Sequence[Tensor]:  # fmt: skip
    return torch.ops.aten.convolution_backward(
        grad, map, weight, [grad.size(1)], [1, 1], padding, dilation, False, [0, 0], 1, needs
    )


def of_each_tap(part: Tensor) -> Tensor:
    """The slice of the weight for a level, as the matrix (kh*kw*O, C_l) of its taps."""
    return part.permute(2, 3, 0, 1).reshape(-1, part.size(1))


def of_each_tap_at_once(part: Tensor) -> Tensor:
    """The same below autograd. One tap is a view."""
    by_tap = part.permute(2, 3, 0, 1)
    if part.size(2) * part.size(3) > 1:
        by_tap = memory(by_tap.shape, part).copy_(by_tap)
    return by_tap.flatten(0, 2)


def joined(parts: Sequence[Tensor | None], weight: Tensor) -> Tensor:
    """The weight's gradient, concatenated from its slices; each is written once."""
    out = memory(weight.shape, weight)
    begin = 0
    for part in parts:
        assert part is not None
        out[:, begin : begin + part.size(1)] = part
        begin += part.size(1)
    return out


def _taps_add_into(base: Tensor, *arguments: Any, out: Tensor) -> Tensor:
    upsample_taps.check_taps_add(base, *arguments)
    checks.alike("pyramid_taps_add", "out", out, "base", base)
    checks.size("pyramid_taps_add", "out", out, tuple(base.shape))
    return out.copy_(reference.pyramid_taps_add(base, *arguments))


def _map_memory(size: list[int], like: Tensor) -> Tensor:
    return like.new_empty(size)


# The product and sum of PyramidConv, below autograd. `out` may be `base`.
declare("pyramid_taps_add.out")
LIBRARY.impl("pyramid_taps_add.out", _taps_add_into, "CompositeExplicitAutograd")
declare("map_memory")
LIBRARY.impl("map_memory", _map_memory, "CompositeExplicitAutograd")
