"""Compares a function or module of stripctx with its peers on the same arguments.

`compare` binds the candidates fused, eager and compile, checks that their results agree, times them
and the floor in interleaved samples, and measures the peak memory of each.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import measuring, memory, peers
from benchmarks.measuring import Run, tensors

MODES = ("fwd", "fwd+bwd")
CANDIDATES = ("fused", "eager", "compile")

# Bounds of ||a - b|| / ||b|| between a peer, which rounds after every operator, and the fused
# result.
TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.float16: 5e-3,
    torch.bfloat16: 4e-2,
    torch.int64: 0.0,  # except where rounding decides, see below
}
# Rounding can change the sign of a ReLU's argument: a fraction FEW of the results may differ by
# more than FAR times their mean magnitude.
FEW, FAR = 1e-4, 1e-2
# In a module, a gradient then passes in one candidate only.
LOOSER_FOR_MODULES = {
    torch.float64: 1e-6,
    torch.float32: 0.1,
    torch.float16: 0.3,
    torch.bfloat16: 0.3,
}


@dataclass
class Comparison:
    """Seconds and bytes by candidate; the reason for each candidate that failed."""

    times: dict[str, list[float]]
    peaks: dict[str, int | None]
    results: dict[str, int]  # bytes of a call's results, including gradients
    floor: list[float] | None = None
    failures: dict[str, str] = field(default_factory=dict)

    def median(self, name: str) -> float:
        return statistics.median(self.times[name])


def compare(
    function: Callable[..., Any],
    arguments: Sequence[Any],
    *,
    mode: str,
    floor: Callable[[], Run] | None = None,
    with_compile: bool = True,
    with_memory: bool = True,
    device: str = "cpu",
    rounds: int = 50,
    budget: float = 2.0,
) -> Comparison:
    """Measures `function(*arguments)`.

    Args:
        function: one of `stripctx.functional`, or a partial of one, or a module built from them.
        arguments: its arguments. Mode "fwd+bwd" computes gradients of those that require them,
            including tensors in lists.
        mode: "fwd", without autograd, or "fwd+bwd", with gradients of arguments and parameters.
        floor: allocates buffers and returns an operation with the minimum memory traffic or
            arithmetic of the function.
        with_compile: whether to compile the peer, which takes some seconds.
        with_memory: whether to measure peak memory.
        device, rounds, budget: as in `measuring.interleave`.
    """
    if device == "cpu":
        memory.warm_blocks()
    if isinstance(function, nn.Module):
        function.train(mode != "fwd")
    runs: dict[str, Bound] = {}
    failures: dict[str, str] = {}
    expected: list[Tensor] = []
    returned: dict[str, int] = {}
    for name in CANDIDATES if with_compile else CANDIDATES[:2]:
        try:
            run = bind(candidate(function, name), arguments, mode, parameters_of(function))
            outputs = run()
        except Exception as error:
            if name != "compile":
                raise
            failures[name] = reason(error)
            continue
        expected = expected or outputs
        check_agreement(name, outputs, expected, module=isinstance(function, nn.Module))
        returned[name] = run.result_bytes(outputs)
        runs[name] = run
        measuring.warm(run)
    del outputs, expected
    peaks = {
        name: memory.peak_extra_bytes(run, device=device) if with_memory else None
        for name, run in runs.items()
    }
    copies = measuring.rotated(arguments) if device == "cuda" else []
    timed: dict[str, list[Run]] = {name: [run, *map(run.on, copies)] for name, run in runs.items()}
    if floor is not None:
        timed["floor"] = [measuring.warm(floor()) for _ in range(1 + len(copies))]
    times = measuring.interleave(
        {name: measuring.graph(each) if copies else each[0] for name, each in timed.items()},
        device=device,
        rounds=rounds,
        budget=budget,
        calls_a_run=1 + len(copies),
    )
    return Comparison(times, peaks, returned, times.pop("floor", None), failures)


def candidate(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """The candidate of this name for a function."""
    if name == "compile":
        torch.compiler.reset()  # compile for static shapes: one shape at a time
    return {"fused": lambda f: f, "eager": peers.of, "compile": peers.compiled}[name](function)


@dataclass
class Bound:
    """A function bound to its arguments. A call returns the outputs and, if there are upstream
    gradients, then the gradients of the arguments and parameters in use."""

    function: Callable[..., Any]
    arguments: Sequence[Any]
    parameters: Sequence[Tensor] = ()
    upstream: Sequence[Tensor] = ()

    def __post_init__(self) -> None:
        needed = [value for value in tensors(self.arguments) if value.requires_grad]
        self.inputs = [*needed, *self.parameters]

    def __call__(self) -> list[Tensor]:
        if not self.upstream:
            with torch.no_grad():
                return listed(self.function(*self.arguments))
        outputs = listed(self.function(*self.arguments))
        pairs = zip(outputs, self.upstream, strict=True)  # counts do not have a gradient
        ends, upstream = zip(*[pair for pair in pairs if pair[0].requires_grad], strict=True)
        grads = torch.autograd.grad(ends, self.inputs, upstream, allow_unused=True)
        return [*outputs, *(grad for grad in grads if grad is not None)]

    def on(self, arguments: Sequence[Any]) -> Bound:
        """The same function on other arguments, with a copy of the upstream gradients."""
        upstream = [value.clone() for value in self.upstream]
        return Bound(self.function, arguments, self.parameters, upstream)

    def result_bytes(self, results: Sequence[Tensor]) -> int:
        """The bytes of the storages that a call allocates for its results; views of its arguments
        do not count."""
        before = {_storage(value) for value in [*tensors(self.arguments), *self.upstream]}
        return sum(size for _, size in {_storage(value) for value in results} - before)


def bind(
    function: Callable[..., Any],
    arguments: Sequence[Any],
    mode: str,
    parameters: Sequence[Tensor] | None = None,
) -> Bound:
    """Binds a function. In mode "fwd+bwd" it computes gradients of arguments and of parameters, by
    default those of `function` if it is a module."""
    if mode == "fwd":
        return Bound(function, arguments)
    if parameters is None:
        parameters = parameters_of(function)
    upstream = [_like(output) for output in listed(function(*arguments))]
    return Bound(function, arguments, parameters, upstream)


def parameters_of(function: Callable[..., Any]) -> list[Tensor]:
    """The parameters that require a gradient."""
    if not isinstance(function, nn.Module):
        return []
    return [value for value in function.parameters() if value.requires_grad]


def check_agreement(
    name: str, outputs: Sequence[Tensor], expected: Sequence[Tensor], *, module: bool = False
) -> None:
    """Raises AssertionError if the results of a candidate differ. A module's results are compared
    together: some gradients are zero up to rounding, such as that of a bias before a norm."""
    if module:
        error = relative_error(_joined(outputs), _joined(expected))
        if not error <= LOOSER_FOR_MODULES[outputs[0].dtype]:
            raise AssertionError(f"{name}: results differ by {error:.1e}")
        return
    for index, (output, other) in enumerate(zip(outputs, expected, strict=True)):
        error = relative_error(*_but_a_few(output, other))
        if not error <= TOLERANCE[output.dtype]:
            raise AssertionError(f"{name}: result {index} differs by {error:.1e}")


def relative_error(value: Tensor, expected: Tensor) -> float:
    """||value - expected|| / ||expected||, in float64."""
    value, expected = value.detach().double(), expected.detach().double()
    return ((value - expected).norm() / expected.norm().clamp_min(1e-300)).item()


def _but_a_few(value: Tensor, expected: Tensor) -> tuple[Tensor, Tensor]:
    """Both tensors without the outliers permitted by FEW and FAR."""
    far = (value - expected).detach().abs() > FAR * expected.detach().abs().double().mean()
    if 0 < far.sum() <= FEW * far.numel():
        return value[~far], expected[~far]
    return value, expected


def _joined(values: Sequence[Tensor]) -> Tensor:
    return torch.cat([value.detach().double().flatten() for value in values])


def reason(error: BaseException) -> str:
    """The first informative line of an error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _storage(value: Tensor) -> tuple[int, int]:
    """The address and size in bytes of a tensor's storage."""
    storage = value.untyped_storage()
    return storage.data_ptr(), storage.nbytes()


def listed(outputs: Any) -> list[Tensor]:
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)


def _like(output: Tensor) -> Tensor:
    """Normal noise with the output's strides, the same for every candidate."""
    generator = torch.Generator(output.device).manual_seed(0)
    noise = torch.randn(output.shape, generator=generator, device=output.device)
    return torch.empty_like(output).copy_(noise)
