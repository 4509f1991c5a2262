"""Convolutions over upsampled maps, as in decoders: `python -m benchmarks.decoders`.

One row per decoder: `conv2d(cat([x, *interpolated levels]))` in eager PyTorch and compiled, against
`functional.pyramid_conv`, forward without and with the backward pass. Samples are interleaved (see
benchmarks.measuring). `products` are the multiply-adds of either form. `floor` is a lower bound for
every method that convolves the levels at their own resolution: the remaining products in PyTorch's
library, and one copy of the result. Writes benchmarks/results/decoders.json. `--fit` does not
measure: it fits the constants of the cost model in stripctx/fusion/cost.py to that file and prints
them.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import machine, measuring, memory
from benchmarks.report import RESULTS
from stripctx import functional

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@dataclass(frozen=True)
class Decoder:
    """x (images, channels, size, size) and the levels (channels, downsampling factor)."""

    images: int
    channels: int
    size: int
    levels: tuple[tuple[int, int], ...]
    outputs: int
    kernel: int

    def products(self) -> dict[str, int]:
        """Multiply-adds of the convolution of the concatenation, and with convolutions per
        level."""
        of_channel = self.images * self.outputs * self.kernel**2 * self.size**2
        shares = sum(channels / factor**2 for channels, factor in self.levels)
        every = self.channels + sum(channels for channels, _ in self.levels)
        return {"plain": of_channel * every, "fused": round(of_channel * (self.channels + shares))}


DECODERS = {
    "SegFormer-B0": Decoder(2, 256, 128, ((256, 2), (256, 4), (256, 8)), 256, 1),
    "SegFormer-B2": Decoder(1, 768, 64, ((768, 2), (768, 4), (768, 8)), 768, 1),
    "HRNet": Decoder(1, 18, 128, ((144, 2), (144, 4), (144, 8)), 270, 1),
    "UPerNet": Decoder(1, 512, 64, ((512, 2), (512, 4), (512, 8)), 512, 3),
    "DeepLabV3+": Decoder(1, 48, 128, ((256, 4),), 256, 3),
    "U-Net, 64": Decoder(1, 128, 64, ((256, 2),), 128, 3),
    "U-Net, 256": Decoder(1, 64, 256, ((64, 2),), 32, 3),
    "U-Net, narrow": Decoder(1, 16, 256, ((24, 2),), 32, 3),  # just above the cost model's limit
}


def plain(x: Tensor, weight: Tensor, *levels: Tensor) -> Tensor:
    maps = [F.interpolate(level, x.shape[2:], mode="bilinear") for level in levels]
    return F.conv2d(torch.cat([x, *maps], 1), weight, padding=weight.size(2) // 2)


def fused(x: Tensor, weight: Tensor, *levels: Tensor) -> Tensor:
    return functional.pyramid_conv(x, levels, weight, padding=weight.size(2) // 2)


class Floor:
    """The remaining products, with weights in their preferred layout, and a copy of the result. The
    sum of the interpolated products would be the convolution's result."""

    def __init__(self, x: Tensor, weight: Tensor, *levels: Tensor) -> None:
        self.tensors = [x, *levels]
        self.padding = weight.size(2) // 2
        channels = [tensor.size(1) for tensor in self.tensors]
        own, *others = weight.detach().split(channels, 1)
        # Taps are products of a level's cells with the weights of every kernel position.
        taps = [other.permute(2, 3, 0, 1).flatten(0, 2)[:, :, None, None] for other in others]
        self.weights = [one.clone().requires_grad_() for one in (own, *taps)]
        with torch.no_grad():
            self.grads = [torch.randn_like(product) for product in self.products()]
        self.result = torch.empty_like(self.grads[0])

    def products(self) -> list[Tensor]:
        pairs = zip(self.tensors, self.weights, strict=True)
        padding = (self.padding, *(0 for _ in self.tensors[1:]))
        return [F.conv2d(*pair, padding=p) for pair, p in zip(pairs, padding, strict=True)]

    def forward(self) -> None:
        with torch.no_grad():
            self.result.copy_(self.products()[0])

    def both(self) -> None:
        products = self.products()
        self.result.copy_(products[0].detach())
        torch.autograd.grad(products, [*self.tensors, *self.weights], self.grads)
        self.result.copy_(self.grads[0])


