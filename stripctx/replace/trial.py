"""The proof of a recipe: a module and its fused form give the same on small random arguments.

A class's name and its children do not say what its forward does: copies of a published module
differ in align_corners, in the order of a concatenation, in a dropout in between. So a copy of the
module is run both ways, in float64, in evaluation and in training, with random parameters, which an
initial zero cannot hide from. The module itself and the state of the random generators stay
untouched.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from stripctx.replace.fused import Fused, UnknownModuleError, become, generated

_TOLERANCE = 1e-8


def try_out(recipe: type[Fused], module: nn.Module) -> None:
    """Raises UnknownModuleError unless both forms agree. Where the module's own forward raises in
    training alone, evaluation decides."""
    devices = {tensor.device for tensor in _state(module)}
    cuda = [device for device in devices if device.type == "cuda"]
    with torch.no_grad(), warnings.catch_warnings(), torch.random.fork_rng(cuda):
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        twin = _random_copy(module, cuda[0] if cuda else torch.device("cpu"))
        arguments = recipe.examples(twin)
        for training in (False, True):
            twin.train(training)
            for example in arguments:
                _compare(recipe, twin, example)


def _compare(recipe: type[Fused], twin: nn.Module, example: tuple[Any, ...]) -> None:
    own = type(twin)
    try:
        expected = _run(twin, example)
    except Exception as error:
        if twin.training:
            return
        raise UnknownModuleError(f"its own forward raises {_line(error)}") from error
    try:
        become(twin, generated(recipe, own))
        result = _run(twin, example)
    except UnknownModuleError:
        raise
    except Exception as error:
        raise UnknownModuleError(f"the fused forward raises {_line(error)}") from error
    finally:
        become(twin, own)
    if not _same(result, expected):
        mode = "training" if twin.training else "evaluation"
        raise UnknownModuleError(f"in {mode} its own forward gives something else")


def _run(twin: nn.Module, example: tuple[Any, ...]) -> Any:
    torch.manual_seed(1)
    return twin(*(one.clone() if isinstance(one, Tensor) else one for one in example))


def _random_copy(module: nn.Module, device: torch.device) -> nn.Module:
    try:
        twin = copy.deepcopy(module)
        meta = any(tensor.is_meta for tensor in _state(twin))
        if meta:
            twin.to_empty(device=device)
        twin.to(device, torch.float64)
        for value in _state(twin):
            if value.is_floating_point() and value.dim() > 1:
                value.normal_(std=max(value[0].numel(), 1) ** -0.5)
            elif value.is_floating_point():
                value.uniform_(0.5, 1.5)  # variances and factors: nothing vanishes
            elif meta:
                value.zero_()
    except Exception as error:
        raise UnknownModuleError(f"it cannot be copied for a trial: {_line(error)}") from error
    for one in twin.modules():
        one._forward_hooks.clear()
        one._forward_pre_hooks.clear()
        one._backward_hooks.clear()
        one._backward_pre_hooks.clear()
    return twin


def _state(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and torch.allclose(a, b, rtol=_TOLERANCE, atol=_TOLERANCE)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(_same, a, b))
    return a is None and b is None


def _line(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
