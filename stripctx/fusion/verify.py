"""Compares outputs and gradients of a module's own forward with those of the fused one.

Replacements are compared on small random maps in float64, in evaluation and training mode, with
random parameters, since parameters initialised to zero could hide a difference. A network is
compared on the user's example, with its hooks, which may be part of the computation. Modules are
not copied, as some hold locks or queues: parameters and buffers are swapped for the call, and the
state of the random generators is restored. Modules with synchronised norms do not run in training
mode.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from stripctx.fusion.module import Fused, UnknownModuleError, become, generated

_TOLERANCE = 1e-8  # relative, in float64
_OF_DTYPE = {torch.float32: 2e-3, torch.float16: 3e-2, torch.bfloat16: 2e-1}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def try_out(replacement: type[Fused], module: nn.Module) -> None:
    """Raises UnknownModuleError if the forms differ. If the module's own forward fails in training
    mode only, evaluation mode decides."""
    own = type(module)
    cuda = [one.device for one in _state(module) if one.device.type == "cuda"]
    device = cuda[0] if cuda else torch.device("cpu")
    with warnings.catch_warnings(), torch.random.fork_rng(cuda[:1]), _unwatched(module):
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        state = _random_state(module, device)
        examples = [_to(one, device) for one in replacement.examples(module)]
        for training in (False, True):
            if training and any(map(_talks, module.modules())):
                return
            for example in examples:
                with _mode(module, training):
                    expected = _attempt(module, state, example)
                    if isinstance(expected, Exception):
                        if training:
                            continue
                        raise UnknownModuleError(f"its own forward raises {_line(expected)}")
                    try:
                        become(module, generated(replacement, own))
                        result = _attempt(module, state, example)
                    finally:
                        become(module, own)
                if isinstance(result, UnknownModuleError):
                    raise result
                if isinstance(result, Exception):
                    raise UnknownModuleError(f"the fused forward raises {_line(result)}")
                difference = _difference(result, expected)
                if difference:
                    mode = "training" if training else "evaluation"
                    raise UnknownModuleError(f"in {mode} its own forward gives {difference}")


def compare(network: nn.Module, example: tuple[Any, ...], own: Callable[[], Any]) -> str | None:
    """Describes how the network's outputs or gradients on an example differ from those in the
    context `own`; None if they agree. Runs in the network's mode, but in evaluation mode if it has
    synchronised norms."""
    device = next((one.device for one in _state(network)), torch.device("cpu"))
    cuda = [device] if device.type == "cuda" else []
    training = network.training and not any(map(_talks, network.modules()))
    with warnings.catch_warnings(), torch.random.fork_rng(cuda):
        warnings.simplefilter("ignore")
        state = {name: value.detach().clone() for name, value in _named_state(network)}
        with _mode(network, training):
            with own():
                expected = _attempt(network, state, example)
            result = _attempt(network, state, example)
    if isinstance(expected, Exception):
        return f"its own forward raises {_line(expected)}"
    if isinstance(result, Exception):
        return f"the fused forward raises {_line(result)}"
    return _difference(result, expected)


def _attempt(module: nn.Module, state: dict[str, Tensor], example: tuple[Any, ...]) -> Any:
    """The outputs of a call with this state and the gradients of a fixed weighted sum of them, or
    the exception raised."""
    torch.manual_seed(1)
    trained = {name for name, _ in module.named_parameters()}
    values = {name: value.clone() for name, value in state.items()}
    leaves = [v.requires_grad_() for n, v in values.items() if n in trained and _real(v)]
    args = [one.detach().clone() if isinstance(one, Tensor) else one for one in example]
    leaves += [one.requires_grad_() for one in args if isinstance(one, Tensor) and _real(one)]
    try:
        with torch.enable_grad():
            outputs = functional_call(module, values, tuple(args), tie_weights=True)
            flat = [one for one in tensors(outputs) if _real(one)]
            total = sum((one.double() * _weights(one)).sum() for one in flat if one.requires_grad)
            grads: Any = ()
            if isinstance(total, Tensor):
                grads = torch.autograd.grad(total, leaves, allow_unused=True)
    except Exception as error:
        return error
    return [one.detach() for one in flat], grads


def _weights(like: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(like.numel())
    values = torch.rand(like.shape, generator=generator, dtype=torch.float64)
    return values.to(like.device) - 0.4


def _difference(result: Any, expected: Any) -> str | None:
    for what, ours, theirs in zip(("outputs", "gradients"), result, expected, strict=True):
        if len(ours) != len(theirs):
            return f"{len(theirs)} {what}, not {len(ours)}"
        largest = [float(b.abs().max()) for b in theirs if b is not None and b.numel()]
        scale = max((one for one in largest if one < float("inf")), default=0.0)
        for a, b in zip(ours, theirs, strict=True):
            if (a is None) != (b is None) or (a is not None and not _close(a, b, scale)):
                return f"other {what}"
    return None


def _close(a: Tensor, b: Tensor, scale: float) -> bool:
    """Compares relative to the largest of all values: some tensors are zero up to rounding."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    tolerance = _OF_DTYPE.get(a.dtype, _TOLERANCE)
    return torch.allclose(a, b, rtol=tolerance, atol=tolerance * scale, equal_nan=True)


def tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in nested containers, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from tensors(one)
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from tensors(one)


def _random_state(module: nn.Module, device: torch.device) -> dict[str, Tensor]:
    state = {}
    for name, value in _named_state(module):
        if not value.is_floating_point():
            like = torch.zeros(value.shape, dtype=value.dtype, device=device)
            state[name] = like if value.is_meta else value.detach().clone()
            continue
        random = torch.empty(value.shape, dtype=torch.float64, device=device)
        if value.dim() > 1:
            random.normal_(std=max(random[0].numel(), 1) ** -0.5)
        else:
            random.uniform_(0.5, 1.5)  # variances and scales: away from zero
        state[name] = random
    return state


def _named_state(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def _state(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _to(value: Any, device: torch.device) -> Any:
    if isinstance(value, tuple):
        return tuple(_to(one, device) for one in value)
    if isinstance(value, Tensor):
        return value.to(device, torch.float64 if _real(value) else value.dtype)
    return value


def _real(value: Tensor) -> bool:
    return value.is_floating_point()


def _talks(module: nn.Module) -> bool:
    """Whether it is a norm that synchronises with other processes in training."""
    kind = type(module)
    return "Sync" in kind.__name__ or isinstance(module, nn.SyncBatchNorm)


@contextmanager
def _mode(module: nn.Module, training: bool) -> Iterator[None]:
    before = [(one, one.training) for one in module.modules()]
    for one, _ in before:
        one.training = training
    try:
        yield
    finally:
        for one, was in before:
            one.training = was


@contextmanager
def _unwatched(module: nn.Module) -> Iterator[None]:
    """Removes hooks while the block runs."""
    before = [(one, {name: vars(one)[name] for name in _HOOKS}) for one in module.modules()]
    for one, hooks in before:
        for name, value in hooks.items():
            vars(one)[name] = type(value)()
    try:
        yield
    finally:
        for one, hooks in before:
            vars(one).update(hooks)


def _line(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
