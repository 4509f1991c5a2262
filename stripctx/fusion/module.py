"""How a module keeps being itself and computes by other means.

Nothing of the module changes but its class, which becomes a subclass of its own with another
`forward`. The object, its parameters, buffers, children, hooks, mode and every attribute stay what
and where they were; `isinstance`, the class's name, deepcopy, pickle and state_dicts go on working.

A child whose work is done elsewhere is not called any more. Whoever watches such a child, by a hook
or by a `forward` of its own, would see nothing; so while anybody does, the module's own forward
runs, and sees to it that the child is called.
"""

from __future__ import annotations

import functools
import types
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from stripctx.fusion import find, scope


class UnknownModuleError(Exception):
    """Why a recipe leaves a module alone, in words for the report."""


class Fused(nn.Module):
    """What every recipe is: the `forward` of a module of somebody else's class.

    A recipe is never constructed. It comes before the module's own class in the generated one, so
    that `super().forward` is the module's own, and `self` has the attributes of that class.
    """

    names: ClassVar[tuple[str, ...]]  # of the classes that it knows
    upstream: ClassVar[str]
    functions: ClassVar[str]  # what it computes with
    own: ClassVar[type[nn.Module]]  # set in the generated class: the module's own class,
    recipe: ClassVar[type[Fused]]  # and what is in front of it

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    @classmethod
    def check(cls, module: Any) -> None:
        """Raises UnknownModuleError unless the module's structure is the recipe's."""
        raise NotImplementedError

    @classmethod
    def examples(cls, module: Any) -> list[tuple[Any, ...]]:
        """Small arguments of forward, on the module's device, to try the recipe with."""
        raise NotImplementedError

    def unnoticed(self) -> bool:
        """Whether nobody watches the children that are not called. `idle` says who does."""
        raise NotImplementedError

    def steps_aside(self, *args: Any) -> bool:
        """Whether the module's own forward has to run: also where what becomes of it does not know
        our operators, TorchScript and torch.fx, whose proxies are among `args`."""
        tracing = torch.jit.is_tracing()
        if tracing or _has_proxy(args):
            return True
        try:
            return not self.unnoticed()
        except UnknownModuleError:  # a child has become something else since
            return True

    def extra_repr(self) -> str:
        said = super().extra_repr()
        return f"{said}, fused by stripctx" if said else "fused by stripctx"

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Generated classes have no name to be found by: they are generated again."""
        reduced: Any = super().__reduce_ex__(max(int(protocol), 2))
        make, arguments, *rest = reduced
        return _again, (make, self.recipe, self.own, *arguments[1:]), *rest


def _again(make: Any, recipe: type[Fused], own: type[nn.Module], *arguments: Any) -> Any:
    return make(generated(recipe, own), *arguments)


class Scope(Fused):
    """A module in which interpolated maps wait: its own forward, in a scope."""

    names = ()
    upstream = "torch"
    functions = "pyramid_conv, pyramid_add"
    catches: ClassVar[bool] = True  # what F.interpolate gives

    @classmethod
    def check(cls, module: Any) -> None:
        if "checkpoint" in find.names(module, 2):
            raise UnknownModuleError(
                "its forward uses checkpointing, which may hide a map's gradient from a promise"
            )

    def unnoticed(self) -> bool:
        """A hook on a module inside would be handed promises."""
        return not any(map(_hooked, self.modules()))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.steps_aside(*args, *kwargs.values()):
            return super().forward(*args, **kwargs)
        return scope.run(super().forward, args, kwargs, self.catches)


class Boundary(Scope):
    """A module that calls one in which interpolated maps wait: they may reach it, and go no
    further."""

    catches = False


# Hooks that store what they are handed, for the outputs of the network; a promise among those is
# kept when the network returns. transformers sets them at the first call.
_STORING = "transformers.utils.output_capturing"


def _hooked(module: nn.Module) -> bool:
    hooks = module._forward_hooks
    if hooks and any(getattr(one, "__module__", None) != _STORING for one in hooks.values()):
        return True
    return bool(module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks)


_GENERATED: dict[tuple[type, type], type[Fused]] = {}


def generated(recipe: type[Fused], own: type[nn.Module]) -> type[Fused]:
    """The class of a fused module: `own`, with the recipe in front. One for each pair."""
    if (recipe, own) not in _GENERATED:

        @functools.wraps(own.forward)  # torch.fx and torch.export read the arguments' names
        def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
            return recipe.forward(self, *args, **kwargs)

        members = {
            **{"own": own, "recipe": recipe, "forward": forward},
            **{"__module__": own.__module__, "__qualname__": own.__qualname__},
        }
        _GENERATED[recipe, own] = types.new_class(
            own.__name__, (recipe, own), exec_body=lambda body: body.update(members)
        )
    return _GENERATED[recipe, own]


def check_names(recipe: type[Fused], module: nn.Module) -> None:
    """Raises UnknownModuleError where a name of the recipe's would hide one of the module's."""
    recipes = recipe.__mro__[: recipe.__mro__.index(nn.Module)]
    ours = {name for base in recipes for name in vars(base) if not name.startswith("__")}
    theirs = {*vars(module), *module._modules, *module._parameters, *module._buffers}
    theirs.update(*(vars(base) for base in type(module).__mro__ if base not in nn.Module.__mro__))
    taken = sorted((ours & theirs) - {"forward", "extra_repr"})
    if taken:
        raise UnknownModuleError(f"it has {', '.join(taken)}, a name that fuse needs")


def become(module: nn.Module, kind: type[nn.Module]) -> None:
    """Gives a module another class, of the same attributes."""
    try:
        module.__class__ = kind
    except TypeError as error:  # a class with slots, say
        raise UnknownModuleError(f"its class cannot change: {error}") from error


def _has_proxy(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(_has_proxy(one) for one in value)
    return isinstance(value, torch.fx.Proxy)


def idle(module: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Whether a child's call may be left out: it is of one of the kinds, if any are given, has no
    hooks, and its forward is its class's."""
    if kinds and type(module) not in kinds:
        return False
    return not _hooked(module) and "forward" not in vars(module)


