"""Time and peak memory of candidates that compute the same result, for the demo."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

ROUNDS, SECONDS = 30, 2.0


@dataclass
class Measured:
    """Samples of seconds per call and peak bytes, by candidate; why candidates failed."""

    times: dict[str, list[float]] = field(default_factory=dict)
    peaks: dict[str, int] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def median(self, name: str) -> float:
        return statistics.median(self.times[name])

    @property
    def spread(self) -> float:
        """The largest ratio of the 80th to the 20th percentile over the candidates."""
        fifths = [statistics.quantiles(each, n=5) for each in self.times.values()]
        return max(each[3] / each[0] for each in fifths)


def measure(
    candidates: dict[str, Callable[[Tensor], Tensor]],
    x: Tensor,
    parameters: Sequence[Tensor],
    *,
    backward: bool,
) -> Measured:
    """Interleaves the candidates' samples, so that disturbances of the machine affect all equally.
    Skips a candidate that cannot run, such as torch.compile without a compiler."""
    found = Measured()
    calls: dict[str, Callable[[], object]] = {}
    for name, function in candidates.items():
        call = with_gradients(function, x, parameters) if backward else without(function, x)
        try:
            for _ in range(3):
                call()
        except Exception as error:
            found.failures[name] = str(error).strip().partition("\n")[0] or type(error).__name__
            continue
        calls[name] = call
        found.peaks[name] = peak_bytes(call)
        found.times[name] = []
    started = time.perf_counter()
    for number in range(ROUNDS):
        if number >= 5 and time.perf_counter() - started > SECONDS:
            break
        for name, call in calls.items():
            call()  # so that its own data are in the caches
            before = time.perf_counter()
            call()
            found.times[name].append(time.perf_counter() - before)
    return found


def without(function: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], object]:
    def call() -> Tensor:
        with torch.no_grad():
            return function(x)

    return call


def with_gradients(
    function: Callable[[Tensor], Tensor], x: Tensor, parameters: Sequence[Tensor]
) -> Callable[[], object]:
    x = x.detach().requires_grad_()
    grad = torch.ones_like(function(x))
    return lambda: torch.autograd.grad(function(x), [x, *parameters], grad)


def peak_bytes(call: Callable[[], object]) -> int:
    """The peak memory in use in torch's allocator during a call."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = call()
    held = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    del result
    return peak
