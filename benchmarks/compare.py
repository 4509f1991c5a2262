"""One comparison: a function or a module of stripctx against its peers, on the same arguments.

`compare` binds the candidates fused, eager and compile, holds their results against each other,
times them in turn together with the floor, and measures each one's peak memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import measure, memory, peers
from benchmarks.inputs import tensors

MODES = ("fwd", "fwd+bwd")
CANDIDATES = ("fused", "eager", "compile")

# How far the peers, which round at every step, may lie from the fused result: ||a - b|| / ||b||.
TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.float16: 5e-3,
    torch.bfloat16: 4e-2,
}
# A module's gradients may lie further apart: where rounding takes a rectifier's argument to the
# other side of zero, one gradient passes there and the other does not.
LOOSER_FOR_MODULES = {
    torch.float64: 1e-6,
    torch.float32: 1e-2,
    torch.float16: 0.3,
    torch.bfloat16: 0.3,
}


@dataclass
class Comparison:
    """Seconds and bytes by candidate; what could not run, by candidate and why."""

    times: dict[str, measure.Samples]
    peaks: dict[str, int | None]
    floor: measure.Samples | None = None
    failures: dict[str, str] = field(default_factory=dict)


def compare(
    function: Callable[..., Any],
    arguments: Sequence[Any],
    *,
    mode: str,
    floor: measure.Run | None = None,
    with_compile: bool = True,
    device: str = "cpu",
    rounds: int = 50,
    budget: float = 2.0,
) -> Comparison:
    """Measures `function(*arguments)`.

    Args:
        function: one of `stripctx.functional`, or a partial of one, or a module built from them.
        arguments: its arguments; in mode "fwd+bwd" those that require a gradient get one, tensors
            in lists too.
        mode: "fwd", without autograd, or "fwd+bwd", to the gradients of arguments and parameters.
        floor: does as much memory traffic or arithmetic as the function at least needs.
        with_compile: whether to compile the peer, which takes some seconds.
        device, rounds, budget: as in `measure.interleave`.
    """
    parameters: list[Tensor] = []
    if isinstance(function, nn.Module):
        function.train(mode != "fwd")
        parameters = list(function.parameters())
    runs: dict[str, measure.Run] = {}
    failures: dict[str, str] = {}
    expected: list[Tensor] = []
    for name in CANDIDATES if with_compile else CANDIDATES[:2]:
        try:
            run = bind(candidate(function, name), arguments, mode, parameters)
            outputs = run()
        except Exception as error:
            if name != "compile":
                raise
            failures[name] = reason(error)
            continue
        tolerance = LOOSER_FOR_MODULES if isinstance(function, nn.Module) else TOLERANCE
        check_agreement(name, outputs, expected or outputs, tolerance)
        expected = expected or outputs
        runs[name] = peers.warm(run)
    del outputs, expected
    peaks = {name: memory.peak_extra_bytes(run, device=device) for name, run in runs.items()}
    timed = dict(runs)
    if floor is not None:
        timed["floor"] = peers.warm(floor)
    times = measure.interleave(timed, device=device, rounds=rounds, budget=budget)
    return Comparison(times, peaks, times.pop("floor", None), failures)


def candidate(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """The candidate of this name."""
    if name == "compile":
        torch.compiler.reset()  # static shapes: one function, one shape
    return {"fused": lambda f: f, "eager": peers.of, "compile": peers.compiled}[name](function)


def bind(
    function: Callable[..., Any],
    arguments: Sequence[Any],
    mode: str,
    parameters: Sequence[Tensor] = (),
) -> Callable[[], list[Tensor]]:
    """Closes over the arguments; the result is outputs, in mode "fwd+bwd" followed by gradients."""
    if mode == "fwd":

        def forward() -> list[Tensor]:
            with torch.no_grad():
                return _listed(function(*arguments))

        return forward
    inputs = [value for value in tensors(arguments) if value.requires_grad]
    inputs += parameters
    upstream = [_like(output) for output in _listed(function(*arguments))]

    def forward_backward() -> list[Tensor]:
        outputs = _listed(function(*arguments))
        return [*outputs, *torch.autograd.grad(outputs, inputs, upstream)]

    return forward_backward


def check_agreement(
    name: str,
    outputs: Sequence[Tensor],
    expected: Sequence[Tensor],
    tolerance: dict[torch.dtype, float],
) -> None:
    """Raises AssertionError where a candidate computes something else."""
    for index, (output, other) in enumerate(zip(outputs, expected, strict=True)):
        error = relative_error(output, other)
        if not error <= tolerance[output.dtype]:
            raise AssertionError(f"{name}: result {index} differs by {error:.1e}")


def relative_error(value: Tensor, expected: Tensor) -> float:
    """||value - expected|| / ||expected||, in float64."""
    value, expected = value.detach().double(), expected.detach().double()
    return ((value - expected).norm() / expected.norm().clamp_min(1e-300)).item()


def reason(error: Exception) -> str:
    """The first line of an error that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _listed(outputs: Any) -> list[Tensor]:
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)


def _like(output: Tensor) -> Tensor:
    """Normal noise, the same for every candidate, in the output's strides."""
    noise = torch.randn(output.shape, generator=torch.Generator().manual_seed(0))
    return torch.empty_like(output).copy_(noise)
