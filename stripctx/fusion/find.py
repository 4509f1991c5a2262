"""Which modules of a network interpolate, and how far promises may travel from them.

A module that interpolates gets a scope, in which F.interpolate gives a promise; every torch
function there costs about a microsecond more, so a backbone's thousand calls should stay outside.
The promise may leave the module, as a pyramid's concatenation or the result of an nn.Upsample does,
for the module that called it; that one is a boundary, which promises do not leave.

What a module's forward does is read from the names in its code and in that of the functions and
methods that it calls; torch's own functions are not followed.
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
_DEPTH = 6  # of functions that are followed
_CALLERS = 2  # a branch interpolates, its pyramid concatenates, the head convolves


def scopes(network: nn.Module) -> dict[str, bool]:
    """The paths of the modules that need a scope, True, or are a boundary only, False."""
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
    """What a module's forward names, and what the functions and methods that it calls name, `depth`
    calls down."""
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
    while pending:  # and the functions that are written inside it
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
    """The first module around one that has a forward of its own, or else the network itself."""
    while path:
        path = path.rpartition(".")[0]
        if not isinstance(modules[path], _CONTAINERS) or not path:
            return path
    return None
