"""Strip pooling on the features of an image, compared with the reference and timed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import stripctx
from examples import figures
from examples.demonstration import plain
from examples.demonstration.measure import Measured, measure
from stripctx import functional, reference

BOUND = 1e-5  # bound of max |fused - reference| / max |reference|, float32 against float64
BUSY = 2.0  # an 80th percentile over this many times the 20th suggests a busy machine


def check(console: Console, layer: stripctx.StripPooling, features: Tensor) -> float:
    """The largest relative error of the fused functions and their gradients, on these features."""
    with torch.no_grad():
        rows, cols = functional.strip_pool(features)
        rows, cols = layer.bn1(layer.conv1(rows)), layer.bn2(layer.conv2(cols))
    gate_arguments = [features, rows, cols, layer.conv3.weight, layer.conv3.bias]
    worst = {"forward": 0.0, "gradients": 0.0}
    for fused, formula, arguments in (
        (functional.strip_pool, reference.strip.strip_pool, [features]),
        (functional.strip_gate, reference_gate, gate_arguments),
    ):
        ours = [value.detach().clone().requires_grad_() for value in arguments]
        exact = [value.detach().double().requires_grad_() for value in arguments]
        results = with_gradients(fused, ours)
        expected = with_gradients(formula, exact)
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


def with_gradients(function: Callable[..., Any], arguments: Sequence[Tensor]) -> list[Tensor]:
    """The results, and the gradients of the sum of their squares."""
    outputs = function(*arguments)
    outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    total = sum(output.square().sum() for output in outputs)
    return [*outputs, *torch.autograd.grad(total, list(arguments))]


def against_plain(
    console: Console, layer: stripctx.StripPooling, features: Tensor, with_compile: bool
) -> Measured:
    """Times forward, and forward with backward; prints the table and returns the latter."""
    layer = copy.deepcopy(layer)
    eager = partial(plain.strip_pooling, layer)
    candidates: dict[str, Callable[[Tensor], Tensor]] = {"fused": layer, "eager": eager}
    if with_compile:
        candidates["compile"] = torch.compile(eager)
    parameters = list(layer.parameters())
    with console.status("measuring, compiling the peer"):
        layer.eval()
        forward = measure(candidates, features, parameters, backward=False)
        layer.train()
        both = measure(candidates, features, parameters, backward=True)
    shape = " x ".join(map(str, features.shape))
    table = Table(title=f"StripPooling on {shape}, medians", title_justify="left")
    table.add_column("")
    for heading in ("forward", "forward + backward", "peak memory"):
        table.add_column(heading, justify="right")
    for name in both.times:
        times = [f"{each.median(name) * 1e3:.2f} ms" for each in (forward, both)]
        table.add_row(figures.LABELS[name], *times, f"{both.peaks[name] / 2**20:.1f} MiB")
    console.print(table)
    spread = max(forward.spread, both.spread)
    if spread > BUSY:
        console.print(f"[yellow]This machine is busy: times vary by a factor of {spread:.1f}.[/]")
    for name, why in both.failures.items():
        console.print(f"{figures.LABELS[name]} is not in the table: {why}")
    return both


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
