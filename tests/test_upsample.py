"""Interpolation of pyramids: concatenated, added and rectified, and under a convolution."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import operator_checks
import pytest
import torch
import torch.nn.functional as F
from operator_checks import DEVICE, DTYPES, EMULATED, FORMATS, Case, Shape
from operator_suite import FAR_SHAPES, OperatorSuite, Refusal, far_and_near, map_of
from torch import Tensor

from stripctx import functional
from stripctx.reference import upsample as reference

OPS = torch.ops.stripctx

PSP = ((1, 1), (2, 2), (3, 3), (6, 6))
MPM = ((20, 20), (12, 12))
ODD = ((5, 3), (1, 9), (14, 31))  # not square, or larger than most maps
KERNEL = {"kernel": (3, 2), "padding": (1, 2), "dilation": (1, 2)}
ONE_TAP = {"kernel": (1, 1), "padding": (0, 0), "dilation": (1, 1)}
NINE_TAPS = {"kernel": (3, 3), "padding": (1, 1), "dilation": (1, 1)}


def up(level: Tensor, size: tuple[int, int], align_corners: bool | None, mode: str) -> Tensor:
    """F.interpolate, also for empty tensors. Nearest modes use float32 indices: for contiguous
    float64 maps torch sometimes uses other indices than for other dtypes and layouts."""
    if level.numel() == 0 or 0 in size:
        return level.new_zeros((*level.shape[:2], *size)) + 0 * level.sum()
    if mode != "bilinear":
        for dim, extent in ((2, size[0]), (3, size[1])):
            cells = torch.arange(level.size(dim), dtype=torch.float32)[None, None, :, None]
            index = F.interpolate(cells, (extent, 1), mode=mode).flatten().long()
            level = level.index_select(dim, index.to(level.device))
        return level
    return F.interpolate(level, size, mode=mode, align_corners=align_corners)


# (align_corners, mode) of the levels, repeated cyclically; codes as in
# stripctx/reference/upsample.py.
ALIGNED, HALF_PIXEL = ((True, "bilinear"),), ((False, "bilinear"),)
MIXED = ((None, "nearest"), (True, "bilinear"), (None, "nearest-exact"), (False, "bilinear"))
Ways = tuple[tuple[bool | None, str], ...]
CODES = {
    (False, "bilinear"): 0, (True, "bilinear"): 1, (None, "nearest"): 2, (None, "nearest-exact"): 3
}  # fmt: skip


def of_levels(ways: Ways, count: int) -> list[tuple[bool | None, str]]:
    return [ways[k % len(ways)] for k in range(count)]


def in_words(ways: Ways, count: int) -> dict[str, Any]:
    align_corners, modes = zip(*of_levels(ways, count), strict=True)
    return {"align_corners": align_corners, "mode": modes}


def in_codes(ways: Ways, count: int) -> tuple[list[int], list[float]]:
    return [CODES[way] for way in of_levels(ways, count)], [0.0] * (2 * count)


def at_size(size: tuple[int, int], levels: tuple[Tensor, ...], ways: Ways) -> list[Tensor]:
    each = zip(levels, of_levels(ways, len(levels)), strict=True)
    return [up(level, size, *way) for level, way in each]


def plain_concat(x: Tensor, *levels: Tensor, ways: Ways, x_index: int) -> Tensor:
    maps = at_size(x.shape[2:], levels, ways)
    maps.insert(x_index if x_index >= 0 else len(maps), x)
    return torch.cat(maps, 1)


def plain_add(x: Tensor, *levels: Tensor, ways: Ways) -> Tensor:
    return x + sum(at_size(x.shape[2:], levels, ways))


def plain_add_relu(x: Tensor, *levels: Tensor, ways: Ways) -> Tensor:
    return F.relu(plain_add(x, *levels, ways=ways))


def plain_taps_add(
    base: Tensor,
    *taps: Tensor,
    size: tuple[int, int],
    kernel: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    ways: Ways,
) -> Tensor:
    """Each tap's map, padded, shifted and cropped."""
    height, width = base.shape[2:]
    for level in at_size(size, taps, ways):
        maps = F.pad(level, (padding[1], padding[1], padding[0], padding[0]))
        for tap, part in enumerate(maps.split(max(base.size(1), 1), 1)):
            top = tap // kernel[1] * dilation[0]
            left = tap % kernel[1] * dilation[1]
            base = base + part[:, :, top : top + height, left : left + width]
    return base


