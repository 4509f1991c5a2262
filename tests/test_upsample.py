"""Interpolation of pyramids: concatenated, added and rectified, and under a convolution."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import battery
import pytest
import torch
import torch.nn.functional as F
from battery import DEVICE, DTYPES, EMULATED, FORMATS, Case, Shape
from contract import Contract, Refusal, beyond_two_to_the_31, map_of
from torch import Tensor

from stripctx import functional

OPS = torch.ops.stripctx

PSP = ((1, 1), (2, 2), (3, 3), (6, 6))
MPM = ((20, 20), (12, 12))
ODD = ((5, 3), (1, 9), (14, 31))  # not square, larger than most maps
KERNEL = {"kernel": (3, 2), "padding": (1, 2), "dilation": (1, 2)}


def up(level: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    """F.interpolate, also of nothing."""
    if level.numel() == 0 or 0 in size:
        return level.new_zeros((*level.shape[:2], *size)) + 0 * level.sum()
    return F.interpolate(level, size, mode="bilinear", align_corners=align_corners)


def plain_concat(x: Tensor, *levels: Tensor, align_corners: bool, x_first: bool) -> Tensor:
    maps = [up(level, x.shape[2:], align_corners) for level in levels]
    return torch.cat([x, *maps] if x_first else [*maps, x], 1)


def plain_add_relu(x: Tensor, *levels: Tensor, align_corners: bool) -> Tensor:
    return F.relu(x + sum(up(level, x.shape[2:], align_corners) for level in levels))


def plain_taps_add(
    base: Tensor,
    *taps: Tensor,
    size: tuple[int, int],
    kernel: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    align_corners: bool,
) -> Tensor:
    """Each tap's map, padded, shifted and cut out."""
    height, width = base.shape[2:]
    for level in taps:
        pads = (padding[1], padding[1], padding[0], padding[0])
        maps = F.pad(up(level, size, align_corners), pads)
        for tap, part in enumerate(maps.split(max(base.size(1), 1), 1)):
            top = tap // kernel[1] * dilation[0]
            left = tap % kernel[1] * dilation[1]
            base = base + part[:, :, top : top + height, left : left + width]
    return base


