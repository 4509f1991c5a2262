"""Registration: `define` turns a family's functions into an operator of `torch.ops.stripctx`.

Operators exist even if nothing was compiled. The reference is the default kernel on every device;
loading the extension adds native kernels for CPU and CUDA. Autograd, autocast, vmap and the fake
kernel are the same for both.

Arguments are checked here, before any kernel runs. Native kernels repeat only the checks needed for
memory safety, for calls that bypass Autograd (tensors created in inference mode).

Schemas (schemas.py) have no default values: the dispatcher drops arguments that equal them.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from stripctx import _compat
from stripctx.ops.schemas import LIBRARY, declare

FAKES: dict[Any, Callable[..., Any]] = {}  # fake kernel by operator

Kernel = Callable[..., Any]


def define(
    name: str,
    *,
    check: Callable[..., None],
    reference: Kernel,
    fake: Kernel,
    setup_context: Callable[[Any, tuple[Any, ...], Any], None],
    backward: Callable[..., Any],
    vmap: Callable[[Kernel], Kernel],
    autocast: Callable[..., Sequence[Any]] | None = None,
) -> None:
    """Defines `stripctx::<name>` with its schema from csrc/<family>/schemas.hpp.

    Args:
        name: of the operator.
        check: raises ValueError, with a message for users, for invalid arguments.
        reference: plain PyTorch with explicit formulas; runs below autograd.
        fake: allocates results with the shapes, dtypes and strides of the real ones.
        setup_context, backward: the autograd formula, as in `torch.library.register_autograd`.
        vmap: maps the operator to its batching rule, as in `torch.library.register_vmap`.
        autocast: maps the arguments to those used under autocast; None leaves them unchanged.
    """
    operator = declare(name)

    def checked(kernel: Kernel) -> Kernel:
        def run(*args: Any) -> Any:
            check(*args)
            return kernel(*args)

        return run

    def traced(*args: Any) -> Any:
        _compat.inductor_calls(operator)
        check(*args)
        return fake(*args)

    LIBRARY.impl(name, checked(reference), "CompositeExplicitAutograd")
    FAKES[operator] = traced
    torch.library.register_fake(f"stripctx::{name}", FAKES[operator], lib=LIBRARY)
    autograd = _autograd_kernel(name, operator, check, setup_context, backward)
    LIBRARY.impl(name, autograd, "Autograd", with_keyset=True)
    rule = vmap(operator)
    LIBRARY.impl(name, _vmap_kernel(operator, rule), "FuncTorchBatched", with_keyset=True)
    LIBRARY.impl(name, lambda *args: _compat.call_batched_gradients(rule, args), "Batched")
    if autocast is not None:
        for key in ("AutocastCPU", "AutocastCUDA"):
            LIBRARY.impl(name, _autocast_kernel(operator, autocast, key), key)


def save_inputs(ctx: Any, inputs: tuple[Tensor, ...], output: Any) -> None:
    """The `setup_context` of an operator whose backward pass needs all its arguments, which are
    tensors."""
    ctx.save_for_backward(*inputs)


def _autograd_kernel(
    name: str,
    operator: Any,
    check: Callable[..., None],
    setup_context: Callable[[Any, tuple[Any, ...], Any], None],
    backward: Callable[..., Any],
) -> Kernel:
    """Like `torch.library.register_autograd`, with half the overhead per call. Refuses forward-mode
    differentiation, which register_autograd would silently ignore.

    `torch.autograd.Function` does not find tensors inside lists, so lists are flattened for the
    call and restored inside.
    """

    class Differentiable(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, keyset: Any, lengths: tuple[int, ...], *flat: Any) -> Any:
            args = _gather(flat, lengths)
            output = _compat.redispatch_below_autograd(operator, keyset, args)
            setup_context(ctx, args, output)
            return tuple(output) if isinstance(output, list) else output

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Any:
            return None, None, *_lay_flat(backward(ctx, *grads))[0]

    function: Any = types.new_class(name, (Differentiable,))  # also the name of the backward node
    returns_list = any(str(r.type) == "List[Tensor]" for r in operator._schema.returns)

    def kernel(keyset: Any, *args: Any) -> Any:
        check(*args)
        flat, lengths = _lay_flat(args)
        _refuse_forward_mode(name, flat)
        if torch.is_grad_enabled() and _compat.any_requires_grad(flat):
            output = function.apply(keyset, lengths, *flat)
            return list(output) if returns_list else output
        return _compat.redispatch_below_autograd(operator, keyset, args)

    return kernel


def _lay_flat(args: Sequence[Any]) -> tuple[tuple[Any, ...], tuple[int, ...]]:
    """The arguments with lists of tensors flattened, and the length of each: -1 if not a list."""
    flat: list[Any] = []
    lengths: list[int] = []
    for arg in args:
        opens = isinstance(arg, (list, tuple)) and all(_is_gradient(item) for item in arg)
        flat += arg if opens else [arg]
        lengths.append(len(arg) if opens else -1)
    return tuple(flat), tuple(lengths)


def _is_gradient(item: Any) -> bool:
    return item is None or isinstance(item, Tensor)


def _gather(flat: Sequence[Any], lengths: tuple[int, ...]) -> tuple[Any, ...]:
    items = iter(flat)
    return tuple(
        next(items) if length < 0 else [next(items) for _ in range(length)] for length in lengths
    )


def _refuse_forward_mode(name: str, args: tuple[Any, ...]) -> None:
    """Kernels see values only: without this check, tangents would be lost silently."""
    if _compat.functorch_is_active():
        raise NotImplementedError(
            f"{name}: torch.func.grad, jvp, jacrev and their kin are not supported; "
            "use Tensor.backward or torch.autograd.grad"
        )
    if any(map(_compat.has_tangent, args)):
        raise NotImplementedError(
            f"{name}: forward-mode differentiation is not supported; use reverse mode"
        )


def _vmap_kernel(operator: Any, rule: Kernel) -> Kernel:
    def kernel(keyset: Any, *args: Any) -> Any:
        return _compat.call_batched(rule, operator, args)

    return kernel


def _autocast_kernel(operator: Any, cast: Callable[..., Sequence[Any]], key: str) -> Kernel:
    def kernel(*args: Any) -> Any:
        with _compat.without_dispatch_key(key):
            return operator(*cast(*args))

    return kernel
