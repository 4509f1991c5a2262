"""Strip pooling on the features of a picture: held against the reference, and measured."""

from __future__ import annotations

import copy

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import stripctx
from benchmarks import compare, plots
from stripctx import functional, reference

BOUND = 1e-5  # of max |fused - reference| / max |reference|, float32 against float64
BUSY = 2.0  # times the 20th percentile: where the 80th lies on a machine that others use


def check(console: Console, layer: stripctx.StripPooling, features: Tensor) -> float:
    """The largest relative error of the fused functions and their gradients, on real features."""
    with torch.no_grad():
        rows, cols = functional.strip_pool(features)
        rows, cols = layer.bn1(layer.conv1(rows)), layer.bn2(layer.conv2(cols))
    gate_arguments = [features, rows, cols, layer.conv3.weight, layer.conv3.bias]
    worst = {"forward": 0.0, "gradients": 0.0}
    for fused, plain, arguments in (
        (functional.strip_pool, reference.strip.strip_pool, [features]),
        (functional.strip_gate, reference_gate, gate_arguments),
    ):
        ours = [value.detach().clone().requires_grad_() for value in arguments]
        exact = [value.detach().double().requires_grad_() for value in arguments]
        results = compare.bind(fused, ours, "fwd+bwd")()
        expected = compare.bind(plain, exact, "fwd+bwd")()
        for index, (value, truth) in enumerate(zip(results, expected, strict=True)):
            kind = "gradients" if index >= len(results) - len(arguments) else "forward"
            error = ((value.double() - truth).abs().max() / truth.abs().max()).item()
            worst[kind] = max(worst[kind], error)
    error = max(worst.values())
    verdict = "[green]agrees[/]" if error <= BOUND else "[bold red]DIFFERS[/]"
    console.print(
        f"Fused {verdict} with the reference in float64: at most {worst['forward']:.1e} apart "
        f"forward, {worst['gradients']:.1e} in the gradients (bound {BOUND:.0e})."
    )
    return error


def reference_gate(x: Tensor, rows: Tensor, cols: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    hidden = reference.strip.strip_add_relu(rows, cols)
    return reference.strip.sigmoid_gate(x, torch.nn.functional.conv2d(hidden, weight), bias)


def measure(
    console: Console, layer: stripctx.StripPooling, features: Tensor, with_compile: bool
) -> compare.Comparison:
    """Forward, then forward and backward; prints the table and returns the latter."""
    layer = copy.deepcopy(layer)
    x = features.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    found: dict[str, compare.Comparison] = {}
    with console.status("measuring, compiling the peer"):
        for mode in compare.MODES:
            found[mode] = compare.compare(layer, [x], mode=mode, with_compile=with_compile)
    table = Table(
        title=f"StripPooling on {' x '.join(map(str, x.shape))}, medians", title_justify="left"
    )
    table.add_column("")
    for heading in ("forward", "forward + backward", "peak memory"):
        table.add_column(heading, justify="right")
    last = found["fwd+bwd"]
    for name in last.times:
        times = [
            f"{each.times[name].median * 1e3:.2f} ms"
            for each in found.values()
            if name in each.times
        ]
        peak = last.peaks[name]
        memory = "unknown" if peak is None else f"{peak / 2**20:.1f} MiB"
        table.add_row(plots.LABELS[name], *times, memory)
    console.print(table)
    spread = max(t.p80 / t.p20 for each in found.values() for t in each.times.values())
    if spread > BUSY:
        console.print(f"[yellow]This machine is busy: times vary by a factor of {spread:.1f}.[/]")
    for name, why in last.failures.items():
        console.print(f"{plots.LABELS[name]} is not in the table: {why}")
    return last


@torch.no_grad()
def strongest(layer: stripctx.StripPooling, features: Tensor) -> tuple[np.ndarray, np.ndarray, int]:
    """The channel whose gate varies most: its features, its gate, its number."""
    rows, cols = functional.strip_pool(features)
    gates = functional.strip_gate(
        torch.ones_like(features),
        layer.bn1(layer.conv1(rows)),
        layer.bn2(layer.conv2(cols)),
        layer.conv3.weight,
        layer.conv3.bias,
    )[0]
    channel = int((gates.std((1, 2)) * (features[0].std((1, 2)) > 0)).argmax())
    return features[0, channel].numpy(), gates[channel].numpy(), channel