def part(module: nn.Module, path: str, *kinds: type[nn.Module]) -> Any:
    """The child at a path, which must be of one of the kinds, if any are given."""
    try:
        found = module.get_submodule(path)
    except AttributeError:
        raise UnknownModuleError(f"it has no {path}") from None
    return of_kind(found, path, *kinds)


def of_kind(found: nn.Module, path: str, *kinds: type[nn.Module]) -> Any:
    if kinds and type(found) not in kinds:
        expected = " or ".join(kind.__name__ for kind in kinds)
        raise UnknownModuleError(f"{path} is {type(found).__name__}, not {expected}")
    return found


def convolution(module: nn.Module, path: str, **expected: Any) -> Any:
    """The convolution at a path, plain: of torch's very class, and with these attributes."""
    found = part(module, path, nn.Conv2d)
    for name, value in {"groups": 1, "padding_mode": "zeros", **expected}.items():
        if getattr(found, name) != value:
            raise UnknownModuleError(f"{path} has {name} {getattr(found, name)!r}, not {value!r}")
    return found


def flag(module: Any, name: str) -> bool:
    """An attribute, which must be True or False."""
    value = getattr(module, name, None)
    if not isinstance(value, bool):
        raise UnknownModuleError(f"it does not say {name}")
    return value


def up_aligned(module: Any) -> bool:
    """align_corners where PyTorch-Encoding's modules, and those made after them, keep it."""
    value = getattr(module, "_up_kwargs", {}).get("align_corners")
    if not isinstance(value, bool):
        raise UnknownModuleError("it has no _up_kwargs that say align_corners")
    return value


def pair(size: Any) -> tuple[Any, Any]:
    """A pooling's output_size, as torch understands it."""
    return (size[0], size[1]) if isinstance(size, (tuple, list)) else (size, size)


def example(conv: Any) -> Tensor:
    """A small random map for a convolution, of odd sizes that no bin divides."""
    weight = conv.weight
    size = (2, conv.in_channels, 11, 13)
    return torch.randn(size, dtype=weight.dtype, device=weight.device)
