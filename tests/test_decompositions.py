"""Every operator in standard operators (stripctx.export): the same results for known sizes and,
after a single export, for any other size."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import operator_checks
import pytest
import torch
from operator_checks import DEVICE
from torch import Tensor, nn

from stripctx import export, functional
from stripctx.layout import is_channels_last

OPS = torch.ops.stripctx
TABLE = export.decompositions()
MODES = (("bilinear", False), ("bilinear", True), ("nearest", None), ("nearest-exact", None))
DYNAMIC = torch.export.Dim.DYNAMIC


def rand(*size: int) -> Tensor:
    return torch.randn(size, device=DEVICE, dtype=torch.float64)


def test_every_forward_operator_has_a_decomposition() -> None:
    ours = {str(op) for op in TABLE}
    library = {name for name in torch._C._dispatch_get_all_op_names() if "stripctx::" in name}
    forward = {name for name in library if "backward" not in name and "." not in name}
    forward -= {"stripctx::map_memory"}  # not in any trace
    assert {name.replace("::", ".") + ".default" for name in forward} == ours


@pytest.mark.parametrize("bins", [(1,), (1, 2, 3, 6), ((4, 1),), ((1, 5), (7, 2), 3), (12,)])
@pytest.mark.parametrize("size", [(1, 1), (5, 7), (12, 20), (9, 1), (1, 9), (64, 48)])
def test_pooling(bins: Any, size: tuple[int, int]) -> None:
    """Windows that overlap or repeat, and ties among the maxima."""
    x = rand(2, 3, *size)
    flat = [side for b in bins for side in (b if isinstance(b, tuple) else (b, b))]
    for got, want in zip(
        TABLE[OPS.pyramid_pool.default](x, flat), OPS.pyramid_pool(x, flat), strict=True
    ):
        torch.testing.assert_close(got, want)
    x = torch.randint(0, 4, x.shape, device=DEVICE).double()
    for got, want in zip(
        TABLE[OPS.pyramid_max_pool.default](x, flat), OPS.pyramid_max_pool(x, flat), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=0, atol=0)


@pytest.mark.parametrize(("mode", "corners"), MODES)
@pytest.mark.parametrize("size", [(12, 20), (1, 1), (13, 1), (82, 123), (70, 140)])
def test_interpolation(mode: str, corners: bool | None, size: tuple[int, int]) -> None:
    """Levels that are enlarged, reduced and unchanged, small and large ones."""
    cells = [(1, 1), (6, 10), (3, 4), size, (40, 70), (41, 3)]
    x, levels = rand(2, 3, *size), [rand(2, 3, *each) for each in cells]
    codes = [functional.upsample._MODES[mode, bool(corners)]] * len(levels)
    none = [0.0] * (2 * len(levels))
    torch.testing.assert_close(
        TABLE[OPS.pyramid_concat.default](x, levels, codes, none, 1),
        OPS.pyramid_concat(x, levels, codes, none, 1),
    )
    torch.testing.assert_close(
        TABLE[OPS.pyramid_add_relu.default](x, levels, codes, none),
        OPS.pyramid_add_relu(x, levels, codes, none),
    )


@pytest.mark.parametrize(("mode", "corners"), MODES)
@pytest.mark.parametrize(
    ("kernel", "padding", "dilation"),
    [((1, 1), (0, 0), (1, 1)), ((1, 1), (1, 2), (1, 1)), ((3, 3), (1, 1), (1, 1)),
     ((2, 5), (0, 3), (3, 2))],
)  # fmt: skip
def test_taps(mode: str, corners: bool | None, kernel: Any, padding: Any, dilation: Any) -> None:
    size = (11, 14)
    outputs = [
        s + 2 * p - d * (k - 1) for s, p, d, k in zip(size, padding, dilation, kernel, strict=True)
    ]
    base = rand(2, 4, *outputs)
    taps = [rand(2, 4 * kernel[0] * kernel[1], *cells) for cells in ((3, 5), (11, 14), (1, 7))]
    codes = [functional.upsample._MODES[mode, bool(corners)]] * 3
    ratios = [1 / 3.9, 1 / 2.9, 0.0, 0.0, 0.0, 0.5] if corners is not True else [0.0] * 6
    arguments = (base, taps, list(size), kernel, padding, dilation, codes, ratios)
    torch.testing.assert_close(
        TABLE[OPS.pyramid_taps_add.default](*arguments), OPS.pyramid_taps_add(*arguments)
    )


@pytest.mark.parametrize(
    ("cells", "extent"), list(itertools.product((1, 2, 3, 7), (1, 2, 6, 13, 41)))
)
def test_strips_rows_and_codes(cells: int, extent: int) -> None:
    x, bias = rand(2, 4, extent, cells), rand(4)
    rows, cols = rand(2, 4, extent, 1), rand(2, 4, 1, cells)
    for name, arguments in {
        "strip_pool": (x,),
        "strip_add_relu": (rows, cols),
        "strip_conv": (rows, cols, rand(5, 4, 1, 1)),
        "sigmoid_gate": (x, torch.randn_like(x), bias),
        "row_gate": (x, rand(2, 4, cells)),
        "encode": (x + 100, rand(6, 4) + 100, -rand(6).abs(), False),
        "channel_gate": (x, rand(2, 4)),
    }.items():
        operator = getattr(OPS, name)
        got, want = TABLE[operator.default](*arguments), operator(*arguments)
        for a, b in zip(operator_checks.tuple_of(got), operator_checks.tuple_of(want), strict=True):
            torch.testing.assert_close(a, b)


# Exported once, for any size.


def decomposed(function: Callable[..., Any], inputs: tuple[Tensor, ...]) -> nn.Module:
    class Module(nn.Module):
        def forward(self, *inputs: Tensor) -> Any:
            return function(*inputs)

    shapes = ({0: DYNAMIC, 2: DYNAMIC, 3: DYNAMIC},) * len(inputs)
    program = torch.export.export(Module(), inputs, dynamic_shapes=(shapes,))
    program = program.run_decompositions(TABLE)
    assert not any("stripctx" in str(node.target) for node in program.graph.nodes)
    return program.module()


@pytest.mark.parametrize(("mode", "corners"), MODES)
def test_symbolic_sizes(mode: str, corners: bool | None) -> None:
    """Also if the example's sizes happen to equal those of bins, or multiples of one another."""
    weight = rand(4, 9, 3, 3)

    def function(x: Tensor, level: Tensor) -> Any:
        pooled = functional.pyramid_pool(x, (4, 6))
        maxima = functional.pyramid_pool(x, (4, (2, 1)), "max")
        way = {"mode": mode, "align_corners": corners}
        return (
            *maxima,
            functional.pyramid_conv(x, [*pooled], weight, padding=1, **way),
            functional.pyramid_conv(x, [level, level], weight, padding=1, **way),
            functional.pyramid_concat(x, [level, *maxima], **way),
            functional.pyramid_add_relu(x, [level, *pooled], **way),
        )

    program = decomposed(function, (rand(2, 3, 4, 8), rand(2, 3, 2, 4)))
    for size, cells in (((4, 8), (2, 4)), ((9, 5), (4, 3)), ((1, 6), (3, 3)), ((41, 82), (1, 2))):
        inputs = (rand(3, 3, *size), rand(3, 3, *cells))
        for got, want in zip(program(*inputs), function(*inputs), strict=True):
            torch.testing.assert_close(got, want)


