"""What operators and layers cost, as the pages in docs/ state it: no number is typed there by hand.

    python -m benchmarks.costs            bring docs/ up to date
    python -m benchmarks.costs --check    exit status 1 if a page is not up to date

A page says where a table goes by a pair of comments, between which everything is replaced:

    <!-- floors:strip_pool,strip_add_relu -->     from benchmarks/floors.py, one line an operator
    <!-- /floors -->
    <!-- cost:StripPooling -->                    the layer at its paper's sizes, step by step
    <!-- /cost -->

A layer is run on meta tensors, which have sizes and no values, forward and backward, under a mode
that sees every operator, torch's as well as ours. Each counts as reading its operands once and
writing its results once: the least that it can move. tests/test_docs.py holds this count, for our
own operators, to their floors. The same layer with `benchmarks.peers` in place of its functions
gives the line of plain PyTorch.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import stripctx
from benchmarks import floors, peers
from benchmarks.report import REPOSITORY
from benchmarks.tables import markdown, shape_text

PAGES = REPOSITORY / "docs"
BLOCK = re.compile(
    r"(?P<open><!-- (?P<kind>floors|cost):(?P<names>[\w,]+) -->\n)"
    r".*?(?P<close><!-- /(?P=kind) -->)",
    re.DOTALL,
)

# Where the papers use each operator: N, C, H, W of the map that is the unit of its line.
STRIP_MAP = (4, 512, 60, 60)
PYRAMID_MAP = (2, 2048, 60, 60)
HEIGHT_MAP = (4, 2048, 96, 96)
ENCODING_MAP = (4, 512, 60, 60)
OTHER_MAPS = {"pyramid_add_relu": (4, 256, 60, 60), "pyramid_taps_add": (2, 512, 60, 60)}
MAPS = (
    (("strip", "sigmoid"), STRIP_MAP),
    (("pyramid",), PYRAMID_MAP),
    (("row",), HEIGHT_MAP),
    (("encode", "channel"), ENCODING_MAP),
)

FREE = ("_unsafe_view", "detach", "empty", "new_empty")  # beside what torch itself calls views


@dataclass(frozen=True)
class Case:
    """A layer at its paper's sizes: its arguments, the maps it takes, what the last is called."""

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


@dataclass
class Traffic:
    """Bytes read and written, and multiply-adds of products, by the kind of operator."""

    bytes: dict[str, int] = field(default_factory=dict)
    multiply_adds: dict[str, int] = field(default_factory=dict)

    def add(self, kind: str, bytes: int, multiply_adds: int) -> None:
        self.bytes[kind] = self.bytes.get(kind, 0) + bytes
        self.multiply_adds[kind] = self.multiply_adds.get(kind, 0) + multiply_adds


class Counting(TorchDispatchMode):
    """Adds what every operator moves to `traffic`. Views, and memory not yet written, are free."""

    def __init__(self) -> None:
        super().__init__()
        self.traffic = Traffic()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if not func.is_view and not name.startswith(FREE):
            moved = moved_bytes(args) + moved_bytes(result)
            self.traffic.add(kind_of(func), moved, products(func, args, kwargs or {}, result))
        return result


def kind_of(func: Any) -> str:
    name: str = func.overloadpacket.__name__
    if func.namespace == "stripctx":
        return f"`{name.removesuffix('_backward')}`"
    if func.overloadpacket in flop_registry:
        return "convolutions, products"
    return "norms" if "batch_norm" in name else "additions, activations, copies"


def products(func: Any, args: Any, kwargs: Any, result: Any) -> int:
    """Multiply-adds of convolutions, of products of matrices, and of ours of codewords."""
    if func.overloadpacket in flop_registry:
        count: int = flop_registry[func.overloadpacket](*args, **kwargs, out_val=result) // 2
        return count
    if func.namespace == "stripctx" and func.overloadpacket.__name__ == "encode":
        return floors.floor("encode", floors.Shape(*args[0].shape)).operations // 2
    return 0