def arguments(decoder: Decoder, dtype: str, layout: str) -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    size, channels = decoder.size, [decoder.channels, *(c for c, _ in decoder.levels)]
    shapes = [
        (decoder.images, decoder.channels, size, size),
        (decoder.outputs, sum(channels), decoder.kernel, decoder.kernel),
        *((decoder.images, c, size // factor, size // factor) for c, factor in decoder.levels),
    ]
    return tuple(
        torch.randn(shape)
        .to(DTYPES[dtype])
        .contiguous(memory_format=LAYOUTS[layout])
        .requires_grad_()
        for shape in shapes
    )


def measured(
    decoder: Decoder, dtype: str, layout: str, compiled: bool, budget: float
) -> dict[str, dict[str, list[float]]]:
    """The milliseconds of each candidate, by mode."""
    tensors = arguments(decoder, dtype, layout)
    functions: dict[str, Callable[..., Tensor]] = {"eager": plain, "fused": fused}
    if compiled:
        torch._dynamo.reset()  # so that torch.compile does not use dynamic shapes
        functions["compile"] = torch.compile(plain)
    grad = torch.randn_like(plain(*tensors))

    def forward(function: Callable[..., Tensor]) -> Callable[[], object]:
        def run() -> Tensor:
            with torch.no_grad():
                return function(*tensors)

        return run

    def both(function: Callable[..., Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(function(*tensors), tensors, grad)

    floor = Floor(*tensors)
    found = {}
    for mode, make, least in (
        ("forward", forward, floor.forward),
        ("forward and backward", both, floor.both),
    ):
        runs = {name: make(function) for name, function in functions.items()} | {"floor": least}
        for run in runs.values():
            run()
        samples = measuring.interleave(runs, budget=budget)
        found[mode] = {
            name: [round(seconds * 1e3, 4) for seconds in taken] for name, taken in samples.items()
        }
    return found


Line = tuple[float, float, float]  # products, number of taps or positions, milliseconds


def fit(entries: list[dict[str, Any]], mode: str) -> tuple[float, float]:
    """Fits TAP and MAP of stripctx.fusion.cost: the number of products that take as long as one
    output's tap, and as one position of an interpolated map. Least squares of the logarithms of all
    times, with one common rate of products."""
    taps: list[Line] = []
    maps: list[Line] = []
    for entry in entries:
        positions, levels = entry["images"] * entry["size"] ** 2, entry["levels"]
        ms = {name: statistics.median(taken) for name, taken in entry["ms"][mode].items()}
        of_taps = positions * entry["kernel"] ** 2 * entry["outputs"] * len(levels)
        of_maps = positions * sum(channels for channels, _ in levels)
        taps.append((entry["products"]["fused"], of_taps, ms["fused"]))
        maps.append((entry["products"]["plain"], of_maps, ms["eager"]))

    def misfit(lines: list[Line], rate: float, each: float) -> float:
        return sum(math.log((p + each * n) / rate / ms) ** 2 for p, n, ms in lines)

    best = (math.inf, 0, 0)
    for rate in (4e6 * step for step in range(1, 100)):  # products per millisecond
        tap = min(range(0, 200, 2), key=lambda each: misfit(taps, rate, each))
        map = min(range(0, 2000, 20), key=lambda each: misfit(maps, rate, each))
        best = min(best, (misfit(taps, rate, tap) + misfit(maps, rate, map), tap, map))
    return best[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="*", default=list(DECODERS), choices=list(DECODERS))
    parser.add_argument("--dtype", default="float32", choices=list(DTYPES))
    parser.add_argument("--layout", default="contiguous", choices=list(LAYOUTS))
    parser.add_argument("--budget", type=float, default=2.0, help="seconds per row and mode")
    parser.add_argument("--fit", action="store_true", help="the cost model's constants")
    parser.add_argument("--no-compile", action="store_true")
    options = parser.parse_args()
    path = RESULTS / "decoders.json"
    entries = json.loads(path.read_text())["entries"] if path.exists() else []
    if options.fit:
        usual = [
            one for one in entries if (one["dtype"], one["layout"]) == ("float32", "contiguous")
        ]
        for mode in ("forward", "forward and backward"):
            print(f"{mode}: TAP {{}}, MAP {{}}".format(*fit(usual, mode)))
        return
    memory.warm_blocks()
    for name in options.only:
        decoder = DECODERS[name]
        found = measured(
            decoder, options.dtype, options.layout, not options.no_compile, options.budget
        )
        key = {"decoder": name, "dtype": options.dtype, "layout": options.layout}
        entries = [entry for entry in entries if not key.items() <= entry.items()]
        entries.append({**key, **asdict(decoder), "products": decoder.products(), "ms": found})
        for mode, by_name in found.items():
            medians = {n: sorted(taken)[len(taken) // 2] for n, taken in by_name.items()}
            text = ", ".join(f"{n} {median:.2f}" for n, median in medians.items())
            factor = medians["eager"] / medians["fused"]
            share = medians["floor"] / medians["fused"]
            text += f" ms, {factor:.2f} times eager, {share:.0%} of the floor"
            print(f"{name}, {mode}: {text}", flush=True)
        lines = ",\n  ".join(map(json.dumps, entries))
        facts = json.dumps(machine.describe())
        path.write_text(f'{{"machine": {facts},\n "entries": [\n  {lines}]}}\n')


if __name__ == "__main__":
    main()
