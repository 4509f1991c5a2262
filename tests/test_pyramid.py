"""The pyramid family's pooling: operators, gradients, operator suite, refusals; row_pool."""

from __future__ import annotations

import ctypes
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import operator_checks
import pytest
import torch
import torch.nn.functional as F
from operator_checks import DEVICE, DTYPES, FORMATS, Case, Shape
from operator_suite import FAR_SHAPES, OperatorSuite, Refusal, far_and_near, map_of
from torch import Tensor

from stripctx import extension, functional

OPS = torch.ops.stripctx
Bins = Sequence[Any]

PSP = (1, 2, 3, 6)
BINS: tuple[Bins, ...] = ((1,), PSP, ((4, 1), (1, 4)), (7,))
MODES = ("mean", "max")


def plain_pool(x: Tensor, bins: Bins, mode: str) -> tuple[Tensor, ...]:
    if x.size(1) == 0:  # not supported by torch
        bins = [(b, b) if isinstance(b, int) else b for b in bins]
        return tuple(x.new_empty((*x.shape[:2], *b)) + 0 * x.sum() for b in bins)
    pool = F.adaptive_avg_pool2d if mode == "mean" else F.adaptive_max_pool2d
    return tuple(pool(x, b) for b in bins)


def pool_case(bins: Bins, mode: str) -> Case:
    return Case(
        f"{mode}-{bins}".replace(" ", ""),
        lambda x: functional.pyramid_pool(x, bins, mode),
        lambda x: plain_pool(x, bins, mode),
        lambda s: [s],
    )


def row_case(mode: str) -> Case:
    return Case(
        f"{mode}-rows",
        lambda x: functional.row_pool(x, 3, mode),
        lambda x: plain_pool(x, [(3, 1)], mode)[0].squeeze(3),
        lambda s: [s],
    )


EVERY = tuple(pool_case(bins, mode) for mode in MODES for bins in BINS)
PAIR = tuple(pool_case((2, (3, 1)), mode) for mode in MODES)
ROWS = tuple(row_case(mode) for mode in MODES)

any_mode = pytest.mark.parametrize("mode", MODES)


# Maps and bins for other code paths: many bins, cells of a whole row, planes split into chunks of
# rows, more bins than a table or shared memory can hold.
OTHER_WAYS: tuple[tuple[Shape, Bins], ...] = (
    ((1, 20, 31, 45), (20, 12)),
    ((2, 5, 16, 24), ((16, 1), (1, 24), 3)),
    ((1, 2, 150, 40), (1, (5, 2))),
    ((1, 2, 140, 3), ((130, 1),)),
    ((1, 3, 9, 11), (40, 1)),
    ((1, 2, 3, 2), ((1, 300), 2)),
    ((1, 2, 70, 72), (70, 1)),
)


@any_mode
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize(("shape", "bins"), OTHER_WAYS, ids=str)
def test_many_bins(shape: Shape, bins: Bins, mode: str, layout: str, dtype: torch.dtype) -> None:
    operator_checks.check_float64(pool_case(bins, mode), shape, dtype, layout)


