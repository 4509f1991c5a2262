"""`fuse` and `unfuse`: the context modules of somebody else's network, made to compute with ours.

One room for each family (pyramid, strip, height, encoding) and one, `handover`, for the modules
in which a convolution or a product follows them. A recipe checks a module's structure, is tried out
on a copy (`trial`), and only then becomes part of the module's class (`fused`).
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from stripctx.replace.encoding import EncodingEncModule, EncodingRecipe, MmsegEncModule
from stripctx.replace.fused import Fused, UnknownModuleError, become, check_names, generated
from stripctx.replace.handover import (
    PRODUCERS,
    BottleneckHandover,
    Handover,
    MmsegHandover,
    SemsegHandover,
    SequentialHandover,
    SmpHandover,
)
from stripctx.replace.height import HANetRecipe
from stripctx.replace.pyramid import (
    EncodingPyramidPooling,
    FixedWindows,
    MmsegPPM,
    SemsegPPM,
    SmpPSPModule,
    UPerNetPSPModule,
)
from stripctx.replace.report import Left, Replaced, Report
from stripctx.replace.strip import SPBlockRecipe, StripPoolingRecipe
from stripctx.replace.trial import try_out

__all__ = ["Left", "Replaced", "Report", "fuse", "unfuse"]

_MODULES: tuple[type[Fused], ...] = (
    SPBlockRecipe,
    StripPoolingRecipe,
    SemsegPPM,
    MmsegPPM,
    EncodingPyramidPooling,
    SmpPSPModule,
    UPerNetPSPModule,
    FixedWindows,
    HANetRecipe,
    EncodingRecipe,
    EncodingEncModule,
    MmsegEncModule,
)
_HANDOVERS: tuple[type[Handover], ...] = (
    SemsegHandover,
    MmsegHandover,
    SmpHandover,
    SequentialHandover,
    BottleneckHandover,
)


def fuse(network: nn.Module) -> Report:
    """Makes every context module that it knows compute with stripctx's functions, in place.

    Modules are found by the name of their class and by their structure; nobody's package is
    needed. Each is tried out on a copy first: where the module's own forward and the fused one
    differ on small random maps, in evaluation or in training, it is left, and the report says so.

    Nothing but the way of computing changes. The module objects stay, and with them the Parameter
    objects, state_dict keys, buffers, hooks, dtype, device, mode and requires_grad: an optimiser
    made before and old checkpoints work on. Results are the same but for the rounding. deepcopy,
    pickle (where stripctx can be imported), DDP, torch.compile and torch.export work as before.

    A module whose call is left out, such as a pooling, is called again while it has a hook.

    Args:
        network: any module; may itself be a context module.

    Returns:
        What was replaced, and what was left and why. Printed, it says one line a module.

    Example:
        >>> from stripctx import models
        >>> print(fuse(models.fcn(3, "resnet18")))  # nothing of anybody else's in there
        nothing that fuse knows
    """
    replaced: list[Replaced] = []
    left: list[Left] = []
    modules = [(path, one) for path, one in network.named_modules() if not _is_ours(type(one))]
    for path, module in modules:
        recipes = [recipe for recipe in _MODULES if _named(module, recipe)]
        if isinstance(module, Fused):
            left.append(Left(path, type(module).__name__, "it is fused already"))
        elif recipes:
            _apply(recipes, path, module, replaced, left)
    for path, module in modules:
        if not isinstance(module, Fused):
            handovers = [one for one in _HANDOVERS if _named(module, one) and one.concerns(module)]
            if handovers:
                _apply(handovers, path, module, replaced, left)
    return Report(tuple(replaced), tuple(left))


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
        vars(module).pop("deferring", None)
    return [path for path, _ in fused]


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
        name = f"{type(module).__name__} ({recipe.upstream})"
        try:
            recipe.check(module)
            check_names(recipe, module)
            if not issubclass(recipe, Handover):  # which changes nothing of what is computed
                try_out(recipe, module)
            become(module, generated(recipe, type(module)))
        except UnknownModuleError as reason:
            reasons.append(f"as {recipe.upstream}'s, {reason}")
        else:
            if isinstance(module, PRODUCERS):
                module.deferring = False
            replaced.append(Replaced(path, name, recipe.functions))
            return
    left.append(Left(path, type(module).__name__, "; ".join(reasons)))


def _named(module: nn.Module, recipe: type[Fused]) -> bool:
    """Whether the module's class, or one that it is made from, has a name that the recipe knows."""
    return any(base.__name__ in recipe.names for base in type(module).__mro__ if not _is_ours(base))


def _is_ours(kind: type) -> bool:
    return kind.__module__.startswith("stripctx.")