def moved_bytes(value: Any) -> int:
    """Of all tensors in nested arguments; an expanded axis lies in memory once."""
    return sum(
        tensor.element_size() * elements(tensor.shape, tensor.stride()) for tensor in flat(value)
    )


def elements(sizes: Iterable[int], strides: Iterable[int]) -> int:
    count = 1
    for size, stride in zip(sizes, strides, strict=True):
        count *= size if stride else 1
    return count


def flat(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from flat(each)


def count(layer: nn.Module, maps: list[Tensor]) -> tuple[Traffic, Traffic]:
    """Forward and backward in training, with gradients of all maps and parameters."""
    wanted = [*maps, *(p for p in layer.parameters() if p.requires_grad)]
    with Counting() as forward:
        results = list(flat(layer(*maps)))
    gradients = [torch.empty_like(each) for each in results]
    with Counting() as backward:
        torch.autograd.grad(results, wanted, gradients, allow_unused=True)
    return forward.traffic, backward.traffic


def layer_table(name: str) -> str:
    """One line a kind of operator, all together, and all together in plain PyTorch."""
    case = CASES[name]
    with torch.device("meta"):
        layer = getattr(stripctx, name)(*case.arguments)
        maps = [torch.empty(size, requires_grad=True) for size in case.sizes]
    forward, backward = count(layer, maps)
    with peers.installed():
        plain_forward, plain_backward = count(layer, maps)
    unit = moved_bytes(maps[-1])
    kinds = sorted(dict.fromkeys([*forward.bytes, *backward.bytes]), key=lambda k: k[0] != "`")
    rows = [
        [
            kind,
            magnitude(forward.multiply_adds.get(kind, 0)),
            share(forward.bytes.get(kind, 0), unit),
            share(backward.bytes.get(kind, 0), unit),
        ]
        for kind in kinds
    ]
    for label, there, back in (
        ("**together**", forward, backward),
        ("the same in plain PyTorch", plain_forward, plain_backward),
    ):
        sums = sum(there.bytes.values()), sum(back.bytes.values())
        products = magnitude(sum(there.multiply_adds.values()))
        rows.append([label, products, *(share(bytes, unit) for bytes in sums)])
    parameters = f"{sum(p.numel() for p in layer.parameters()):,}".replace(",", " ")
    written = f"{name}({', '.join(map(str, case.arguments))})"
    of = " and ".join(shape_text(size) for size in case.sizes)
    return (
        f"`{written}`: {parameters} parameters. For maps of {of}, training, in units of "
        f"`{case.unit}` ({unit / 2**20:.1f} MiB in float32):\n\n"
        + markdown(["", "multiply-adds, forward", "moved forward", "moved backward"], rows, left=1)
    )


def floors_table(names: list[str]) -> str:
    """Forward and backward of each operator, in units of its map."""
    rows = []
    for name in names:
        size = map_of(name)
        shape = floors.Shape(*size)
        for operator in (name, f"{name}_backward"):
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


def magnitude(count: int) -> str:
    """Three digits with a unit: 14 745 600 is 14.7 M."""
    for size, letter in ((10**9, " G"), (10**6, " M"), (10**3, " k")):
        if count >= size:
            return f"{count / size:#.3g}{letter}".replace(". ", " ")
    return str(count) if count else ""


def update(text: str) -> str:
    """`text` with every block made anew."""
    tables: dict[str, Callable[[str], str]] = {
        "floors": lambda names: floors_table(names.split(",")),
        "cost": layer_table,
    }

    def render(match: re.Match[str]) -> str:
        return f"{match['open']}\n{tables[match['kind']](match['names'])}\n\n{match['close']}"

    return BLOCK.sub(render, text)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.costs", description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing; 1 if out of date")
    options = parser.parse_args(arguments)
    stale = 0
    for path in sorted(PAGES.rglob("*.md")):
        text = path.read_text()
        made = update(text)
        if made != text:
            stale = 1
            if options.check:
                print(f"{path.name}: out of date; run python -m benchmarks.costs", file=sys.stderr)
            else:
                path.write_text(made)
                print(f"updated {path.name}")
    return stale if options.check else 0


if __name__ == "__main__":
    sys.exit(main())