def test_fake_kernels_are_unchanged() -> None:
    """The decompositions must not change what the fake kernels report, such as strides."""
    seen: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        for node in graph.graph.nodes:
            if "stripctx" in str(node.target):
                value = node.meta["example_value"]
                seen.extend(value if isinstance(value, (list, tuple)) else [value])
        return graph.forward

    def function(x: Tensor) -> Any:
        return functional.pyramid_pool(x, (2, 3)), functional.strip_pool(x)

    torch._dynamo.reset()
    x = rand(2, 8, 12, 10).to(memory_format=torch.channels_last)
    torch.compile(function, backend=backend, dynamic=True, fullgraph=True)(x)
    maps = [one for one in seen if one.size(2) > 1 and one.size(3) > 1]
    assert maps and all(is_channels_last(one) for one in maps)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", [(5, 7), (17, 40), (64, 80)])
def test_label_maps(align_corners: bool, size: tuple[int, int]) -> None:
    logits = rand(2, 6, 5, 7)
    arguments = (logits, list(size), align_corners, 8)
    for name in ("upsample_argmax", "upsample_softmax_max"):
        operator = getattr(OPS, name).default
        got, want = (operator_checks.tuple_of(f(*arguments)) for f in (TABLE[operator], operator))
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b)


def test_losses() -> None:
    logits, target = rand(2, 6, 5, 7), torch.randint(-1, 7, (2, 17, 40), device=DEVICE)
    binary = torch.rand(2, 6, 17, 40, device=DEVICE, dtype=torch.float64)
    for name, arguments in (
        ("upsample_cross_entropy", (target, None, False, 3, 0.1, False)),
        ("upsample_binary_cross_entropy", (binary, binary, None, True, True)),
        ("upsample_dice", (target, True, 255)),
    ):
        operator = getattr(OPS, name).default
        got, want = (
            operator_checks.tuple_of(f(logits, *arguments)) for f in (TABLE[operator], operator)
        )
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b)
