"""`fuse`, `unfuse` and `fusing`: networks from other packages, computing with stripctx's functions.

Inside a module that interpolates (found by `find`, run by `scope`), F.interpolate returns a lazy
tensor (`lazy`, `lazy_maps`). A convolution, sum, product or loss that receives it (`consumers`,
`labels`) uses the small map if that is cheaper (`cost`). Context modules without interpolation have
replacements by class name (`strip`, `height`, `encoding`), which are compared with the original
before they are used (`verify`). Of a replaced module only its class changes (`module`).

The package is called fusion because `stripctx.fuse` is the function.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from stripctx.fusion import cost, find, verify
from stripctx.fusion.encoding import EncodingEncModule, EncodingReplacement, MmsegEncModule
from stripctx.fusion.height import HANetReplacement
from stripctx.fusion.module import (
    Boundary,
    Fused,
    Scope,
    UnknownModuleError,
    become,
    check_names,
    generated,
)
from stripctx.fusion.report import Left, Replaced, Report
from stripctx.fusion.scope import fusing
from stripctx.fusion.strip import SPBlockReplacement, StripPoolingReplacement

__all__ = ["Left", "Replaced", "Report", "fuse", "fusing", "unfuse"]

_REPLACEMENTS: tuple[type[Fused], ...] = (
    SPBlockReplacement,
    StripPoolingReplacement,
    HANetReplacement,
    EncodingReplacement,
    EncodingEncModule,
    MmsegEncModule,
)


def fuse(network: nn.Module, *example: Any) -> Report:
    """Makes a network compute with stripctx's functions, in place.

    A convolution over a concatenation with interpolated maps becomes `pyramid_conv`, a sum with
    them `pyramid_add` or `pyramid_add_relu`, and a loss or label map of interpolated logits its
    `upsample_` form, where a cost model expects this to be faster. Context modules of SPNet, HANet,
    PyTorch-Encoding and mmseg are recognised by class name and structure; the replacement must
    agree with the original on random inputs.

    The module objects stay, with their Parameters, state_dict keys, buffers, hooks, dtype, device,
    mode and requires_grad, so existing optimisers and checkpoints keep working. Results agree up to
    rounding. deepcopy, pickle (where stripctx can be imported), DDP, torch.compile and torch.export
    work as before.

    While any submodule has a hook, a module runs its original forward, so hooks see tensors.

    Args:
        network: any module.
        example: arguments of its forward. If given, the network runs on them before and after;
            outputs and gradients are compared, and if they differ by more than rounding, everything
            is undone. Modules in which nothing could be replaced are restored. The network's state
            does not change.

    Returns:
        What was replaced, and what was left and why. Prints one line per module and, with an
        example, one per convolution.

    Examples:
        >>> from stripctx import models
        >>> print(fuse(models.fcn(3, "resnet18")))  # already uses stripctx
        nothing to replace
    """
    replaced: list[Replaced] = []
    left: list[Left] = []
    modules = [(path, one) for path, one in network.named_modules() if not _is_ours(type(one))]
    for path, module in modules:
        replacements = [one for one in _REPLACEMENTS if _named(module, one)]
        if isinstance(module, Fused):
            left.append(Left(path, type(module).__name__, "it is already fused"))
        elif replacements:
            _apply(replacements, path, module, replaced, left)
    for path, module, kind in _scopes(network):
        _apply([kind], path, module, replaced, left)
    convolutions: tuple[cost.Convolution, ...] = ()
    if example:
        convolutions = _try(network, example, replaced, left)
    return Report(tuple(replaced), tuple(left), convolutions)


def unfuse(network: nn.Module) -> list[str]:
    """Undoes `fuse`, in place: every module runs its original forward again.

    Args:
        network: the network given to `fuse`, a submodule, or a copy.

    Returns:
        The paths of the modules that were fused.

    Examples:
        >>> from torch import nn
        >>> unfuse(nn.Conv2d(3, 8, 3))  # was not fused
        []
    """
    fused = [(path, one) for path, one in network.named_modules() if isinstance(one, Fused)]
    for _, module in fused:
        become(module, module.own)
    return [path for path, _ in fused]


def _scopes(network: nn.Module) -> list[tuple[str, nn.Module, type[Scope]]]:
    """The modules that become a Scope or a Boundary: those that interpolate, their callers, and the
    callers of a fused gate. Submodules of a replaced module are excluded."""
    found = find.scopes(network)
    modules = dict(network.named_modules())
    for path, module in modules.items():
        if isinstance(module, SPBlockReplacement) and path:
            found.setdefault(path.rpartition(".")[0], False)
    known = [path for path, one in modules.items() if isinstance(one, Fused)]
    replacements = [path for path in known if not isinstance(modules[path], Scope)]
    return [
        (path, modules[path], Scope if catches else Boundary)
        for path, catches in found.items()
        if path not in known and not any(f"{path}.".startswith(f"{one}.") for one in replacements)
    ]


def _apply(
    replacements: Iterable[type[Fused]],
    path: str,
    module: nn.Module,
    replaced: list[Replaced],
    left: list[Left],
) -> None:
    """Applies the first replacement that accepts the module, or records why none does."""
    reasons = []
    for replacement in replacements:
        name = type(module).__name__
        try:
            if "forward" in vars(module):
                raise UnknownModuleError("it has a forward of its own, set on the object")
            replacement.check(module)
            check_names(replacement, module)
            if not issubclass(replacement, Scope):  # a scope still runs the module's own forward
                verify.try_out(replacement, module)
            become(module, generated(replacement, type(module)))
        except UnknownModuleError as reason:
            general = issubclass(replacement, Scope)
            reasons.append(str(reason) if general else f"as {replacement.upstream}'s, {reason}")
        else:
            known = name if issubclass(replacement, Scope) else f"{name} ({replacement.upstream})"
            replaced.append(Replaced(path, known, replacement.functions))
            return
    left.append(Left(path, type(module).__name__, "; ".join(reasons)))


def _try(
    network: nn.Module, example: tuple[Any, ...], replaced: list[Replaced], left: list[Left]
) -> tuple[cost.Convolution, ...]:
    """Compares the network before and after on an example. Undoes everything if they differ, and
    otherwise the scopes in which nothing was replaced."""

    @contextmanager
    def own() -> Iterator[None]:
        fused = [(one, type(one)) for one in network.modules() if isinstance(one, Fused)]
        for module, _ in fused:
            become(module, module.own)
        try:
            yield
        finally:
            for module, kind in fused:
                become(module, kind)

    with cost.recording(network) as recorder:
        difference = verify.compare(network, example, own)
    if difference:
        for one in replaced:
            module: Any = network.get_submodule(one.path)
            become(module, module.own)
            left.append(Left(one.path, type(module).__name__, f"on the example, {difference}"))
        replaced.clear()
        return ()
    for one in list(replaced):
        module = network.get_submodule(one.path)
        if isinstance(module, Scope) and not recorder.met(one.path):
            become(module, module.own)
            replaced.remove(one)
            why = "no interpolated map reached a convolution, sum or loss"
            left.append(Left(one.path, type(module).__name__, why))
    return tuple(recorder.convolutions)


def _named(module: nn.Module, replacement: type[Fused]) -> bool:
    """Whether the module's class or one of its bases has one of the replacement's names."""
    return any(
        base.__name__ in replacement.names for base in type(module).__mro__ if not _is_ours(base)
    )


def _is_ours(kind: type) -> bool:
    return kind.__module__.startswith("stripctx.")
