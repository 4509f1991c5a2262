"""The upsample family's operators, which interpolate levels: schemas, fake kernels, autograd
formulas, autocast, vmap.

Shapes: x, out, grad (N, C, H, W); levels: 1 to 8 maps (N, C_l, h, w), any sizes from 1 up. The
functions a user calls are in stripctx.functional, the arithmetic in stripctx.reference.upsample.

All but the rectifier is linear: the backward of a backward operator is the forward one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from stripctx.layout import empty, is_channels_last, memory_format
from stripctx.ops import checks
from stripctx.ops.batching import over_images
from stripctx.ops.register import define
from stripctx.reference import upsample as reference

OPS = torch.ops.stripctx
MOST_LEVELS = 8
MOST = 2**31 - 1  # so that no sum or product below leaves 64 bits
MOST_TAPS = 2**15 - 1  # along one axis


def _check_count(name: str, argument: str, count: int) -> None:
    if not 1 <= count <= MOST_LEVELS:
        raise ValueError(f"{name}: {argument} must hold 1 to {MOST_LEVELS} tensors, got {count}")


def _check_levels(
    name: str,
    argument: str,
    levels: Sequence[Tensor],
    first: str,
    other: Tensor,
    channels: int | None = None,
) -> None:
    """Maps of the batch, dtype and device of `other`, with `channels` channels or any number."""
    _check_count(name, argument, len(levels))
    for i, level in enumerate(levels):
        item = f"{argument}[{i}]"
        checks.tensor(name, item, level, "(N, C, h, w)")
        checks.alike(name, item, level, first, other)
        expected = (other.size(0), level.size(1) if channels is None else channels)
        checks.size(name, item, level, (*expected, *level.shape[2:]))
        if level.size(2) < 1 or level.size(3) < 1:
            raise ValueError(
                f"{name}: {item} must have at least one row and one column, "
                f"got {checks.text(level.shape)}"
            )


def _check_sizes(name: str, sizes: Sequence[int], each: int) -> None:
    """`each` numbers a level: the last two, its rows and columns, are positive."""
    if len(sizes) % each != 0:
        raise ValueError(f"{name}: sizes must hold {each} numbers a level, got {len(sizes)}")
    _check_count(name, "sizes", len(sizes) // each)
    if any(size < (0 if i % each < each - 2 else 1) for i, size in enumerate(sizes)):
        raise ValueError(f"{name}: sizes must be positive, got {checks.text(sizes)}")
    _check_most(name, "sizes", sizes, MOST)


def _check_interpolation(
    name: str,
    modes: Sequence[int],
    ratios: Sequence[float],
    cells: Sequence[int],
    extent: Sequence[int],
) -> None:
    """A mode and two ratios for each level, whose `cells` are (h, w), (h, w), ...; no ratio above
    input size to output size, so that none reads beyond a level."""
    if len(modes) != len(cells) // 2 or any(mode not in reference.MODES for mode in modes):
        raise ValueError(
            f"{name}: modes must hold a code from 0 to {len(reference.MODES) - 1} a level, "
            f"got {list(modes)}"
        )
    if len(ratios) != len(cells):
        raise ValueError(f"{name}: ratios must hold two numbers a level, got {list(ratios)}")
    for i, ratio in enumerate(ratios):
        if ratio != 0 and not 0 < ratio * extent[i % 2] <= cells[i] * (1 + 1e-6):
            raise ValueError(
                f"{name}: ratios must be from 0 to input size / output size, got {ratio} for "
                f"{cells[i]} / {extent[i % 2]}"
            )


def _check_most(name: str, argument: str, values: Sequence[int], most: int) -> None:
    """A symbolic size is not asked: the question would become a bound on what can be exported."""
    if any(isinstance(value, int) and value > most for value in values):
        raise ValueError(f"{name}: {argument} must be at most {most}, got {checks.text(values)}")


def _format(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format


def _sizes(levels: Sequence[Tensor]) -> list[int]:
    return [size for level in levels for size in level.shape[2:]]


def _promote(*tensors: Tensor) -> list[Tensor]:
    """What torch.cat does under autocast: all in the widest dtype among them."""
    dtype = tensors[0].dtype
    for other in tensors[1:]:
        dtype = torch.promote_types(dtype, other.dtype)
    return [tensor.to(dtype) for tensor in tensors]


# pyramid_concat: x and every level at (H, W), in one tensor. Its backward gives the levels'
# gradients from their channels of grad; that of x is a view of grad, as torch.cat's is.


def _check_concat(
    x: Tensor, levels: Sequence[Tensor], modes: Sequence[int], ratios: Sequence[float], x_index: int
) -> None:
    name = "pyramid_concat"
    checks.tensor(name, "x", x, "(N, C, H, W)")
    _check_levels(name, "levels", levels, "x", x)
    _check_interpolation(name, modes, ratios, _sizes(levels), x.shape[2:])
    if not 0 <= x_index <= len(levels):
        raise ValueError(f"{name}: x_index must be from 0 to {len(levels)}, got {x_index}")


def _fake_concat(x: Tensor, levels: Sequence[Tensor], *interpolation: Any) -> Tensor:
    channels = x.size(1) + sum(level.size(1) for level in levels)
    return empty((x.size(0), channels, *x.shape[2:]), x, memory_format(x))


def _save_concat(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, levels, ctx.modes, ctx.ratios, ctx.x_index = inputs
    ctx.channels = x.size(1)
    ctx.sizes = [size for level in levels for size in level.shape[1:]]
    ctx.channels_last = is_channels_last(x)


def _backward_concat(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    channels = ctx.sizes[::3]
    before = sum(channels[: ctx.x_index])
    of_levels = [
        grad.narrow(1, 0, before),
        grad.narrow(1, before + ctx.channels, sum(channels) - before),
    ]
    around = [part for part in of_levels if part.size(1) > 0]
    grads = OPS.pyramid_concat_backward(
        around[0] if len(around) == 1 else torch.cat(of_levels, 1),
        ctx.sizes,
        ctx.modes,
        ctx.ratios,
        ctx.channels_last,
    )
    return grad.narrow(1, before, ctx.channels), grads, None, None, None


def _autocast_concat(
    x: Tensor, levels: Sequence[Tensor], modes: Sequence[int], ratios: Sequence[float], x_index: int
) -> tuple[Any, ...]:
    x, *levels = _promote(x, *levels)
    return x, levels, modes, ratios, x_index


def _check_concat_backward(
    grad: Tensor,
    sizes: Sequence[int],
    modes: Sequence[int],
    ratios: Sequence[float],
    channels_last: bool,
) -> None:
    name = "pyramid_concat_backward"
    checks.tensor(name, "grad", grad, "(N, C, H, W)")
    _check_sizes(name, sizes, 3)
    checks.size(name, "grad", grad, (grad.size(0), sum(sizes[::3]), *grad.shape[2:]))
    cells = [size for i, size in enumerate(sizes) if i % 3]
    _check_interpolation(name, modes, ratios, cells, grad.shape[2:])


def _fake_concat_backward(
    grad: Tensor,
    sizes: Sequence[int],
    modes: Sequence[int],
    ratios: Sequence[float],
    channels_last: bool,
) -> list[Tensor]:
    format = _format(channels_last)
    return [empty((grad.size(0), *sizes[i : i + 3]), grad, format) for i in range(0, len(sizes), 3)]


def _save_concat_backward(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    grad, _, ctx.modes, ctx.ratios, _ = inputs
    ctx.shape = (grad.size(0), 0, *grad.shape[2:])


def _backward_concat_backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
    map = grads[0].new_empty(ctx.shape)  # no channels: it only says how large
    to_grad = OPS.pyramid_concat(map, list(grads), ctx.modes, ctx.ratios, 0)
    return to_grad, None, None, None, None


# pyramid_add_relu: out = relu(x + every level at (H, W)). Its backward reads the saved output, not
# the sum it is the rectification of: that costs one read of a map that the next layer keeps anyway,
# where recomputing the sum would keep x and interpolate once more. NaN counts as passed.


def _check_add_relu(
    x: Tensor, levels: Sequence[Tensor], modes: Sequence[int], ratios: Sequence[float]
) -> None:
    checks.tensor("pyramid_add_relu", "x", x, "(N, C, H, W)")
    _check_levels("pyramid_add_relu", "levels", levels, "x", x, x.size(1))
    _check_interpolation("pyramid_add_relu", modes, ratios, _sizes(levels), x.shape[2:])


def _fake_add_relu(x: Tensor, levels: Sequence[Tensor], *interpolation: Any) -> Tensor:
    return empty(tuple(x.shape), x, memory_format(x))


def _save_add_relu(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, levels, ctx.modes, ctx.ratios = inputs
    ctx.sizes = _sizes(levels)
    ctx.save_for_backward(output)


def _backward_add_relu(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    (out,) = ctx.saved_tensors
    grad_x, *grads = OPS.pyramid_add_relu_backward(grad, out, ctx.sizes, ctx.modes, ctx.ratios)
    return grad_x, grads, None, None


def _autocast_add_relu(x: Tensor, levels: Sequence[Tensor], *interpolation: Any) -> tuple[Any, ...]:
    x, *levels = _promote(x, *levels)
    return x, levels, *interpolation


def _check_add_relu_backward(
    grad: Tensor,
    out: Tensor,
    sizes: Sequence[int],
    modes: Sequence[int],
    ratios: Sequence[float],
) -> None:
    name = "pyramid_add_relu_backward"
    checks.tensor(name, "out", out, "(N, C, H, W)")
    checks.tensor(name, "grad", grad, "(N, C, H, W)")
    checks.alike(name, "grad", grad, "out", out)
    checks.size(name, "grad", grad, tuple(out.shape))
    _check_sizes(name, sizes, 2)
    _check_interpolation(name, modes, ratios, sizes, out.shape[2:])


def _fake_add_relu_backward(
    grad: Tensor, out: Tensor, sizes: Sequence[int], *interpolation: Any
) -> list[Tensor]:
    format = memory_format(out)
    levels = [sizes[i : i + 2] for i in range(0, len(sizes), 2)]
    shapes = [out.shape[2:], *levels]
    return [empty((*out.shape[:2], *shape), out, format) for shape in shapes]


def _save_add_relu_backward(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    _, out, _, ctx.modes, ctx.ratios = inputs
    ctx.save_for_backward(out)


def _backward_add_relu_backward(ctx: Any, grad_x: Tensor, *grads: Tensor) -> tuple[Any, ...]:
    (out,) = ctx.saved_tensors
    height, width = out.shape[2:]
    one, none = [1, 1], [0, 0]
    total = OPS.pyramid_taps_add(
        grad_x, list(grads), [height, width], one, none, one, ctx.modes, ctx.ratios
    )
    return torch.where(out <= 0, 0, total), None, None, None, None


# pyramid_taps_add: out = base + for every level and every tap of the kernel, the tap's channels at
# (H, W), read `tap * dilation - padding` further on and 0 outside: a convolution of the upsampled
# level, after the sum over its channels, which `taps` already holds.


def _check_kernel(
    name: str,
    size: Sequence[int],
    kernel: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    base_name: str,
    base: Tensor,
) -> None:
    for argument, value, least in (
        ("size", size, 0),
        ("kernel", kernel, 1),
        ("padding", padding, 0),
        ("dilation", dilation, 1),
    ):
        if len(value) != 2 or value[0] < least or value[1] < least:
            raise ValueError(
                f"{name}: {argument} must be two integers of at least {least}, "
                f"got {checks.text(value)}"
            )
        _check_most(name, argument, value, MOST_TAPS if argument == "kernel" else MOST)
    expected = tuple(
        size[axis] + 2 * padding[axis] - dilation[axis] * (kernel[axis] - 1) for axis in (0, 1)
    )
    checks.size(name, base_name, base, (*base.shape[:2], *expected))


def check_taps_add(
    base: Tensor,
    taps: Sequence[Tensor],
    size: Sequence[int],
    kernel: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    modes: Sequence[int],
    ratios: Sequence[float],
) -> None:
    name = "pyramid_taps_add"
    checks.tensor(name, "base", base, "(N, C, H, W)")
    _check_kernel(name, size, kernel, padding, dilation, "base", base)
    _check_levels(name, "taps", taps, "base", base, kernel[0] * kernel[1] * base.size(1))
    _check_interpolation(name, modes, ratios, _sizes(taps), size)


def _fake_taps_add(base: Tensor, taps: Sequence[Tensor], *geometry: Any) -> Tensor:
    return empty(tuple(base.shape), base, memory_format(base))


def _save_taps_add(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    base, taps, *ctx.geometry = inputs
    ctx.sizes = _sizes(taps)
    ctx.channels_last = is_channels_last(base)


def _backward_taps_add(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    grads = OPS.pyramid_taps_add_backward(grad, ctx.sizes, *ctx.geometry, ctx.channels_last)
    return grad, grads, None, None, None, None, None, None


def _autocast_taps_add(base: Tensor, taps: Sequence[Tensor], *geometry: Any) -> tuple[Any, ...]:
    base, *taps = _promote(base, *taps)
    return base, taps, *geometry


def _check_taps_add_backward(
    grad: Tensor,
    sizes: Sequence[int],
    size: Sequence[int],
    kernel: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    modes: Sequence[int],
    ratios: Sequence[float],
    channels_last: bool,
) -> None:
    name = "pyramid_taps_add_backward"
    checks.tensor(name, "grad", grad, "(N, C, H, W)")
    _check_kernel(name, size, kernel, padding, dilation, "grad", grad)
    _check_sizes(name, sizes, 2)
    _check_interpolation(name, modes, ratios, sizes, size)


def _fake_taps_add_backward(
    grad: Tensor,
    sizes: Sequence[int],
    size: Sequence[int],
    kernel: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    modes: Sequence[int],
    ratios: Sequence[float],
    channels_last: bool,
) -> list[Tensor]:
    format = _format(channels_last)
    channels = kernel[0] * kernel[1] * grad.size(1)
    return [
        empty((grad.size(0), channels, *sizes[i : i + 2]), grad, format)
        for i in range(0, len(sizes), 2)
    ]


def _save_taps_add_backward(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    grad, _, *ctx.geometry, _ = inputs
    ctx.shape = tuple(grad.shape)


def _backward_taps_add_backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
    zeros = grads[0].new_zeros(ctx.shape)
    to_grad = OPS.pyramid_taps_add(zeros, list(grads), *ctx.geometry)
    return to_grad, None, None, None, None, None, None, None, None


define(
    "pyramid_concat",
    check=_check_concat,
    reference=reference.pyramid_concat,
    fake=_fake_concat,
    setup_context=_save_concat,
    backward=_backward_concat,
    vmap=over_images,
    autocast=_autocast_concat,
)
define(
    "pyramid_concat_backward",
    check=_check_concat_backward,
    reference=reference.pyramid_concat_backward,
    fake=_fake_concat_backward,
    setup_context=_save_concat_backward,
    backward=_backward_concat_backward,
    vmap=over_images,
)
define(
    "pyramid_add_relu",
    check=_check_add_relu,
    reference=reference.pyramid_add_relu,
    fake=_fake_add_relu,
    setup_context=_save_add_relu,
    backward=_backward_add_relu,
    vmap=over_images,
    autocast=_autocast_add_relu,
)
define(
    "pyramid_add_relu_backward",
    check=_check_add_relu_backward,
    reference=reference.pyramid_add_relu_backward,
    fake=_fake_add_relu_backward,
    setup_context=_save_add_relu_backward,
    backward=_backward_add_relu_backward,
    vmap=over_images,
)
define(
    "pyramid_taps_add",
    check=check_taps_add,
    reference=reference.pyramid_taps_add,
    fake=_fake_taps_add,
    setup_context=_save_taps_add,
    backward=_backward_taps_add,
    vmap=over_images,
    autocast=_autocast_taps_add,
)
define(
    "pyramid_taps_add_backward",
    check=_check_taps_add_backward,
    reference=reference.pyramid_taps_add_backward,
    fake=_fake_taps_add_backward,
    setup_context=_save_taps_add_backward,
    backward=_backward_taps_add_backward,
    vmap=over_images,
)