@any_mode
@pytest.mark.parametrize("layout", FORMATS)
def test_every_bin_of_every_size(mode: str, layout: str) -> None:
    """1 to 24 bins over 1 to 26 positions, with different numbers for rows and columns."""
    for size in range(1, 27):
        x = operator_checks.make((1, 3, size, 27 - size), torch.float64, layout)
        for first in (1, 9, 17):
            bins = tuple((b, 25 - b) for b in range(first, first + 8))
            pooled = functional.pyramid_pool(x, bins, mode)
            for a, b in zip(pooled, plain_pool(x, bins, mode), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("case", ROWS, ids=str)
@pytest.mark.parametrize("layout", FORMATS)
def test_row_pool(case: Case, layout: str) -> None:
    operator_checks.check_float64(case, (2, 9, 7, 11), torch.float32, layout)


@any_mode
def test_export_with_dynamic_shapes(mode: str) -> None:
    class Module(torch.nn.Module):
        def forward(self, x: Tensor) -> list[Tensor]:
            return functional.pyramid_pool(x, (1, 3), mode)

    shapes = {"x": {d: torch.export.Dim(f"size{d}") for d in (0, 2, 3)}}
    x = torch.randn(2, 3, 8, 9, device=DEVICE)
    exported = torch.export.export(Module(), (x,), dynamic_shapes=shapes).module()
    other = torch.randn(3, 3, 5, 12, device=DEVICE)
    for a, b in zip(exported(other), functional.pyramid_pool(other, (1, 3), mode), strict=True):
        assert torch.equal(a, b)


@any_mode
def test_autocast(mode: str) -> None:
    """Pooling keeps the dtype of x."""
    x = torch.randn(2, 3, 5, 7, device=DEVICE)
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
        for value in (x, x.bfloat16(), x.double()):
            assert functional.pyramid_pool(value, (2,), mode)[0].dtype == value.dtype


# Indices.


def with_ties(shape: Shape, layout: str) -> Tensor:
    """Few distinct values, so that every window has ties; NaNs; a plane of -infinity, one of
    NaN."""
    x = torch.randint(0, 3, shape, device=DEVICE).float()
    x[torch.rand(shape, device=DEVICE) < 0.05] = float("nan")
    x[0, 0] = float("-inf")
    x[0, 1] = float("nan")
    return x.contiguous(memory_format=torch.channels_last) if layout == "channels_last" else x


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("bins", [PSP, (7, (9, 2)), (40, 1)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_indices_equal_torchs(bins: Bins, layout: str, dtype: torch.dtype) -> None:
    """The first of equal values, the last of NaNs."""
    x = with_ties((2, 6, 11, 37), layout).to(dtype)
    flat = [size for b in bins for size in (b if isinstance(b, tuple) else (b, b))]
    pooled = OPS.pyramid_max_pool(x, flat)
    for k, size in enumerate(bins):
        value, index = F.adaptive_max_pool2d(x.cpu().float(), size, return_indices=True)
        torch.testing.assert_close(pooled[k].cpu().float(), value, rtol=0, atol=0, equal_nan=True)
        assert torch.equal(pooled[len(bins) + k].cpu(), index)
        assert pooled[len(bins) + k].dtype == torch.int64


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("bins", [(1,), (3,), (40,)], ids=str)
def test_an_index_outside_its_window_adds_nothing(bins: Bins, layout: str) -> None:
    """Indices out of bounds, or outside the window of their bin, contribute nothing."""
    x = operator_checks.make((2, 19, 7, 9), torch.float32, layout).requires_grad_()
    (out,) = functional.pyramid_pool(x, bins, "max")
    grad = torch.randn_like(out)
    (expected,) = torch.autograd.grad(out, x, grad)
    (index,) = OPS.pyramid_max_pool(x.detach(), [bins[0], bins[0]])[1:]
    foreign = torch.rand(index.shape, device=DEVICE) < 0.3
    bad = torch.tensor([-1, -(2**63), 2**63 - 1, 2**32, 63, 2**31], device=DEVICE)
    wild = torch.where(foreign, bad[torch.randint(0, 6, index.shape, device=DEVICE)], index)
    channels_last = layout == "channels_last"
    value = OPS.pyramid_max_pool_backward([grad], [wild], 7, 9, channels_last)
    want = OPS.pyramid_max_pool_backward([grad.masked_fill(foreign, 0)], [index], 7, 9, False)
    assert torch.equal(value, want)
    whole = OPS.pyramid_max_pool_backward([grad], [index], 7, 9, channels_last)
    assert torch.equal(whole, expected)
    if bins == (3,):  # an index into another bin
        value = OPS.pyramid_max_pool_backward([grad], [index.flip(2)], 7, 9, channels_last)
        assert value[:, :, [0, 1, 5, 6]].count_nonzero() == 0


@pytest.mark.parametrize("layout", FORMATS)
def test_adjoint_of_indices_outside_their_windows(layout: str) -> None:
    """Double backward reads exactly the elements that backward adds to."""
    grad = torch.randn(1, 2, 2, 2, dtype=torch.float64, device=DEVICE).requires_grad_()
    index = torch.tensor([0, 7, -5, 19, 2, 99, 3, 10], device=DEVICE).view(1, 2, 2, 2)
    assert torch.autograd.gradcheck(
        lambda g: OPS.pyramid_max_pool_backward([g], [index], 4, 5, layout == "channels_last"),
        (grad,),
    )


@pytest.mark.parametrize("shape, axis", FAR_SHAPES)
def test_offsets_past_two_to_the_31(shape: tuple[int, ...], axis: int) -> None:
    x, values = far_and_near(shape, axis)
    for mode in MODES:
        pooled = functional.pyramid_pool(x, (1, (2, 3)), mode)
        for a, b in zip(pooled, functional.pyramid_pool(values, (1, (2, 3)), mode), strict=True):
            assert torch.equal(a, b)


@any_mode
@pytest.mark.parametrize("layout", FORMATS)
def test_extra_memory(mode: str, layout: str) -> None:
    """A kernel allocates, in addition to its results, at most 5 % of x and 128 KiB of partial sums,
    which a GPU needs for small maps."""
    x = operator_checks.make((1, 64, 60, 60), torch.float32, layout)
    allowed = x.numel() * x.element_size() // 20 + (128 << 10) * (
        DEVICE.type == "cuda" or operator_checks.EMULATED
    )
    out = functional.pyramid_pool(x, PSP, mode)
    results = sum(o.numel() * o.element_size() * (3 if mode == "max" else 1) for o in out)
    if extension.backend() == "reference":
        pytest.skip("the reference may widen and copy")
    with torch.profiler.profile(profile_memory=True) as profile:
        functional.pyramid_pool(x, PSP, mode)
    key = "device_memory_usage" if DEVICE.type == "cuda" else "cpu_memory_usage"
    taken = sum(max(0, getattr(e, f"self_{key}")) for e in profile.events())
    assert taken <= results + allowed


# The CUDA kernels, with traffic counted and threads reordered by the emulator.

emulated_only = pytest.mark.skipif(not operator_checks.EMULATED, reason="needs the emulator")


def emulator() -> ctypes.CDLL:
    path = extension.status().libraries["emulated"].path
    library = ctypes.CDLL(path)
    library.stripctx_simt_counts.restype = ctypes.c_char_p
    return library


@emulated_only
@any_mode
@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize(
    ("shape", "bins"),
    [((1, 32, 60, 60), PSP), ((1, 16, 97, 97), PSP), ((2, 16, 128, 64), ((16, 1),))],
    ids=str,
)
def test_bytes_moved(shape: Shape, bins: Bins, mode: str, layout: str) -> None:
    """One read of x, one write of grad_x; bins and their partial sums, within 5 % and 64 KiB. Small
    maps are divided among many blocks, each of which writes partial sums or reads the bins."""
    library = emulator()

    def moved(call: Callable[[], Any]) -> tuple[int, int]:
        library.stripctx_simt_reset_counts()
        call()
        counts = json.loads(library.stripctx_simt_counts()).values()
        return sum(c["bytes_read"] for c in counts), sum(c["bytes_written"] for c in counts)

    x = operator_checks.make(shape, torch.float32, layout)
    flat = [size for b in bins for size in (b if isinstance(b, tuple) else (b, b))]
    forward = OPS.pyramid_pool if mode == "mean" else OPS.pyramid_max_pool
    results = forward(x, flat)
    levels = sum(r.nbytes for r in results)
    read, written = moved(lambda: forward(x, flat))
    assert x.nbytes <= read and levels <= written
    divided = 64 << 10
    assert read + written <= 1.05 * (x.nbytes + levels) + divided
    grads, indices = results[: len(bins)], results[len(bins) :]
    lists = (grads, indices) if mode == "max" else (grads,)
    backward = OPS.pyramid_pool_backward if mode == "mean" else OPS.pyramid_max_pool_backward
    read, written = moved(lambda: backward(*lists, *shape[2:], layout == "channels_last"))
    places = sum(g.nbytes for g in grads) if mode == "max" else 0  # of maxima, after the zeros
    assert x.nbytes <= written <= x.nbytes + places
    extra = 0.15 if mode == "max" and layout == "channels_last" else 0.05
    assert levels <= read <= levels + extra * x.nbytes + divided


@emulated_only
@any_mode
@pytest.mark.parametrize("layout", FORMATS)
def test_thread_order_does_not_matter(mode: str, layout: str) -> None:
    """Detects missing barriers."""
    library = emulator()
    for shape, bins in (
        ((2, 5, 16, 24), PSP),
        ((1, 2, 150, 40), (1, (5, 2))),
        ((1, 3, 9, 7), (9,)),
    ):
        case = pool_case(bins, mode)
        arguments = case.arguments(shape, torch.float32, layout)
        grads = operator_checks.output_grads(case, arguments)
        first = operator_checks.run(case.function, arguments, grads)
        try:
            for order in (b"descending", b"random:1", b"random:2"):
                assert library.stripctx_simt_set_order(order) == 0
                for a, b in zip(
                    first, operator_checks.run(case.function, arguments, grads), strict=True
                ):
                    assert torch.equal(a, b)
        finally:
            library.stripctx_simt_set_order(b"ascending")


@emulated_only
@any_mode
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("view", ["dense", "unaligned", "rows apart"])
def test_chips_without_bulk_copies(
    view: str, dtype: torch.dtype, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same bits, whatever begins within 16 bytes: planes, rows, the map."""
    size = (3, 5, 23, 21)
    whole = operator_checks.make((3, 5, 23, 26), dtype, "contiguous")
    x = {
        "dense": whole[..., :21].contiguous(),
        "unaligned": whole.flatten()[1 : 1 + math.prod(size)].view(size),
        "rows apart": whole[..., 2:23],
    }[view]
    here = functional.pyramid_pool(x, PSP, mode)
    monkeypatch.setenv("STRIPCTX_SIMT_CAPABILITY", "80")
    there = functional.pyramid_pool(x, PSP, mode)
    expected = functional.pyramid_pool(x.double().contiguous(), PSP, mode)
    for a, b, c in zip(here, there, expected, strict=True):
        assert torch.equal(a, b)
        assert operator_checks.relative_error(a, c) < operator_checks.TOLERANCE[dtype]


X = (2, 3, 4, 5)
LIST = [map_of(2, 3, 1, 1), map_of(2, 3, 2, 2)]
LONG = [map_of(2, 3, 1, 1, dtype=torch.int64), map_of(2, 3, 2, 2, dtype=torch.int64)]
REFUSED: list[Refusal] = [
    (functional.pyramid_pool, (map_of(2, 3), (1,)), "x must be 4-D (N, C, H, W), got 2-D (2, 3)"),
    (
        functional.pyramid_pool,
        (map_of(*X, dtype=torch.int64), (1,)),
        "pyramid_pool: x must be float64, float32, float16 or bfloat16, got int64",
    ),
    (functional.pyramid_pool, (map_of(*X, dtype=torch.int64), (1,), "max"), "got int64"),
    (
        functional.pyramid_pool,
        (map_of(2, 3, 0, 5), (1,)),
        "pyramid_pool: x must have at least one row and one column, got (2, 3, 0, 5)",
    ),
    (
        functional.pyramid_pool,
        (map_of(*X), (1, 0, 3)),
        "pyramid_pool: bins must be positive integers or pairs of them, at least one, "
        "got (1, 0, 3)",
    ),
    (functional.pyramid_pool, (map_of(*X), ()), "at least one, got ()"),
    (functional.pyramid_pool, (map_of(*X), ((1, 2, 3),)), "got ((1, 2, 3),)"),
    (functional.pyramid_pool, (map_of(*X), (1.5,)), "got (1.5,)"),
    (
        functional.pyramid_pool,
        (map_of(*X), (1,), "sum"),
        'pyramid_pool: mode must be "mean" or "max", got \'sum\'',
    ),
    (
        functional.pyramid_pool,
        (map_of(*X), (1,) * 9),
        "bins must hold 1 to 8 pairs (height, width), laid flat, got (1, 1,",
    ),
    (functional.row_pool, (map_of(*X), 0), "row_pool: rows must be a positive integer, got 0"),
    (functional.row_pool, (map_of(*X), 2, "sum"), "row_pool: mode must be"),
    (OPS.pyramid_pool, (map_of(*X), []), "pairs (height, width), laid flat, got ()"),
    (OPS.pyramid_pool, (map_of(*X), [1, 2, 3]), "laid flat, got (1, 2, 3)"),
    (OPS.pyramid_pool, (map_of(*X), [1, -2]), "bins must be from 1 to 16777216, got (1, -2)"),
    (OPS.pyramid_pool, (map_of(*X), [2**40, 1]), "from 1 to 16777216, got (1099511627776, 1)"),
    (OPS.pyramid_max_pool, (map_of(*X), [0, 1]), "from 1 to 16777216, got (0, 1)"),
    (
        OPS.pyramid_max_pool,
        (map_of(1, 1, 1, 1).expand(1, 1, 2**16, 2**15), [1, 1]),
        "x must span fewer than 2147483648 positions, got (65536, 32768)",
    ),
    (OPS.pyramid_pool_backward, ([], 4, 5, False), "grads must hold 1 to 8 levels, got 0"),
    (OPS.pyramid_pool_backward, (LIST * 5, 4, 5, False), "1 to 8 levels, got 10"),
    (
        OPS.pyramid_pool_backward,
        ([LIST[0], map_of(2, 4, 2, 2)], 4, 5, False),
        "pyramid_pool_backward: grads[1] must have shape (2, 3, 2, 2), got (2, 4, 2, 2)",
    ),
    (
        OPS.pyramid_pool_backward,
        ([LIST[0], map_of(2, 3, 2)], 4, 5, False),
        "grads[1] must be 4-D (N, C, H, W), got 3-D (2, 3, 2)",
    ),
    (
        OPS.pyramid_pool_backward,
        ([LIST[0], LIST[1].half()], 4, 5, False),
        "grads[1] must have the dtype of grads[0], float32, got float16",
    ),
    (
        OPS.pyramid_pool_backward,
        ([map_of(2, 3, 0, 2)], 4, 5, False),
        "grads[0] must have from 1 to 16777216 bins along H and W, got (2, 3, 0, 2)",
    ),
    (OPS.pyramid_pool_backward, (LIST, 0, 5, False), "must be positive, got (0, 5)"),
    (OPS.pyramid_pool_backward, (LIST, 4, -5, True), "must be positive, got (4, -5)"),
    (
        OPS.pyramid_max_pool_backward,
        (LIST, LONG[:1], 4, 5, False),
        "indices must hold as many levels as grads, 2, got 1",
    ),
    (
        OPS.pyramid_max_pool_backward,
        (LIST, [LONG[0], LONG[1].int()], 4, 5, False),
        "indices[1] must be int64, got int32",
    ),
    (
        OPS.pyramid_max_pool_backward,
        (LIST, [LONG[0], LONG[0]], 4, 5, False),
        "indices[1] must have shape (2, 3, 2, 2), got (2, 3, 1, 1)",
    ),
    (
        OPS.pyramid_max_pool_backward,
        (LIST, LONG, 2**20, 2**20, False),
        "height and width must span fewer than 2147483648 positions, got (1048576, 1048576)",
    ),
]


@dataclass(frozen=True)
class Distinct(Case):
    """Values so far apart that finite differences do not change the maxima."""

    def arguments(
        self, shape: Shape, dtype: torch.dtype, layout: str = "contiguous"
    ) -> tuple[Tensor, ...]:
        values = torch.randperm(torch.Size(shape).numel(), dtype=torch.float64).view(shape) / 16
        format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
        return (values.to(DEVICE, dtype).contiguous(memory_format=format),)


class TestPyramid(OperatorSuite):
    kernels = EVERY
    typical = PAIR
    refusals = REFUSED

    @staticmethod
    def samples(layout: str) -> dict[Any, tuple[Any, ...]]:
        x = operator_checks.make((2, 5, 6, 7), torch.float32, layout)
        bins, last = [1, 1, 2, 3], layout == "channels_last"
        grads = [
            operator_checks.make((2, 5, h, w), torch.float32, layout) for h, w in ((1, 1), (2, 3))
        ]
        indices = OPS.pyramid_max_pool(x, bins)[2:]
        return {
            OPS.pyramid_pool: (x, bins),
            OPS.pyramid_pool_backward: (grads, 6, 7, last),
            OPS.pyramid_max_pool: (x, bins),
            OPS.pyramid_max_pool_backward: (grads, indices, 6, 7, last),
        }

    def test_gradients(self, case: Case) -> None:
        operator_checks.check_gradients(Distinct(*vars(case).values()), (2, 2, 4, 5))
