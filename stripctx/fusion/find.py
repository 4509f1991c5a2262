"""Finds the modules of a network that interpolate, and their callers.

A module that interpolates becomes a Scope, in which F.interpolate returns a lazy tensor. Every
function of torch called in a scope costs about a microsecond more, so backbones should stay
outside. A lazy tensor may be returned to the calling module (the result of an nn.Upsample, or the
concatenation of a pyramid module); that caller becomes a Boundary, which returns tensors.

Whether a forward interpolates is decided by the names in its code and in the functions and methods
it calls. Functions of torch are not followed.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterator
from typing import Any

from torch import nn

UPSAMPLERS = (nn.Upsample, nn.UpsamplingBilinear2d, nn.UpsamplingNearest2d)
_INTERPOLATES = frozenset({"interpolate", "upsample", "upsample_bilinear", "upsample_nearest"})
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_DEPTH = 6  # of nested calls that are followed
_CALLERS = 2  # e.g. a branch interpolates, its parent concatenates, the head convolves


def scopes(network: nn.Module) -> dict[str, bool]:
    """Maps module paths to True (becomes a Scope) or False (becomes a Boundary)."""
    modules = dict(network.named_modules())
    found: dict[str, bool] = {}
    for path, module in modules.items():
        if isinstance(module, UPSAMPLERS) or (
            not _is_torchs(type(module)) and names(module) & _INTERPOLATES
        ):
            found[path] = True
    for path in list(found):
        caller = _caller(modules, path)
        for _ in range(_CALLERS):
            if caller is not None:
                found.setdefault(caller, False)
                caller = _caller(modules, caller)
    return found


def names(module: nn.Module, depth: int = _DEPTH) -> frozenset[str]:
    """The names used in a module's forward and in the functions and methods it calls, up to `depth`
    nested calls."""
    found: set[str] = set()
    forward = getattr(type(module), "forward", None)
    for code in _codes(forward, type(module), depth, set()):
        found.update(code.co_names)
    return frozenset(found)


def _codes(function: Any, kind: type, depth: int, seen: set[Any]) -> Iterator[types.CodeType]:
    function = inspect.unwrap(function) if callable(function) else function
    code = getattr(function, "__code__", None)
    if code is None or code in seen or depth == 0 or _is_torchs(function):
        return
    seen.add(code)
    pending = [code]
    while pending:  # nested functions included
        inner = pending.pop()
        yield inner
        pending += [one for one in inner.co_consts if isinstance(one, types.CodeType)]
        for name in inner.co_names:
            called = function.__globals__.get(name, getattr(kind, name, None))
            if isinstance(called, types.FunctionType):
                yield from _codes(called, kind, depth - 1, seen)


def _is_torchs(what: Any) -> bool:
    module = getattr(what, "__module__", None) or ""
    return module == "torch" or module.startswith(("torch.", "stripctx."))


def _caller(modules: dict[str, nn.Module], path: str) -> str | None:
    """The closest parent with a forward, or the network itself."""
    while path:
        path = path.rpartition(".")[0]
        if not isinstance(modules[path], _CONTAINERS) or not path:
            return path
    return None