def concat_case(name: str, sizes: Any, ways: Ways, x_index: int) -> Case:
    options = {**in_words(ways, len(sizes)), "x_index": x_index}
    return Case(
        name,
        lambda x, *levels: functional.pyramid_concat(x, levels, **options),
        lambda x, *levels: plain_concat(x, *levels, ways=ways, x_index=x_index),
        lambda s: [s, *((s[0], (s[1] + i) // 2, *size) for i, size in enumerate(sizes))],
        rounds_as_plain=True,
        cancels=5,  # a level of one cell is the sum of a whole plane
    )


def add_relu_case(name: str, sizes: Any, ways: Ways) -> Case:
    options = in_words(ways, len(sizes))
    return Case(
        name,
        lambda x, *levels: functional.pyramid_add_relu(x, levels, **options),
        lambda x, *levels: plain_add_relu(x, *levels, ways=ways),
        lambda s: [s, *((s[0], s[1], *size) for size in sizes)],
        rounds_as_plain=True,
    )


def taps_case(name: str, sizes: Any, ways: Ways, **geometry: tuple[int, int]) -> Case:
    kernel, padding, dilation = (geometry[key] for key in ("kernel", "padding", "dilation"))
    grown = [dilation[i] * (kernel[i] - 1) - 2 * padding[i] for i in (0, 1)]

    def options(base: Tensor) -> dict[str, Any]:
        size = (base.size(2) + grown[0], base.size(3) + grown[1])
        return {"size": size, **geometry}

    return Case(
        name,
        lambda base, *taps: OPS.pyramid_taps_add(
            base, taps, *options(base).values(), *in_codes(ways, len(taps))
        ),
        lambda base, *taps: plain_taps_add(base, *taps, **options(base), ways=ways),
        lambda s: [s, *((s[0], s[1] * kernel[0] * kernel[1], *size) for size in sizes)],
        rounds_as_plain=True,
    )


def conv_case(
    name: str, sizes: Any, kernel: tuple[int, int], ways: Ways, x_index: int, **rest: Any
) -> Case:
    options = {**in_words(ways, len(sizes)), "x_index": x_index}
    return Case(
        name,
        lambda x, weight, bias, *levels: functional.pyramid_conv(
            x, levels, weight, bias, **rest, **options
        ),
        lambda x, weight, bias, *levels: F.conv2d(
            plain_concat(x, *levels, ways=ways, x_index=x_index), weight, bias, **rest
        ),
        lambda s: [
            s,
            (4, s[1] + 2 * len(sizes), *kernel),
            (4,),
            *((s[0], 2, *size) for size in sizes),
        ],
        rounds_as_plain=True,
    )


CONCAT = concat_case("concat", PSP, ALIGNED, 0)
CONCAT_ODD = concat_case("concat_odd", ODD, HALF_PIXEL, -1)
CONCAT_MIXED = concat_case("concat_mixed", ODD, MIXED, 1)
ADD_RELU = add_relu_case("add_relu", MPM, ALIGNED)
ADD_RELU_ODD = add_relu_case("add_relu_odd", ODD, HALF_PIXEL)
ADD_RELU_MIXED = add_relu_case("add_relu_mixed", ODD, MIXED)
TAPS = taps_case("taps", PSP, ALIGNED, kernel=(3, 3), padding=(1, 1), dilation=(1, 1))
TAPS_ODD = taps_case("taps_odd", ODD, HALF_PIXEL, kernel=(3, 2), padding=(2, 1), dilation=(2, 1))
TAPS_MIXED = taps_case("taps_mixed", ODD, MIXED, kernel=(2, 3), padding=(0, 2), dilation=(1, 2))
NATIVE = (
    CONCAT, CONCAT_ODD, CONCAT_MIXED, ADD_RELU, ADD_RELU_ODD, ADD_RELU_MIXED, TAPS, TAPS_ODD,
    TAPS_MIXED,
)  # fmt: skip
CONVS = (
    conv_case("conv3x3", PSP, (3, 3), ALIGNED, 0, padding=1),
    conv_case("conv1x1", ((1, 1),), (1, 1), HALF_PIXEL, -1),
    conv_case("conv1x3", MPM, (1, 3), HALF_PIXEL, 0, padding=(1, 3), dilation=(1, 2)),
    conv_case("conv5x5", ODD, (5, 5), ALIGNED, -1, padding=(4, 2), dilation=(2, 1)),
    conv_case("conv2x4", PSP, (2, 4), MIXED, 2, padding=(1, 2)),
)


@pytest.mark.parametrize("shape", [(1, 8, 60, 60), (2, 4, 33, 97), (1, 8, 129, 130)], ids=str)
@pytest.mark.parametrize("layout", FORMATS)
def test_maps_as_in_networks(shape: Shape, layout: str) -> None:
    """Many rows between two cells, several tiles of rows and columns, planes larger than a
    block."""
    for case in (CONCAT, ADD_RELU, TAPS):
        operator_checks.check_float64(case, shape, torch.float32, layout)


@pytest.mark.parametrize("layout", FORMATS)
def test_large_levels(layout: str) -> None:
    """Levels larger than shared memory: halved maps, and a map with a tenth of its level's size."""
    case = add_relu_case("large", ((40, 70), (64, 8)), HALF_PIXEL)
    operator_checks.check_float64(case, (1, 5, 80, 140), torch.float32, layout)
    case = add_relu_case("shrink", ((97, 120),), ALIGNED)
    operator_checks.check_float64(case, (1, 9, 9, 12), torch.float32, layout)
    case = taps_case("many", ((20, 20), (40, 31)), MIXED[2:], **KERNEL)
    operator_checks.check_float64(case, (1, 4, 41, 60), torch.float64, layout)


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize(
    ("shape", "levels", "ways", "kernel"),
    [
        ((2, 3, 96, 128), ((48, 64),), HALF_PIXEL, ONE_TAP),
        ((1, 2, 70, 261), ((35, 130), (9, 33), (70, 261)), HALF_PIXEL, ONE_TAP),
        ((1, 3, 65, 257), ((33, 129), (17, 65)), ALIGNED, ONE_TAP),
        ((1, 2, 130, 90), ((65, 45), (33, 23)), MIXED[:2], KERNEL),
        ((1, 2, 64, 200), ((32, 100),), HALF_PIXEL, NINE_TAPS),
    ],
    ids=str,
)
def test_levels_as_in_decoders(
    shape: Shape, levels: Any, ways: Any, kernel: dict[str, Any], layout: str
) -> None:
    """Levels of half the map's size and less: many tiles of cells, whose rows and columns they
    share."""
    case = taps_case("decoder", levels, ways, **kernel)
    for dtype in (torch.float32, torch.bfloat16):
        operator_checks.check_float64(case, shape, dtype, layout)
    if kernel == ONE_TAP:
        operator_checks.check_float64(
            add_relu_case("decoder", levels, ways), shape, torch.float32, layout
        )


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("layout", FORMATS)
def test_every_level_of_every_size(align_corners: bool, layout: str) -> None:
    """1 to 24 cells over 1 to 26 positions, with different numbers for rows and columns."""
    for size in range(1, 27):
        x = operator_checks.make((1, 2, size, 27 - size), torch.float64, layout)
        for first in (1, 9, 17):
            levels = [
                operator_checks.make((1, 2, n, 25 - n), torch.float64, layout)
                for n in range(first, first + 8)
            ]
            out = functional.pyramid_concat(x, levels, align_corners=align_corners)
            want = plain_concat(x, *levels, ways=((align_corners, "bilinear"),), x_index=0)
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
    want = F.conv2d(plain_concat(x, level.float(), ways=ALIGNED, x_index=0), weight, padding=1)
    assert operator_checks.relative_error(out, want) < 1e-2


@pytest.mark.parametrize("shape, axis", FAR_SHAPES)
def test_offsets_past_two_to_the_31(shape: tuple[int, ...], axis: int) -> None:
    x, values = far_and_near(shape, axis)
    for function in (functional.pyramid_concat, functional.pyramid_add_relu):
        for align_corners in (True, False):
            out = function(x, [x], align_corners=align_corners)
            assert torch.equal(out, function(values, [values], align_corners=align_corners))
    geometry = (list(shape[2:]), [3, 3], [1, 1], [1, 1], *ONE_LEVEL)
    far_level, level = far_and_near((shape[0], 9 * shape[1], 2, 2), axis)
    far = OPS.pyramid_taps_add(x, [far_level], *geometry)
    near = OPS.pyramid_taps_add(values, [level], *geometry)  # may be another kernel's
    assert operator_checks.relative_error(far, near) < 1e-2
    grads = [OPS.pyramid_taps_add_backward(m, [2, 2], *geometry, axis == 3)[0] for m in (x, values)]
    assert operator_checks.relative_error(*grads) < 1e-2


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
    """The peak of torch's allocator during `work`, in excess of what was allocated before."""
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
ONE_LEVEL = [1], [0.0, 0.0]  # mode and ratios


def concat(x: Tensor, *levels: Tensor) -> Tensor:
    return OPS.pyramid_concat(x, list(levels), [1] * len(levels), [0.0] * 2 * len(levels), 0)


def add_relu(x: Tensor, *levels: Tensor) -> Tensor:
    return OPS.pyramid_add_relu(x, list(levels), [1] * len(levels), [0.0] * 2 * len(levels))


def taps_add(base: Tensor, taps: Tensor, *geometry: Any) -> Tensor:
    return OPS.pyramid_taps_add(base, [taps], *geometry, *ONE_LEVEL)


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
    (  # 4 * 2^62 overflows to 0 in 64 bits
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
        (map_of(*X), [3, 2], *ONE_LEVEL, False),
        "sizes must hold 3 numbers a level, got 2",
    ),
    (
        OPS.pyramid_concat_backward,
        (map_of(*X), [3, 2, 0], *ONE_LEVEL, False),
        "sizes must be positive, got (3, 2, 0)",
    ),
    (
        OPS.pyramid_concat_backward,
        (map_of(*X), [2, 2, 2], *ONE_LEVEL, False),
        "grad must have shape (2, 2, 4, 5), got (2, 3, 4, 5)",
    ),
    (
        OPS.pyramid_add_relu_backward,
        (map_of(2, 3, 4, 6), map_of(*X), [2, 2], *ONE_LEVEL),
        "grad must have shape (2, 3, 4, 5), got (2, 3, 4, 6)",
    ),
    (
        OPS.pyramid_add_relu_backward,
        (map_of(*X), map_of(*X), [], [], []),
        "sizes must hold 1 to 8 tensors, got 0",
    ),
    (
        OPS.pyramid_taps_add_backward,
        (map_of(*X), [2, 2], [4, 5], ONES, NONE, [1, 0], *ONE_LEVEL, False),
        "dilation must be two integers of at least 1, got (1, 0)",
    ),
    (
        OPS.pyramid_add_relu,
        (map_of(*X), [map_of(*L)], [4], [0.0, 0.0]),
        "pyramid_add_relu: modes must hold a code from 0 to 3 a level, got [4]",
    ),
    (
        OPS.pyramid_add_relu,
        (map_of(*X), [map_of(*L)], [1], [0.0]),
        "pyramid_add_relu: ratios must hold two numbers a level, got [0.0]",
    ),
    (
        OPS.pyramid_add_relu,
        (map_of(*X), [map_of(*L)], [0], [0.0, 0.5]),
        "ratios must be from 0 to input size / output size, got 0.5 for 2 / 5",
    ),
    (
        OPS.pyramid_concat,
        (map_of(*X), [map_of(*L)], *ONE_LEVEL, 2),
        "pyramid_concat: x_index must be from 0 to 1, got 2",
    ),
    (
        conv,
        (map_of(*X), map_of(*L), map_of(4, 7, 3, 3)),
        "pyramid_conv: weight must have shape (O, 6, kh, kw), got (4, 7, 3, 3)",
    ),
]


def test_conv_refuses_padding_in_words() -> None:
    for value in ("same", (1, 2, 3)):
        operator_checks.raises(
            ValueError,
            f"padding must be an integer or a pair of them, got {value!r}",
            lambda value=value: conv(map_of(*X), map_of(*L), map_of(4, 6, 3, 3), padding=value),
        )


class TestUpsample(OperatorSuite):
    kernels = NATIVE
    compositions = CONVS
    compiled = CONVS[:2]
    spreading = (CONCAT, CONCAT_ODD, ADD_RELU, ADD_RELU_ODD)
    refusals = REFUSED
    large = (2, 5, 14, 15) if EMULATED else OperatorSuite.large

    @staticmethod
    def samples(layout: str) -> dict[Any, tuple[Any, ...]]:
        last = layout == "channels_last"
        x, *levels = CONCAT.arguments((2, 5, 6, 7), torch.float32, layout)
        concat_sizes = [size for level in levels for size in level.shape[1:]]
        grad = operator_checks.make((2, sum(concat_sizes[::3]), 6, 7), torch.float32, layout)
        y, *same = ADD_RELU_ODD.arguments((2, 5, 6, 7), torch.float32, layout)
        sizes = [size for level in same for size in level.shape[2:]]
        base, *taps = TAPS.arguments((2, 5, 6, 7), torch.float32, layout)
        tap_sizes = [size for level in taps for size in level.shape[2:]]
        geometry = ([6, 7], [3, 3], [1, 1], [1, 1], *in_codes(ALIGNED, len(taps)))
        return {
            OPS.pyramid_concat: (x, levels, *in_codes(MIXED, len(levels)), layout == "sliced"),
            OPS.pyramid_concat_backward: (grad, concat_sizes, *in_codes(MIXED, len(levels)), last),
            OPS.pyramid_add_relu: (y, same, *in_codes(HALF_PIXEL, len(same))),
            OPS.pyramid_add_relu_backward: (y, x, sizes, *in_codes(HALF_PIXEL, len(same))),
            OPS.pyramid_taps_add: (base, taps, *geometry),
            OPS.pyramid_taps_add_backward: (base, tap_sizes, *geometry, last),
        }

    @pytest.mark.parametrize("ways", [ALIGNED, HALF_PIXEL, MIXED], ids=str)
    def test_gradients(self, ways: Ways) -> None:  # type: ignore[override]
        few = ((1, 1), (2, 3), (5, 2))
        for case in (
            concat_case("concat", few, ways, 1),
            add_relu_case("add_relu", few, ways),
            taps_case("taps", few[1:], ways, **KERNEL),
            conv_case("conv", few[1:], (3, 3), ways, -1, padding=1),
        ):
            operator_checks.check_gradients(case, (1, 2, 3, 4))


@pytest.mark.parametrize("way", CODES, ids=str)
@pytest.mark.parametrize("layout", FORMATS)
def test_every_mode_of_every_size(way: tuple[bool | None, str], layout: str) -> None:
    """1 to 24 cells over 1 to 26 positions, alone, in a sum and in a convolution, both
    directions."""
    for height, width in ((1, 26), (5, 13), (12, 24), (17, 7)):
        x = operator_checks.make((1, 3, height, width), torch.float64, layout)
        weight = operator_checks.make((2, 6, 3, 3), torch.float64, "contiguous")
        for size in ((1, 1), (3, 12), (6, 13), (24, 2), (height, 5)):
            level = operator_checks.make((1, 3, *size), torch.float64, layout).requires_grad_()
            options = in_words((way,), 1)
            concat = plain_concat(x, level, ways=(way,), x_index=0)
            for ours, want in (
                (functional.pyramid_concat(x, [level], **options), concat),
                (functional.pyramid_add(x, [level], **options), plain_add(x, level, ways=(way,))),
                (
                    functional.pyramid_conv(x, [level], weight, padding=1, **options),
                    F.conv2d(concat, weight, padding=1),
                ),
            ):
                torch.testing.assert_close(ours, want, rtol=1e-11, atol=1e-11)
                grad = torch.randn_like(want)
                gradients = [
                    torch.autograd.grad(y, level, grad, retain_graph=True)[0] for y in (ours, want)
                ]
                torch.testing.assert_close(*gradients, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("mode", ["bilinear", "nearest", "nearest-exact"])
@pytest.mark.parametrize("factor", [2.0, 1.7, 2.05, (1.5, 3.3), 0.6])
def test_scale_factors(mode: str, factor: Any) -> None:
    """torch computes positions from the given factor, not from the resulting sizes."""
    for size in ((10, 7), (5, 9), (3, 3)):
        level = operator_checks.make((1, 3, *size), torch.float64, "contiguous").requires_grad_()
        up = F.interpolate(level, scale_factor=factor, mode=mode)
        x = torch.randn_like(up)
        ours = functional.pyramid_add(x, [level], mode=mode, scale_factor=[factor])
        torch.testing.assert_close(ours, x + up, rtol=1e-11, atol=1e-11)
        grad = torch.randn_like(up)
        gradients = [torch.autograd.grad(y, level, grad)[0] for y in (ours, x + up)]
        torch.testing.assert_close(*gradients, rtol=1e-11, atol=1e-11)


def test_nearest_keeps_infinities() -> None:
    level = torch.tensor([[[[float("inf"), 1.0, float("nan")]]]])
    out = functional.pyramid_concat(torch.zeros(1, 1, 1, 9), [level], mode="nearest")[:, 1:]
    want = F.interpolate(level, (1, 9), mode="nearest")
    torch.testing.assert_close(out, want, equal_nan=True)


@pytest.mark.parametrize("way", CODES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.skipif(
    operator_checks.extension.backend() == "reference", reason="it multiplies by dense matrices"
)
def test_an_infinite_gradient_reaches_only_the_cells_that_are_read(
    way: tuple[bool | None, str], layout: str, dtype: torch.dtype
) -> None:
    """A weight of 0 times infinity would be NaN."""
    for size, image in (
        ((6, 6), (9, 7)),
        ((4, 5), (8, 10)),
        ((8, 12), (33, 47)),
        ((2, 40), (3, 140)),
    ):
        level = operator_checks.make((1, 8, *size), dtype, layout).requires_grad_()
        x = operator_checks.make((1, 8, *image), dtype, layout)
        grad = operator_checks.make((1, 8, *image), dtype, layout)
        out = functional.pyramid_add(x, [level], **in_words((way,), 1))
        want = plain_add(x, level, ways=(way,))

        one, rest = torch.zeros_like(grad), grad.clone()
        one[0, 3, 2, 3], rest[0, 3, 2, 3], grad[0, 3, 2, 3] = 1, 0, torch.inf
        weights, finite = (
            torch.autograd.grad(want, level, incoming, retain_graph=True)[0]
            for incoming in (one, rest)
        )
        expected = torch.where(weights != 0, torch.inf, finite)
        found = torch.autograd.grad(out, level, grad)[0]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("x_index", [0, 1, 2, -1])
def test_levels_of_the_maps_own_size(x_index: int) -> None:
    """They are convolved like x; any of several full-size maps may be passed as x."""
    x = operator_checks.make((2, 3, 6, 7), torch.float64, "contiguous")
    levels = [
        operator_checks.make((2, 2, *size), torch.float64, "contiguous")
        for size in ((6, 7), (3, 4))
    ]
    weight = operator_checks.make((4, 7, 3, 3), torch.float64, "contiguous")
    out = functional.pyramid_conv(x, levels, weight, padding=1, x_index=x_index)
    want = plain_concat(x, *levels, ways=HALF_PIXEL, x_index=x_index)
    torch.testing.assert_close(out, F.conv2d(want, weight, padding=1), rtol=1e-11, atol=1e-11)
    alone = functional.pyramid_conv(x, levels[:1], weight[:, :5], x_index=-1)
    want = F.conv2d(torch.cat([levels[0], x], 1), weight[:, :5])
    torch.testing.assert_close(alone, want, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "bicubic"}, 'mode must be "bilinear", "nearest" or "nearest-exact"'),
        ({"mode": "nearest", "align_corners": False}, "the last two without align_corners"),
        ({"mode": ["nearest"] * 3}, "mode must be one value or one for each of 1 levels"),
        ({"align_corners": "yes"}, "align_corners must be one value or one a level, got 'yes'"),
        ({"scale_factor": 0.0}, "scale_factor must be positive, a number or a pair of them"),
    ],
)
def test_interpolation_is_refused_in_words(options: dict[str, Any], message: str) -> None:
    operator_checks.raises(
        ValueError, message, lambda: functional.pyramid_add(map_of(*X), [map_of(*L)], **options)
    )


@pytest.mark.parametrize("layout", FORMATS)
def test_taps_added_in_place(layout: str) -> None:
    base = operator_checks.make((2, 3, 6, 7), torch.float64, layout)
    taps = operator_checks.make((2, 3, 3, 4), torch.float64, layout)
    rest = [6, 7], ONES, NONE, ONES, *ONE_LEVEL
    want = OPS.pyramid_taps_add(base, [taps], *rest)
    out = base.clone()
    assert OPS.pyramid_taps_add.out(out, [taps], *rest, out=out) is out
    assert torch.equal(out, want)
    other = torch.empty_like(base)
    OPS.pyramid_taps_add.out(base, [taps], *rest, out=other)
    assert torch.equal(other, want)
    for refused in (base[:1], base.float(), base[:, :, :5], base.new_empty(2, 3, 6)):
        with pytest.raises((ValueError, RuntimeError), match="pyramid_taps_add: out"):
            OPS.pyramid_taps_add.out(base, [taps], *rest, out=refused.clone())


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("layout", FORMATS)
def test_conv_gradients_of_each_operand(kernel: int, layout: str) -> None:
    """Any subset of operands may require gradients; also second order, and any gradient layout."""
    x = operator_checks.make((2, 3, 6, 7), torch.float64, layout)
    levels = [operator_checks.make((2, 2, *s), torch.float64, layout) for s in ((6, 7), (3, 4))]
    weight, bias = torch.randn(4, 7, kernel, kernel).double(), torch.randn(4).double()
    operands = [x, *levels, weight, bias]

    def ours(x: Tensor, a: Tensor, b: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return functional.pyramid_conv(x, [a, b], weight, bias, padding=kernel // 2)

    def plain(x: Tensor, a: Tensor, b: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        maps = plain_concat(x, a, b, ways=HALF_PIXEL, x_index=0)
        return F.conv2d(maps, weight, bias, padding=kernel // 2)

    for wanted in ((0,), (1, 2), (3,), (4,), (2, 4), (0, 1, 2, 3, 4)):
        here = [v.to(DEVICE).detach().requires_grad_(i in wanted) for i, v in enumerate(operands)]
        asked = [here[i] for i in wanted]
        grad = torch.randn(7, 6, 4, 2).double().to(DEVICE).permute(3, 2, 1, 0).requires_grad_()
        results = []
        for function in (ours, plain):
            first = torch.autograd.grad(function(*here), asked, grad, create_graph=True)
            total = sum(value.pow(2).sum() for value in first)
            second = torch.autograd.grad(total, [grad, *asked], allow_unused=True)
            results.append([*first, *(value for value in second if value is not None)])
        assert len(results[0]) >= len(asked) + 1
        for value, want in zip(*results, strict=True):
            torch.testing.assert_close(value, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("bias", [True, False])
def test_a_map_of_no_channels(bias: bool) -> None:
    """It only defines the size: everything that is convolved is interpolated."""
    x = torch.empty(2, 0, 6, 7, dtype=torch.float64)
    level = operator_checks.make((2, 3, 3, 4), torch.float64, "contiguous").requires_grad_()
    weight = operator_checks.make((4, 3, 3, 3), torch.float64, "contiguous")
    offset = torch.randn(4, dtype=torch.float64, requires_grad=True) if bias else None
    out = functional.pyramid_conv(x, [level], weight, offset, padding=1)
    want = F.conv2d(up(level, (6, 7), False, "bilinear"), weight, offset, padding=1)
    torch.testing.assert_close(out, want, rtol=1e-11, atol=1e-11)
    leaves = [level, *([offset] if bias else [])]
    grad = torch.randn_like(want)
    for a, b in zip(*(torch.autograd.grad(y, leaves, grad) for y in (out, want)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    ("bins", "padding", "dilation", "mode"),
    [
        ((7, 80, 3, 3), 0, 5, 1),  # taps that do not reach the last cells, or the first
        ((6, 6), 12, 12, 0),  # rows that a tap does not reach
        ((15, 75), 1, 1, 2),
    ],
)
@pytest.mark.parametrize("layout", FORMATS)
def test_gradients_of_cells_that_tiles_share(
    bins: tuple[int, ...], padding: int, dilation: int, mode: int, layout: str
) -> None:
    """One image, wider than a tile of columns, its rows cut into chunks; cells that nobody reads
    are 0."""
    last = layout == "channels_last"
    format = torch.channels_last if last else torch.contiguous_format
    grad = torch.randn(1, 8, 30, 150, device=DEVICE).contiguous(memory_format=format)
    size = [length - 2 * padding + 2 * dilation for length in (30, 150)]
    geometry = (size, [3, 3], [padding] * 2, [dilation] * 2, [mode] * (len(bins) // 2))
    ratios = [0.0] * len(bins)
    found = OPS.pyramid_taps_add_backward(grad, bins, *geometry, ratios, last)
    wanted = reference.pyramid_taps_add_backward(grad.double(), bins, *geometry, ratios, last)
    for got, want in zip(found, wanted, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.skipif(
    operator_checks.extension.backend() == "reference", reason="it multiplies by dense matrices"
)
def test_small_levels_under_taps(layout: str, dtype: torch.dtype) -> None:
    """On CUDA these are dense products; an infinity reaches only what reads it nevertheless."""
    bins = [1, 1, 2, 2, 3, 3, 6, 6]
    x, grad = (operator_checks.make((2, 24, 33, 40), dtype, layout) for _ in range(2))
    levels = [operator_checks.make((2, 9 * 24, b, b), dtype, layout) for b in bins[::2]]
    geometry = ([33, 40], [3, 3], [1, 1], [1, 1], [1] * 4, [0.0] * 8)

    def forward(levels: list[Tensor]) -> Tensor:
        return OPS.pyramid_taps_add(x, levels, *geometry)

    def backward(grad: Tensor) -> list[Tensor]:
        found: list[Tensor] = OPS.pyramid_taps_add_backward(
            grad, bins, *geometry, layout == "channels_last"
        )
        return found

    wide = [level.double() for level in levels]
    expected = [reference.pyramid_taps_add(x.double(), wide, *geometry)]
    expected += reference.pyramid_taps_add_backward(grad.double(), bins, *geometry, False)
    for value, want in zip([forward(levels), *backward(grad)], expected, strict=True):
        assert operator_checks.relative_error(value, want) <= operator_checks.TOLERANCE[dtype]

    one = torch.zeros_like(grad)
    one[0, 3, 2, 3], grad[0, 3, 2, 3] = 1, torch.inf
    reads = reference.pyramid_taps_add_backward(one.double(), bins, *geometry, False)
    for value, weights in zip(backward(grad), reads, strict=True):
        assert torch.equal(value == torch.inf, weights != 0) and not value.isnan().any()
    ones = [torch.zeros_like(level) for level in levels]
    ones[3][0, 30, 2, 2], levels[3][0, 30, 2, 2] = 1, torch.inf
    zero, wide = torch.zeros_like(x).double(), [level.double() for level in ones]
    weights = reference.pyramid_taps_add(zero, wide, *geometry)
    out = forward(levels)
    assert (out[weights != 0] == torch.inf).all() and not out[0, :6].isinf().any()
    assert not out[:, 7:].isnan().any()


def check_taps_add(x: Tensor, levels: list[Tensor], geometry: tuple[Any, ...]) -> None:
    found = OPS.pyramid_taps_add(x, levels, *geometry)
    wanted = reference.pyramid_taps_add(x.double(), [one.double() for one in levels], *geometry)
    assert operator_checks.relative_error(found, wanted) <= operator_checks.TOLERANCE[x.dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("shape", [(40, 8, 66, 5), (1, 40, 18, 70)], ids=str)
def test_blocks_of_small_levels(
    shape: tuple[int, int, int, int], layout: str, dtype: torch.dtype
) -> None:
    """Several chunks of rows per block, several tiles of columns and of channels."""
    x = operator_checks.make(shape, dtype, layout)
    levels = [operator_checks.make((shape[0], 9 * shape[1], b, b), dtype, layout) for b in (1, 4)]
    geometry = ([*shape[2:]], [3, 3], [1, 1], [1, 1], [1] * 2, [0.0] * 4)
    check_taps_add(x, levels, geometry)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("levels", "kernel", "modes"),
    [(((7, 20),), 3, [0]), (((7, 20), (4, 8), (14, 40)), 1, [0, 2, 1]), (((7, 21),), 3, [3])],
    ids=str,
)
def test_many_planes(
    levels: tuple[tuple[int, int], ...], kernel: int, modes: list[int], dtype: torch.dtype
) -> None:
    """An odd number of planes, of which a thread may own two; rows of cells that are and are not
    aligned to packs."""
    shape = (1, 1201, 14, 40)
    x = operator_checks.make(shape, dtype, "contiguous")
    taps = [
        operator_checks.make((1, kernel**2 * shape[1], *size), dtype, "contiguous")
        for size in levels
    ]
    geometry = ([14, 40], [kernel] * 2, [kernel // 2] * 2, [1, 1], modes, [0.0] * 2 * len(levels))
    check_taps_add(x, taps, geometry)
