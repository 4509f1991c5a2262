"""Checks for every operator on every backend; the cases are listed in the families' test files.

A case consists of a public function, an independent implementation of it, and a function that
creates arguments. STRIPCTX_TEST_DEVICE selects the device (default cpu), STRIPCTX_BACKEND the
kernels.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from stripctx import extension
from stripctx.layout import is_channels_last

DEVICE = torch.device(os.environ.get("STRIPCTX_TEST_DEVICE", "cpu"))
EMULATED = extension.backend() == "emulated"
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
FORMATS = ("contiguous", "channels_last")
ODD_LAYOUTS = ("sliced", "sliced_channels_last", "transposed", "expanded")
LAYOUTS = (*FORMATS, *ODD_LAYOUTS)

# Odd sizes, sizes of one, sizes just off a vector or a tile, and empty tensors.
SHAPES = (
    (2, 3, 5, 7),
    (1, 1, 1, 1),
    (2, 5, 1, 9),
    (2, 5, 9, 1),
    (2, 17, 1, 1),
    (1, 64, 12, 20),
    (1, 70, 9, 13),
    (3, 16, 8, 16),
    (1, 3, 5, 301),
    (1, 3, 2100, 3),
    (0, 3, 4, 5),
    (2, 0, 4, 5),
)

Shape = tuple[int, int, int, int]
Arguments = tuple[Tensor, ...]


@dataclass(frozen=True)
class Case:
    """One public function. `plain` computes it with torch's own modules in any dtype.

    `rounds_as_plain`: the formula itself rounds in float32 (coordinates, for instance), so errors
    are compared with those of plain PyTorch in float32 too.
    `cancels`: a factor on the tolerance where results cancel; up to twice plain PyTorch's error is
    accepted as well.
    """

    name: str
    function: Callable[..., Any]
    plain: Callable[..., Any]
    sizes: Callable[[Shape], Sequence[tuple[int, ...]]]
    rounds_as_plain: bool = False
    cancels: float = 1

    def arguments(self, shape: Shape, dtype: torch.dtype, layout: str = "contiguous") -> Arguments:
        return tuple(make(size, dtype, layout) for size in self.sizes(shape))

    def __str__(self) -> str:
        return self.name


def make(size: tuple[int, ...], dtype: torch.dtype, layout: str) -> Tensor:
    """Standard normal values in the given layout; vectors are contiguous or sliced."""
    values = torch.randn(size, dtype=torch.float64)
    if len(size) != 4:
        return values.to(DEVICE, dtype)
    if layout == "expanded":
        values = values[:1, :, :, :1].expand(size)
        return values[:1, :, :, :1].to(DEVICE, dtype).expand(size)
    values = values.to(DEVICE, dtype)
    batch, channels, height, width = size
    if layout == "channels_last":
        return values.contiguous(memory_format=torch.channels_last)
    if layout == "transposed":
        return values.transpose(2, 3).contiguous().transpose(2, 3)
    if layout in ("sliced", "sliced_channels_last"):
        format = torch.contiguous_format if layout == "sliced" else torch.channels_last
        wider = torch.zeros(
            (batch, channels + 3, height + 1, width + 2),
            dtype=dtype,
            device=DEVICE,
        ).contiguous(memory_format=format)
        view = wider[:, 1 : channels + 1, 1:, 1 : width + 1]
        view.copy_(values)
        return view
    return values


def tuple_of(value: Any) -> tuple[Tensor, ...]:
    return (value,) if isinstance(value, Tensor) else tuple(value)


def relative_error(value: Tensor, expected: Tensor) -> float:
    """The norm of the difference over the norm of `expected`; infinite if NaNs do not match."""
    value, expected = value.detach().double().cpu(), expected.detach().double().cpu()
    assert value.shape == expected.shape
    if not torch.equal(value.isnan(), expected.isnan()):
        return float("inf")
    same = (value == expected) | value.isnan()
    difference = torch.where(same, 0.0, value - expected)
    scale = torch.where(expected.isfinite(), expected, 0.0).norm().item()
    return difference.norm().item() / max(scale, 1e-30) if difference.any() else 0.0


def bits(value: Tensor) -> Tensor:
    """The bits as integers, which distinguish -0 from 0 and NaNs from each other."""
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return value.detach().contiguous().view(integers[value.element_size()])


def run(function: Callable[..., Any], arguments: Arguments, grads: Arguments) -> Arguments:
    """The outputs of `function` and the gradients of its arguments for upstream gradients
    `grads`."""
    leaves = tuple(argument.detach().requires_grad_() for argument in arguments)
    outputs = tuple_of(function(*leaves))
    weights = tuple(g.to(o.dtype) for g, o in zip(grads, outputs, strict=True))
    gradients = torch.autograd.grad(outputs, leaves, weights)
    return (*outputs, *gradients)


def output_grads(case: Case, arguments: Arguments) -> Arguments:
    with torch.no_grad():
        outputs = tuple_of(case.plain(*(a.double() for a in arguments)))
    return tuple(torch.randn(o.shape, dtype=torch.float64).to(DEVICE) for o in outputs)


TOLERANCE = {
    torch.float64: 1e-13,
    torch.float32: 1e-6,
    torch.float16: 6e-4,
    torch.bfloat16: 5e-3,
}


def check_float64(case: Case, shape: Shape, dtype: torch.dtype, layout: str) -> None:
    """Outputs and gradients agree with float64 within the dtype's tolerance; in half types the
    error may be at most twice that of plain PyTorch in the same dtype."""
    arguments = case.arguments(shape, dtype, layout)
    grads = tuple(g.to(dtype) for g in output_grads(case, arguments))
    wide = tuple(a.double() for a in arguments), tuple(g.double() for g in grads)
    expected = run(case.plain, *wide)
    values = run(case.function, arguments, grads)
    plain = run(case.plain, arguments, grads)
    for i, (value, want, other) in enumerate(zip(values, expected, plain, strict=True)):
        assert value.dtype == dtype
        bound = max(case.cancels * TOLERANCE[dtype], 2 * relative_error(other, want))
        if dtype is torch.float32 and case.cancels == 1:
            bound = max(2 * bound, 2e-6) if case.rounds_as_plain else TOLERANCE[dtype]
        error = relative_error(value, want)
        assert error <= bound, f"result {i}: relative error {error:.2e} above {bound:.2e}"


def check_format(case: Case, shape: Shape, dtype: torch.dtype) -> None:
    """Results of channels_last arguments are channels_last, those of contiguous ones contiguous.
    Outputs are dense; a gradient may be a view, such as that of a concatenation."""
    for layout in FORMATS:
        format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
        arguments = case.arguments(shape, dtype, layout)
        with torch.no_grad():
            outputs = tuple_of(case.function(*arguments))
        grads = tuple(torch.randn_like(output) for output in outputs)
        for i, value in enumerate(run(case.function, arguments, grads)):
            if value.dim() != 4 or value.size(0) != shape[0] or value.shape[2:] == (1, 1):
                continue  # a parameter, or a map for which both formats coincide
            assert is_channels_last(value) == (layout == "channels_last")
            assert i >= len(outputs) or value.is_contiguous(memory_format=format)


def check_mixed_layouts(case: Case, shape: Shape) -> None:
    """Arguments and gradients of different layouts give the same results as those of one layout."""
    arguments = case.arguments(shape, torch.float32, "channels_last")
    plain = tuple(a.contiguous() for a in arguments)
    grads = output_grads(case, plain)
    expected = run(case.function, plain, grads)
    for which in range(len(arguments)):
        mixed = (*plain[:which], arguments[which], *plain[which + 1 :])
        for a, b in zip(run(case.function, mixed, grads), expected, strict=True):
            assert relative_error(a, b) < 1e-6


def check_gradients(case: Case, shape: Shape) -> None:
    """First and second derivatives agree with finite differences; first derivatives in both
    layouts."""
    for layout in ("contiguous", "channels_last"):
        arguments = tuple(
            a.detach().requires_grad_() for a in case.arguments(shape, torch.float64, layout)
        )
        assert gradcheck(case.function, arguments, fast_mode=EMULATED)
    assert gradgradcheck(case.function, arguments, fast_mode=EMULATED)


def check_bits(case: Case, shape: Shape, dtype: torch.dtype, layout: str) -> None:
    """Results are bitwise reproducible, with or without deterministic mode, and in the project's
    own kernels for any number of threads."""
    arguments = case.arguments(shape, dtype, layout)
    grads = output_grads(case, arguments)
    first = run(case.function, arguments, grads)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3, threads):
            if extension.backend() != "reference":
                torch.set_num_threads(count)
            torch.use_deterministic_algorithms(count == 2)
            for a, b in zip(first, run(case.function, arguments, grads), strict=True):
                assert torch.equal(bits(a), bits(b))
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(False)


def check_nonfinite(case: Case, shape: Shape, layout: str) -> None:
    """NaN and infinities propagate exactly as in plain PyTorch; finite values agree."""
    for bad in (float("nan"), float("inf"), float("-inf")):
        for which in range(len(case.sizes(shape))):
            arguments = case.arguments(shape, torch.float32, layout)
            spoiled = arguments[which].clone(memory_format=torch.preserve_format)
            spoiled[(0,) * spoiled.dim()] = bad
            arguments = (*arguments[:which], spoiled, *arguments[which + 1 :])
            values = tuple_of(case.function(*arguments))
            for value, want in zip(values, tuple_of(case.plain(*arguments)), strict=True):
                assert relative_error(value, want) <= 1e-5 * case.cancels  # otherwise infinite


def check_compile(case: Case, shape: Shape, layout: str, exact: bool = True) -> None:
    """torch.compile captures it as one graph, with dynamic shapes, forward and backward. Results
    are bitwise equal, or equal up to rounding where a library may reorder its products."""
    torch._dynamo.reset()
    compiled = torch.compile(case.function, fullgraph=True, dynamic=True, backend="aot_eager")
    for factor in (1, 2):
        larger = (shape[0] * factor, shape[1], shape[2] + factor, shape[3])
        arguments = case.arguments(larger, torch.float32, layout)
        grads = tuple(
            torch.empty_like(output).copy_(grad)  # with the strides of compiled code
            for output, grad in zip(
                tuple_of(case.function(*arguments)), output_grads(case, arguments), strict=True
            )
        )
        for a, b in zip(
            run(compiled, arguments, grads), run(case.function, arguments, grads), strict=True
        ):
            assert a.stride() == b.stride()
            if exact:
                assert torch.equal(a, b)
            else:
                torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def check_export(case: Case, shape: Shape) -> None:
    class Module(torch.nn.Module):
        def forward(self, *arguments: Tensor) -> Any:
            return case.function(*arguments)

    arguments = case.arguments(shape, torch.float32)
    exported = torch.export.export(Module(), arguments).module()
    for a, b in zip(
        tuple_of(exported(*arguments)), tuple_of(case.function(*arguments)), strict=True
    ):
        assert torch.equal(a, b)


def check_vmap(case: Case, shape: Shape) -> None:
    """vmap over all arguments, or only the first, equals a loop, also after backward."""
    batches = [case.arguments(shape, torch.float32) for _ in range(3)]
    stacked = tuple(torch.stack(group).requires_grad_() for group in zip(*batches, strict=True))
    for in_dims in [(0,) * len(stacked), (0, *(None,) * (len(stacked) - 1))]:
        inputs = tuple(
            a if d == 0 else a[0].detach() for a, d in zip(stacked, in_dims, strict=True)
        )
        mapped = tuple_of(torch.vmap(case.function, in_dims)(*inputs))
        looped = []
        for i in range(3):
            one = (a[i] if d == 0 else a for a, d in zip(inputs, in_dims, strict=True))
            looped.append(tuple_of(case.function(*one)))
        expected = tuple(torch.stack(group) for group in zip(*looped, strict=True))
        for a, b in zip(mapped, expected, strict=True):
            torch.testing.assert_close(a, b)
        gradient = torch.autograd.grad(sum(o.square().sum() for o in mapped), stacked[0])
        want = torch.autograd.grad(sum(o.square().sum() for o in expected), stacked[0])
        torch.testing.assert_close(gradient, want)


def check_refusals_of_forward_mode(case: Case, shape: Shape) -> None:
    import torch.autograd.forward_ad as forward_ad

    arguments = case.arguments(shape, torch.float32)
    transforms: list[Callable[[], Any]] = [
        lambda: torch.func.grad(lambda *a: tuple_of(case.function(*a))[0].sum())(*arguments),
        lambda: torch.func.jvp(case.function, arguments, arguments),
        lambda: torch.func.jacrev(case.function)(*arguments),
    ]
    for transform in transforms:
        raises(NotImplementedError, "not supported", transform)
    with forward_ad.dual_level():
        duals = tuple(forward_ad.make_dual(a, a) for a in arguments)
        raises(NotImplementedError, "forward-mode", lambda: case.function(*duals))


def raises(kind: type[Exception], words: str, call: Callable[[], Any]) -> None:
    try:
        call()
    except kind as error:
        assert words in str(error), str(error)
    else:
        raise AssertionError(f"expected {kind.__name__}: {words}")


def check_cuda_graph(case: Case, shape: Shape, layout: str) -> None:
    """Forward and backward can be captured in a CUDA graph and replayed on new values."""
    arguments = case.arguments(shape, torch.float32, layout)
    grads = output_grads(case, arguments)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            run(case.function, arguments, grads)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        captured = run(case.function, arguments, grads)
    for argument in arguments:
        argument.copy_(torch.randn_like(argument))
    graph.replay()
    torch.cuda.synchronize()
    for a, b in zip(captured, run(case.function, arguments, grads), strict=True):
        assert torch.equal(a, b)
