"""Writes the cost tables of operators and layers into the pages in docs/.

    python -m benchmarks.costs            update docs/
    python -m benchmarks.costs --check    exit status 1 if a page is not up to date

A pair of comments marks a table in a page; everything between them is replaced:

    <!-- floors:strip_pool,strip_add_relu -->     from benchmarks/floors, one row per operator
    <!-- /floors -->
    <!-- cost:StripPooling -->                    the layer at its paper's sizes, by operator
    <!-- /cost -->

    <!-- cost:all -->                             one row per layer
    <!-- /cost -->

benchmarks/traffic.py counts forward and backward. The plain PyTorch row is the same layer with
`benchmarks.peers` in place of stripctx's functions.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch

import stripctx
from benchmarks import floors, peers, traffic
from benchmarks.report import REPOSITORY, bring_up_to_date
from benchmarks.tables import markdown, shape_text
from benchmarks.traffic import Traffic

PAGES = REPOSITORY / "docs"
COUNTED = "../README.md#how-to-read-the-tables"
BLOCK = re.compile(
    r"(?P<open><!-- (?P<kind>floors|cost):(?P<names>[\w,]+) -->\n)"
    r".*?(?P<close><!-- /(?P=kind) -->)",
    re.DOTALL,
)

# Sizes used in the papers: (N, C, H, W) of the map whose size is the unit of the row.
STRIP_MAP = (4, 512, 60, 60)
PYRAMID_MAP = (2, 2048, 60, 60)
HEIGHT_MAP = (4, 2048, 96, 96)
ENCODING_MAP = (4, 512, 60, 60)
OTHER_MAPS = {
    "pyramid_add_relu": (4, 256, 60, 60),
    "pyramid_taps_add": (2, 512, 60, 60),
    "upsample_binary_cross_entropy": (4, 1, 512, 1024),
}
MAPS = (
    (("strip", "sigmoid"), STRIP_MAP),
    (("pyramid",), PYRAMID_MAP),
    (("row",), HEIGHT_MAP),
    (("encode", "channel"), ENCODING_MAP),
    (("upsample",), (4, 19, 512, 1024)),
)


@dataclass(frozen=True)
class Case:
    """A layer at the sizes of its paper: its arguments, its input maps, the name of the last
    map."""

    arguments: tuple[int, ...]
    sizes: tuple[tuple[int, int, int, int], ...]
    unit: str = "x"


CASES = {
    "StripPooling": Case((512,), (STRIP_MAP,)),
    "MixedPooling": Case((1024,), ((4, 1024, 60, 60),)),
    "PyramidPooling": Case((2048,), (PYRAMID_MAP,)),
    "PyramidPoolingConv": Case((2048, 512), (PYRAMID_MAP,)),
    "HeightAttention": Case((1024, 2048), ((4, 1024, 96, 96), HEIGHT_MAP), "out"),
    "EncodingLayer": Case((512, 32), (ENCODING_MAP,)),
    "ContextEncoding": Case((512, 150), (ENCODING_MAP,)),
}


@dataclass(frozen=True)
class Cost:
    """The costs of a layer at the sizes of its paper. `unit` is the bytes of its last input map."""

    written: str
    parameters: int
    unit: int
    forward: Traffic
    backward: Traffic
    plain_forward: Traffic
    plain_backward: Traffic


def cost(name: str) -> Cost:
    case = CASES[name]
    with torch.device("meta"):
        layer = getattr(stripctx, name)(*case.arguments)
        maps = [torch.empty(size, requires_grad=True) for size in case.sizes]
    ours = traffic.count(layer, maps)
    with peers.installed():
        plain = traffic.count(layer, maps)
    written = f"{name}({', '.join(map(str, case.arguments))})"
    parameters = sum(p.numel() for p in layer.parameters())
    return Cost(written, parameters, traffic.moved_bytes(maps[-1]), *ours, *plain)


def layer_table(name: str) -> str:
    """One row per kind of operator, the total, and the total in plain PyTorch."""
    case, of = CASES[name], cost(name)
    kinds = dict.fromkeys([*of.forward.bytes, *of.backward.bytes])
    rows = [
        [
            kind,
            magnitude(of.forward.multiply_adds.get(kind, 0)),
            share(of.forward.bytes.get(kind, 0), of.unit),
            share(of.backward.bytes.get(kind, 0), of.unit),
        ]
        for kind in sorted(kinds, key=lambda kind: kind[0] != "`")  # stripctx's operators first
    ]
    for label, there, back in (
        ("**together**", of.forward, of.backward),
        ("the same in plain PyTorch", of.plain_forward, of.plain_backward),
    ):
        moved = (share(each.total, of.unit) for each in (there, back))
        rows.append([label, magnitude(there.products), *moved])
    sizes = " and ".join(shape_text(size) for size in case.sizes)
    unit = f"`{case.unit}`, {of.unit / 2**20:.1f} MiB in float32"
    title = (
        f"`{of.written}`: {spaced(of.parameters)} parameters. For maps of {sizes}, training, in "
        f"units of {unit} ([how this is counted]({COUNTED})):"
    )
    headers = ["", "multiply-adds, forward", "moved forward", "moved backward"]
    return f"{title}\n\n{markdown(headers, rows, left=1)}"


def all_table() -> str:
    """One row per layer, forward and backward together."""
    rows = []
    for name, case in CASES.items():
        of = cost(name)
        plain = of.plain_forward.total + of.plain_backward.total
        rows.append(
            [
                f"`{of.written}`",
                shape_text(case.sizes[-1]),
                spaced(of.parameters),
                magnitude(of.forward.products),
                share(of.forward.total + of.backward.total, of.unit),
                magnitude(of.plain_forward.products),
                share(plain, of.unit),
            ]
        )
    headers = [
        "layer",
        "one unit",
        "parameters",
        "multiply-adds",
        "moved",
        "plain PyTorch: multiply-adds",
    ]
    return markdown([*headers, "moved"], rows, left=2)


def floors_table(names: list[str]) -> str:
    """Forward and backward of each operator, in multiples of its map."""
    rows = []
    for name in names:
        size = map_of(name)
        shape = floors.Shape(*size)
        for operator in (name, f"{name}_backward"):
            if operator not in floors.FLOORS:
                continue  # label maps have no gradient
            floor = floors.floor(operator, shape)
            unit = shape.map * shape.element_size
            each = floor.operations / shape.map
            work = f"{each:.0f}" if each >= 100 else f"{each:.3g}"
            moved = (share(floor.read, unit), share(floor.written, unit))
            rows.append([f"`{operator}`", shape_text(size), *moved, work])
    headers = ["operator", "x, one unit", "reads", "writes", "operations an element of x"]
    return markdown(headers, rows, left=2)


def map_of(operator: str) -> tuple[int, int, int, int]:
    if operator in OTHER_MAPS:
        return OTHER_MAPS[operator]
    return next(size for starts, size in MAPS if operator.startswith(starts))


def share(bytes: int, unit: int) -> str:
    if 0 < bytes < 0.005 * unit:
        return "< 0.01"
    return f"{bytes / unit:.2f}" if bytes else ""


def spaced(count: int) -> str:
    return f"{count:,}".replace(",", " ")


def magnitude(count: int) -> str:
    """Formats a count with three digits and a unit: 14 745 600 is 14.7 M."""
    for size, letter in ((10**9, " G"), (10**6, " M"), (10**3, " k")):
        if count >= size:
            return f"{count / size:#.3g}{letter}".replace(". ", " ")
    return str(count) if count else ""


def update(text: str) -> str:
    """`text` with all blocks updated."""
    tables: dict[str, Callable[[str], str]] = {
        "floors": lambda names: floors_table(names.split(",")),
        "cost": lambda name: all_table() if name == "all" else layer_table(name),
    }

    def render(match: re.Match[str]) -> str:
        return f"{match['open']}\n{tables[match['kind']](match['names'])}\n\n{match['close']}"

    return BLOCK.sub(render, text)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.costs", description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing; 1 if out of date")
    options = parser.parse_args(arguments)
    return bring_up_to_date(sorted(PAGES.rglob("*.md")), update, options.check)


if __name__ == "__main__":
    sys.exit(main())
