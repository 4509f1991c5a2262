"""Times of several candidates that compute the same, in one process.

Candidates take turns, one sample each a round, in an order drawn anew, so that a disturbance of the
machine falls on all of them alike, and what each leaves in the caches on each of the others. A
sample is one run, or as many as make up a millisecond, after some milliseconds of runs that are not
timed, until malloc hands out the same few blocks and the caches hold what they can of them. Every
sample is kept; the median and the 20th and 80th percentile are derived.

The rate of a floor is measured, not looked up: a copy of as many bytes, a product of the same size,
between buffers allocated once, as one more candidate in the same rounds.
"""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

Run = Callable[[], object]

SHORTEST_SAMPLE = 1e-3  # seconds; shorter calls are repeated
WARM_UP = 5e-3  # seconds of calls before each sample, or one call
LONGEST_WARMED = 0.1  # seconds of a call; what the caches hold does not count in longer ones
LEAST_ROUNDS = 5  # whatever the budget
LEAST_LONG_ROUNDS, LONG = 3, 10.0  # where rounds have taken so many seconds


@dataclass(frozen=True)
class Samples:
    """Seconds a call."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def p20(self) -> float:
        return self._fifths()[0]

    @property
    def p80(self) -> float:
        return self._fifths()[3]

    def _fifths(self) -> list[float]:
        if len(self.seconds) == 1:
            return list(self.seconds) * 4
        return statistics.quantiles(self.seconds, n=5, method="inclusive")


def interleave(
    candidates: Mapping[str, Run],
    *,
    device: str = "cpu",
    rounds: int = 50,
    budget: float = 2.0,
    calls_a_run: int = 1,
) -> dict[str, Samples]:
    """Times warm candidates in turn.

    Args:
        candidates: names to callables without arguments, already called once.
        device: "cpu" (perf_counter) or "cuda" (events).
        rounds: how many samples to take of each.
        budget: seconds after which no further round starts, but for LEAST_ROUNDS.
        calls_a_run: how many calls each candidate makes of what is timed.
    """
    clock = {"cpu": _cpu_seconds, "cuda": _cuda_seconds}[device]
    names = list(candidates)
    once = {name: _warm_seconds(clock, candidates[name]) for name in names}
    runs = {name: _runs_in(SHORTEST_SAMPLE, seconds) for name, seconds in once.items()}
    order = random.Random(0)
    taken: dict[str, list[float]] = {name: [] for name in names}
    started = time.perf_counter()
    for number in range(rounds):
        elapsed = time.perf_counter() - started
        least = LEAST_LONG_ROUNDS if elapsed > LONG else LEAST_ROUNDS
        if number >= least and elapsed > budget:
            break
        order.shuffle(names)
        for name in names:
            if once[name] < LONGEST_WARMED:
                clock(candidates[name], _runs_in(WARM_UP, once[name]))
            seconds = clock(candidates[name], runs[name])
            taken[name].append(seconds / (runs[name] * calls_a_run))
    return {name: Samples(tuple(taken[name])) for name in candidates}


def _warm_seconds(clock: Callable[[Run, int], float], run: Run) -> float:
    seconds = clock(run, 1)
    return seconds if seconds > LONGEST_WARMED else min(clock(run, 1) for _ in range(2))


def _runs_in(length: float, seconds: float) -> int:
    return max(1, math.ceil(length / max(seconds, 1e-7)))


def _cpu_seconds(run: Run, calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        run()
    return time.perf_counter() - start


def _cuda_seconds(run: Run, calls: int) -> float:
    """Device time, from before the first kernel to after the last."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    for _ in range(calls):
        run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


# Floors.


def copy_of(size: int, device: str = "cpu") -> Run:
    """A copy that reads and writes `size` bytes together."""
    source = torch.ones(max(1, size // 2), dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    return lambda: target.copy_(source)


def product_of(rows: int, inner: int, columns: int, dtype: torch.dtype, device: str = "cpu") -> Run:
    """A matrix product (rows, inner) by (inner, columns)."""
    left = torch.randn(rows, inner, device=device).to(dtype)
    right = torch.randn(inner, columns, device=device).to(dtype)
    out = torch.empty(rows, columns, dtype=dtype, device=device)
    return lambda: torch.mm(left, right, out=out)
