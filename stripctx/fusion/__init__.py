"""`fuse`, `unfuse` and `fusing`: somebody else's network, made to compute with ours.

Interpolation waits (`lazy`) while a module that interpolates runs (`scope`, found by `find`), and a
convolution, a sum or a product takes the small maps where that pays (`cost`). Context modules that
no such rule covers have recipes by their names (strip, height, encoding), which are tried out
first (`verify`). A module stays itself (`module`): nothing of it changes but its class.

The package is called fusion because `stripctx.fuse` is the function.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from stripctx.fusion import cost, find, verify
from stripctx.fusion.encoding import EncodingEncModule, EncodingRecipe, MmsegEncModule
from stripctx.fusion.height import HANetRecipe
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
from stripctx.fusion.strip import SPBlockRecipe, StripPoolingRecipe

__all__ = ["Left", "Replaced", "Report", "fuse", "fusing", "unfuse"]

_RECIPES: tuple[type[Fused], ...] = (
    SPBlockRecipe,
    StripPoolingRecipe,
    HANetRecipe,
    EncodingRecipe,
    EncodingEncModule,
    MmsegEncModule,
)


def fuse(network: nn.Module, *example: Any) -> Report:
    """Makes a network compute with stripctx's functions, in place.

    In every module that interpolates, an interpolated map waits for what takes it: a convolution
    over its concatenation with others becomes `pyramid_conv`, a sum `pyramid_add` or
    `pyramid_add_relu`, wherever shapes say that this pays. Context modules of SPNet, HANet, EncNet
    and mmseg's kin are found by the name of their class and by their structure, and tried out
    first.

    Nothing but the way of computing changes. The module objects stay, and with them the Parameter
    objects, state_dict keys, buffers, hooks, dtype, device, mode and requires_grad: an optimiser
    made before and old checkpoints work on. Results are the same but for the rounding. deepcopy,
    pickle (where stripctx can be imported), DDP, torch.compile and torch.export work as before.

    While a module inside has a hook, its own forward runs, and calls the hook with tensors.

    Args:
        network: any module.
        example: arguments of its forward. With them the network is run on them both ways, outputs
            and gradients are compared, in float32 to its rounding, and what differs is undone; and
            only the modules are replaced in which a convolution or a sum was found. Nothing of the
            network's state changes.

    Returns:
        What was replaced, and what was left and why. Printed, it says one line a module and, with
        an example, one a convolution.

    Examples:
        >>> from stripctx import models
        >>> print(fuse(models.fcn(3, "resnet18")))  # nothing of anybody else's in there
        nothing that fuse knows
    """
    replaced: list[Replaced] = []
    left: list[Left] = []
    modules = [(path, one) for path, one in network.named_modules() if not _is_ours(type(one))]
    for path, module in modules:
        recipes = [recipe for recipe in _RECIPES if _named(module, recipe)]
        if isinstance(module, Fused):
            left.append(Left(path, type(module).__name__, "it is fused already"))
        elif recipes:
            _apply(recipes, path, module, replaced, left)
    for path, module, kind in _scopes(network):
        _apply([kind], path, module, replaced, left)
    convolutions: tuple[cost.Convolution, ...] = ()
    if example:
        convolutions = _try(network, example, replaced, left)
    return Report(tuple(replaced), tuple(left), convolutions)


def unfuse(network: nn.Module) -> list[str]:
    """Undoes `fuse`, in place: every module computes by its own forward again.

    Args:
        network: what was given to `fuse`, any part of it, or a copy.

    Returns:
        The paths of the modules that were fused.
    """
    fused = [(path, one) for path, one in network.named_modules() if isinstance(one, Fused)]
    for _, module in fused:
        become(module, module.own)
    return [path for path, _ in fused]


def _scopes(network: nn.Module) -> list[tuple[str, nn.Module, type[Scope]]]:
    """The modules that get a scope or become a boundary: those that interpolate, their callers, and
    those that take a fused gate. Inside a recipe's module nothing waits."""
    found = find.scopes(network)
    modules = dict(network.named_modules())
    for path, module in modules.items():
        if isinstance(module, SPBlockRecipe) and path:
            found.setdefault(path.rpartition(".")[0], False)
    known = [path for path, one in modules.items() if isinstance(one, Fused)]
    recipes = [path for path in known if not isinstance(modules[path], Scope)]
    return [
        (path, modules[path], Scope if catches else Boundary)
        for path, catches in found.items()
        if path not in known and not any(f"{path}.".startswith(f"{one}.") for one in recipes)
    ]


def _apply(
    recipes: Iterable[type[Fused]],
    path: str,
    module: nn.Module,
    replaced: list[Replaced],
    left: list[Left],
) -> None:
    """Replaces the module by the first recipe that knows it, or says why none does."""
    reasons = []
    for recipe in recipes:
        name = type(module).__name__
        try:
            if "forward" in vars(module):
                raise UnknownModuleError("it has a forward of its own, set on the object")
            recipe.check(module)
            check_names(recipe, module)
            if not issubclass(recipe, Scope):  # which changes nothing of what is computed
                verify.try_out(recipe, module)
            become(module, generated(recipe, type(module)))
        except UnknownModuleError as reason:
            general = issubclass(recipe, Scope)
            reasons.append(str(reason) if general else f"as {recipe.upstream}'s, {reason}")
        else:
            known = name if issubclass(recipe, Scope) else f"{name} ({recipe.upstream})"
            replaced.append(Replaced(path, known, recipe.functions))
            return
    left.append(Left(path, type(module).__name__, "; ".join(reasons)))


def _try(
    network: nn.Module, example: tuple[Any, ...], replaced: list[Replaced], left: list[Left]
) -> tuple[cost.Convolution, ...]:
    """Runs the network both ways on an example; undoes what differs or found nothing to do."""

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
            left.append(Left(one.path, type(module).__name__, "no interpolated map met a consumer"))
    return tuple(recorder.convolutions)


def _named(module: nn.Module, recipe: type[Fused]) -> bool:
    """Whether the module's class, or one that it is made from, has a name that the recipe knows."""
    return any(base.__name__ in recipe.names for base in type(module).__mro__ if not _is_ours(base))


def _is_ours(kind: type) -> bool:
    return kind.__module__.startswith("stripctx.")