def concat_case(name: str, sizes: Any, align_corners: bool, x_first: bool) -> Case:
    options = {"align_corners": align_corners, "x_first": x_first}
    return Case(
        name,
        lambda x, *levels: functional.pyramid_concat(x, levels, **options),
        lambda x, *levels: plain_concat(x, *levels, **options),
        lambda s: [s, *((s[0], (s[1] + i) // 2, *size) for i, size in enumerate(sizes))],
        rounds_as_plain=True,
        cancels=5,  # a level of one cell gets the sum of a whole plane
    )


def add_relu_case(name: str, sizes: Any, align_corners: bool) -> Case:
    return Case(
        name,
        lambda x, *levels: functional.pyramid_add_relu(x, levels, align_corners=align_corners),
        lambda x, *levels: plain_add_relu(x, *levels, align_corners=align_corners),
        lambda s: [s, *((s[0], s[1], *size) for size in sizes)],
        rounds_as_plain=True,
    )


def taps_case(name: str, sizes: Any, align_corners: bool, **geometry: tuple[int, int]) -> Case:
    kernel, padding, dilation = (geometry[key] for key in ("kernel", "padding", "dilation"))
    grown = [dilation[i] * (kernel[i] - 1) - 2 * padding[i] for i in (0, 1)]

    def options(base: Tensor) -> dict[str, Any]:
        size = (base.size(2) + grown[0], base.size(3) + grown[1])
        return {"size": size, **geometry, "align_corners": align_corners}

    return Case(
        name,
        lambda base, *taps: OPS.pyramid_taps_add(base, taps, *options(base).values()),
        lambda base, *taps: plain_taps_add(base, *taps, **options(base)),
        lambda s: [s, *((s[0], s[1] * kernel[0] * kernel[1], *size) for size in sizes)],
        rounds_as_plain=True,
    )


def conv_case(
    name: str, sizes: Any, kernel: tuple[int, int], align_corners: bool, x_first: bool, **rest: Any
) -> Case:
    options = {"align_corners": align_corners, "x_first": x_first}
    return Case(
        name,
        lambda x, weight, bias, *levels: functional.pyramid_conv(
            x, levels, weight, bias, **rest, **options
        ),
        lambda x, weight, bias, *levels: F.conv2d(
            plain_concat(x, *levels, **options), weight, bias, **rest
        ),
        lambda s: [
            s,
            (4, s[1] + 2 * len(sizes), *kernel),
            (4,),
            *((s[0], 2, *size) for size in sizes),
        ],
        rounds_as_plain=True,
    )


CONCAT = concat_case("concat", PSP, True, True)
CONCAT_ODD = concat_case("concat_odd", ODD, False, False)
ADD_RELU = add_relu_case("add_relu", MPM, True)
ADD_RELU_ODD = add_relu_case("add_relu_odd", ODD, False)
TAPS = taps_case("taps", PSP, True, kernel=(3, 3), padding=(1, 1), dilation=(1, 1))
TAPS_ODD = taps_case("taps_odd", ODD, False, kernel=(3, 2), padding=(2, 1), dilation=(2, 1))
NATIVE = (CONCAT, CONCAT_ODD, ADD_RELU, ADD_RELU_ODD, TAPS, TAPS_ODD)
CONVS = (
    conv_case("conv3x3", PSP, (3, 3), True, True, padding=1),
    conv_case("conv1x1", ((1, 1),), (1, 1), False, False),
    conv_case("conv1x3", MPM, (1, 3), False, True, padding=(1, 3), dilation=(1, 2)),
    conv_case("conv5x5", ODD, (5, 5), True, False, padding=(4, 2), dilation=(2, 1)),
    conv_case("conv2x4", PSP, (2, 4), False, True, padding=(1, 2)),
)


@pytest.mark.parametrize("shape", [(1, 8, 60, 60), (2, 4, 33, 97), (1, 8, 129, 130)], ids=str)
@pytest.mark.parametrize("layout", FORMATS)
def test_maps_as_in_networks(shape: Shape, layout: str) -> None:
    """Many rows between two cells, several tiles of rows and columns, planes that fit no block."""
    for case in (CONCAT, ADD_RELU, TAPS):
        battery.check_float64(case, shape, torch.float32, layout)


@pytest.mark.parametrize("layout", FORMATS)
def test_large_levels(layout: str) -> None:
    """Levels that fit no shared memory: halved maps, and a map a tenth of its level."""
    case = add_relu_case("large", ((40, 70), (64, 8)), False)
    battery.check_float64(case, (1, 5, 80, 140), torch.float32, layout)
    case = add_relu_case("shrink", ((97, 120),), True)
    battery.check_float64(case, (1, 9, 9, 12), torch.float32, layout)
    case = taps_case("many", ((20, 20), (40, 31)), False, **KERNEL)
    battery.check_float64(case, (1, 4, 41, 60), torch.float64, layout)


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("layout", FORMATS)
def test_every_level_of_every_size(align_corners: bool, layout: str) -> None:
    """1 to 24 cells over 1 to 26 positions, rows and columns of different ones."""
    for size in range(1, 27):
        x = battery.make((1, 2, size, 27 - size), torch.float64, layout)
        for first in (1, 9, 17):
            levels = [
                battery.make((1, 2, n, 25 - n), torch.float64, layout)
                for n in range(first, first + 8)
            ]
            out = functional.pyramid_concat(x, levels, align_corners=align_corners)
            want = plain_concat(x, *levels, align_corners=align_corners, x_first=True)
            torch.testing.assert_close(out, want, rtol=1e-13, atol=1e-13)


def test_one_cell_is_an_exact_broadcast() -> None:
    x = torch.zeros(2, 0, 37, 41, device=DEVICE)
    for dtype in DTYPES:
        level = torch.randn(2, 5, 1, 1, device=DEVICE).to(dtype)
        out = functional.pyramid_concat(x.to(dtype), [level], align_corners=True)
        assert torch.equal(out, level.expand_as(out))


def test_autocast() -> None:
    """Concatenation and addition promote as torch.cat does; the convolution casts as conv2d."""
    x = torch.randn(2, 4, 6, 7, device=DEVICE)
    level = torch.randn(2, 4, 3, 3, device=DEVICE, dtype=torch.bfloat16)
    weight = torch.randn(3, 8, 3, 3, device=DEVICE)
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
        for a, b in ((x, level), (x.bfloat16(), level.float())):
            assert functional.pyramid_concat(a, [b], align_corners=True).dtype == torch.float32
            assert functional.pyramid_add_relu(a, [b], align_corners=True).dtype == torch.float32
        same = functional.pyramid_concat(x.bfloat16(), [level], align_corners=True)
        assert same.dtype == torch.bfloat16
        out = functional.pyramid_conv(x, [level], weight, padding=1, align_corners=True)
    assert out.dtype == torch.bfloat16
    want = F.conv2d(
        plain_concat(x, level.float(), align_corners=True, x_first=True), weight, padding=1
    )
    assert battery.relative_error(out, want) < 1e-2


def test_offsets_past_two_to_the_31() -> None:
    values = torch.randn(2, 2, 3, 4, device=DEVICE).bfloat16()
    x = beyond_two_to_the_31(values)
    for function in (functional.pyramid_concat, functional.pyramid_add_relu):
        for align_corners in (True, False):
            out = function(x, [x], align_corners=align_corners)
            assert torch.equal(out, function(values, [values], align_corners=align_corners))


def test_conv_allocates_no_concatenation() -> None:
    """Forward and backward together stay below a third of the concatenation's bytes."""
    x = torch.randn(1, 8, 40, 40, device=DEVICE, requires_grad=True)
    levels = [torch.randn(1, 128, b, b, device=DEVICE, requires_grad=True) for b in (1, 2, 3, 6)]
    weight = torch.randn(8, 520, 3, 3, device=DEVICE, requires_grad=True)

    def work() -> None:
        out = functional.pyramid_conv(x, levels, weight, padding=1, align_corners=True)
        torch.autograd.grad(out.sum(), [x, *levels, weight])

    work()
    assert peak_bytes(work) < 520 * 40 * 40 * 4 / 3


def peak_bytes(work: Callable[[], None]) -> int:
    """The most memory that torch's allocator holds during `work` above what it held before."""
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return torch.cuda.max_memory_allocated() - before
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        work()
    events = profile.profiler.kineto_results.events()
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    assert peak > 0
    return peak


X = (2, 3, 4, 5)
L = (2, 3, 2, 2)
ONES, NONE = [1, 1], [0, 0]


def concat(x: Tensor, *levels: Tensor) -> Tensor:
    return OPS.pyramid_concat(x, list(levels), True, True)


def add_relu(x: Tensor, *levels: Tensor) -> Tensor:
    return OPS.pyramid_add_relu(x, list(levels), True)


def taps_add(base: Tensor, taps: Tensor, *geometry: Any) -> Tensor:
    return OPS.pyramid_taps_add(base, [taps], *geometry, True)


def conv(x: Tensor, level: Tensor, weight: Tensor, **options: Any) -> Tensor:
    return functional.pyramid_conv(x, [level], weight, align_corners=True, **options)


REFUSED: list[Refusal] = [
    (concat, (map_of(2, 3), map_of(*L)), "x must be 4-D (N, C, H, W), got 2-D (2, 3)"),
    (concat, (map_of(*X),), "pyramid_concat: levels must hold 1 to 8 tensors, got 0"),
    (concat, (map_of(*X), *[map_of(*L)] * 9), "levels must hold 1 to 8 tensors, got 9"),
    (
        concat,
        (map_of(*X), map_of(*L), map_of(2, 3, 2)),
        "levels[1] must be 4-D (N, C, h, w), got 3-D (2, 3, 2)",
    ),
    (
        concat,
        (map_of(*X), map_of(*L), map_of(1, 7, 2, 2)),
        "levels[1] must have shape (2, 7, 2, 2), got (1, 7, 2, 2)",
    ),
    (
        concat,
        (map_of(*X), map_of(*L, dtype=torch.float64)),
        "levels[0] must have the dtype of x, float32, got float64",
    ),
    (
        concat,
        (map_of(*X), map_of(2, 3, 0, 2)),
        "levels[0] must have at least one row and one column, got (2, 3, 0, 2)",
    ),
    (add_relu, (map_of(*X),), "pyramid_add_relu: levels must hold 1 to 8 tensors, got 0"),
    (
        add_relu,
        (map_of(*X), map_of(2, 4, 2, 2)),
        "levels[0] must have shape (2, 3, 2, 2), got (2, 4, 2, 2)",
    ),
    (
        add_relu,
        (map_of(*X, dtype=torch.int64), map_of(*L)),
        "x must be float64, float32, float16 or bfloat16, got int64",
    ),
    (
        taps_add,
        (map_of(*X), map_of(*L), [4, 5], [1, 0], NONE, ONES),
        "kernel must be two integers of at least 1, got (1, 0)",
    ),
    (  # 4 * 2^62 is 0 in 64 bits
        taps_add,
        (map_of(*X), map_of(*L), [4, 5], [2**62 + 1, 1], NONE, [4, 1]),
        "kernel must be at most 32767, got (4611686018427387905, 1)",
    ),
    (
        taps_add,
        (map_of(*X), map_of(*L), [4, 5], ONES, [0], ONES),
        "padding must be two integers of at least 0, got (0)",
    ),
    (
        taps_add,
        (map_of(*X), map_of(*L), [4, 6], ONES, NONE, ONES),
        "base must have shape (2, 3, 4, 6), got (2, 3, 4, 5)",
    ),
    (
        taps_add,
        (map_of(*X), map_of(*L), [4, 5], [3, 3], ONES, ONES),
        "taps[0] must have shape (2, 27, 2, 2), got (2, 3, 2, 2)",
    ),
    (
        OPS.pyramid_concat_backward,
        (map_of(*X), [3, 2], True, False),
        "sizes must hold 3 numbers a level, got 2",
    ),
    (
        OPS.pyramid_concat_backward,
        (map_of(*X), [3, 2, 0], True, False),
        "sizes must be positive, got (3, 2, 0)",
    ),
    (
        OPS.pyramid_concat_backward,
        (map_of(*X), [2, 2, 2], True, False),
        "grad must have shape (2, 2, 4, 5), got (2, 3, 4, 5)",
    ),
    (
        OPS.pyramid_add_relu_backward,
        (map_of(2, 3, 4, 6), map_of(*X), [2, 2], True),
        "grad must have shape (2, 3, 4, 5), got (2, 3, 4, 6)",
    ),
    (
        OPS.pyramid_add_relu_backward,
        (map_of(*X), map_of(*X), [], True),
        "sizes must hold 1 to 8 tensors, got 0",
    ),
    (
        OPS.pyramid_taps_add_backward,
        (map_of(*X), [2, 2], [4, 5], ONES, NONE, [1, 0], True, False),
        "dilation must be two integers of at least 1, got (1, 0)",
    ),
    (
        conv,
        (map_of(*X), map_of(*L), map_of(4, 7, 3, 3)),
        "pyramid_conv: weight must have shape (O, 6, kh, kw), got (4, 7, 3, 3)",
    ),
]


def test_conv_refuses_padding_in_words() -> None:
    for value in ("same", (1, 2, 3)):
        battery.raises(
            ValueError,
            f"padding must be an integer or a pair of them, got {value!r}",
            lambda value=value: conv(map_of(*X), map_of(*L), map_of(4, 6, 3, 3), padding=value),
        )


class TestUpsample(Contract):
    kernels = NATIVE
    compositions = CONVS
    spreading = (CONCAT, CONCAT_ODD, ADD_RELU, ADD_RELU_ODD)
    refusals = REFUSED
    large = (2, 5, 14, 15) if EMULATED else Contract.large

    @staticmethod
    def samples(layout: str) -> dict[Any, tuple[Any, ...]]:
        last = layout == "channels_last"
        x, *levels = CONCAT.arguments((2, 5, 6, 7), torch.float32, layout)
        concat_sizes = [size for level in levels for size in level.shape[1:]]
        grad = battery.make((2, sum(concat_sizes[::3]), 6, 7), torch.float32, layout)
        y, *same = ADD_RELU_ODD.arguments((2, 5, 6, 7), torch.float32, layout)
        sizes = [size for level in same for size in level.shape[2:]]
        base, *taps = TAPS.arguments((2, 5, 6, 7), torch.float32, layout)
        tap_sizes = [size for level in taps for size in level.shape[2:]]
        geometry = ([6, 7], [3, 3], [1, 1], [1, 1], True)
        return {
            OPS.pyramid_concat: (x, levels, True, layout == "sliced"),
            OPS.pyramid_concat_backward: (grad, concat_sizes, True, last),
            OPS.pyramid_add_relu: (y, same, False),
            OPS.pyramid_add_relu_backward: (y, x, sizes, False),
            OPS.pyramid_taps_add: (base, taps, *geometry),
            OPS.pyramid_taps_add_backward: (base, tap_sizes, *geometry, last),
        }

    @pytest.mark.parametrize("align_corners", [True, False])
    def test_gradients(self, align_corners: bool) -> None:
        few = ((1, 1), (2, 3), (5, 2))
        for case in (
            concat_case("concat", few, align_corners, align_corners),
            add_relu_case("add_relu", few, align_corners),
            taps_case("taps", few[1:], align_corners, **KERNEL),
            conv_case("conv", few[1:], (3, 3), align_corners, align_corners, padding=1),
        ):
            battery.check_gradients(case, (1, 2, 3, 4))
