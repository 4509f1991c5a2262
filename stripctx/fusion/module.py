"""How a module is replaced: by changing its class.

The new class is a generated subclass of the module's own class with another `forward`. The object,
its parameters, buffers, children, hooks, mode and attributes stay as they are; `isinstance`, the
class name, deepcopy, pickle and state_dicts keep working.

The new forward may not call some of the children, because it computes their part in another way.
While such a child has a hook, or a `forward` set on the object, the module's own forward runs, so
that it is called.
"""

from __future__ import annotations

import functools
import types
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from stripctx import _compat
from stripctx.fusion import find, scope


class UnknownModuleError(Exception):
    """Why a replacement does not apply to a module; the message goes into the report."""


class Fused(nn.Module):
    """Base of all replacements for `forward` of a class from another package.

    A replacement is never instantiated. The generated class derives from the replacement first and
    the module's own class second, so `super().forward` is the original and `self` has its
    attributes.
    """

    names: ClassVar[tuple[str, ...]]  # of the classes it replaces
    upstream: ClassVar[str]
    functions: ClassVar[str]  # of stripctx that it calls
    own: ClassVar[type[nn.Module]]  # the module's own class; set in the generated class
    replacement: ClassVar[type[Fused]]  # the replacement it was generated from; likewise

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    @classmethod
    def check(cls, module: Any) -> None:
        """Raises UnknownModuleError if the module lacks the structure that is expected here."""
        raise NotImplementedError

    @classmethod
    def examples(cls, module: Any) -> list[tuple[Any, ...]]:
        """Small arguments of forward, on the module's device, for comparing both forms."""
        raise NotImplementedError

    def unnoticed(self) -> bool:
        """Whether the children that are not called are all `idle`."""
        raise NotImplementedError

    def steps_aside(self, *args: Any) -> bool:
        """Whether the module's own forward has to run: when a skipped child is watched, under
        TorchScript and torch.fx tracing (proxies in `args`), which do not know our operators, and
        under torch.func and forward-mode differentiation, which the operators refuse."""
        functional = _compat.differentiates_functionally()
        if functional or torch.jit.is_tracing() or _has_proxy(args):
            return True
        try:
            return not self.unnoticed()
        except UnknownModuleError:  # a child was replaced meanwhile
            return True

    def extra_repr(self) -> str:
        said = super().extra_repr()
        return f"{said}, fused by stripctx" if said else "fused by stripctx"

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickles by replacement and own class: a generated class cannot be imported by name."""
        reduced: Any = super().__reduce_ex__(max(int(protocol), 2))
        make, arguments, *rest = reduced
        return _again, (make, self.replacement, self.own, *arguments[1:]), *rest


def _again(make: Any, replacement: type[Fused], own: type[nn.Module], *arguments: Any) -> Any:
    return make(generated(replacement, own), *arguments)


class Scope(Fused):
    """A module that interpolates: runs its own forward with lazy interpolation."""

    names = ()
    upstream = "torch"
    functions = "pyramid_conv, pyramid_add"
    catches: ClassVar[bool] = True  # calls of F.interpolate

    @classmethod
    def check(cls, module: Any) -> None:
        if "checkpoint" in find.names(module, 2):
            raise UnknownModuleError(
                "its forward uses checkpointing, which may hide a map's gradient from a lazy tensor"
            )

    def unnoticed(self) -> bool:
        """Whether no submodule has a hook: it would be given lazy tensors."""
        return not any(map(_hooked, self.modules()))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.steps_aside(*args, *kwargs.values()):
            return super().forward(*args, **kwargs)
        return scope.run(super().forward, args, kwargs, self.catches)


class Boundary(Scope):
    """A module that calls a Scope: it may receive lazy tensors from it, but returns tensors."""

    catches = False


# The module of hooks that only store outputs, which become tensors when the network returns.
# transformers registers such hooks at the first call.
_STORING = "transformers.utils.output_capturing"


def _hooked(module: nn.Module) -> bool:
    hooks = module._forward_hooks
    if hooks and any(getattr(one, "__module__", None) != _STORING for one in hooks.values()):
        return True
    return bool(module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks)


_GENERATED: dict[tuple[type, type], type[Fused]] = {}


def generated(replacement: type[Fused], own: type[nn.Module]) -> type[Fused]:
    """The class of a fused module, derived from the replacement and `own`; cached for each pair."""
    if (replacement, own) not in _GENERATED:

        @functools.wraps(own.forward)  # torch.fx and torch.export read the signature
        def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
            return replacement.forward(self, *args, **kwargs)

        members = {
            **{"own": own, "replacement": replacement, "forward": forward},
            **{"__module__": own.__module__, "__qualname__": own.__qualname__},
        }
        _GENERATED[replacement, own] = types.new_class(
            own.__name__, (replacement, own), exec_body=lambda body: body.update(members)
        )
    return _GENERATED[replacement, own]


def check_names(replacement: type[Fused], module: nn.Module) -> None:
    """Raises UnknownModuleError if an attribute of the replacement would hide one of the module."""
    replacements = replacement.__mro__[: replacement.__mro__.index(nn.Module)]
    ours = {name for base in replacements for name in vars(base) if not name.startswith("__")}
    theirs = {*vars(module), *module._modules, *module._parameters, *module._buffers}
    theirs.update(*(vars(base) for base in type(module).__mro__ if base not in nn.Module.__mro__))
    taken = sorted((ours & theirs) - {"forward", "extra_repr"})
    if taken:
        raise UnknownModuleError(f"it has {', '.join(taken)}, a name that fuse needs")


def become(module: nn.Module, kind: type[nn.Module]) -> None:
    """Changes the class of a module."""
    try:
        module.__class__ = kind
    except TypeError as error:  # e.g. a class with slots
        raise UnknownModuleError(f"its class cannot change: {error}") from error


def _has_proxy(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(_has_proxy(one) for one in value)
    return isinstance(value, torch.fx.Proxy)


def idle(module: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Whether a child may be skipped: it has one of the types, if any are given, no hooks, and the
    forward of its class."""
    if kinds and type(module) not in kinds:
        return False
    return not _hooked(module) and "forward" not in vars(module)


def part(module: nn.Module, path: str, *kinds: type[nn.Module]) -> Any:
    """The child at a path; raises UnknownModuleError if it has none of the types, if any are
    given."""
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
    """The nn.Conv2d at a path; raises UnknownModuleError if it is anything else or differs in these
    attributes."""
    found = part(module, path, nn.Conv2d)
    for name, value in {"groups": 1, "padding_mode": "zeros", **expected}.items():
        if getattr(found, name) != value:
            raise UnknownModuleError(f"{path} has {name} {getattr(found, name)!r}, not {value!r}")
    return found


def flag(module: Any, name: str) -> bool:
    """A boolean attribute; raises UnknownModuleError if it is missing or of another type."""
    value = getattr(module, name, None)
    if not isinstance(value, bool):
        raise UnknownModuleError(f"it does not say {name}")
    return value


def up_aligned(module: Any) -> bool:
    """align_corners from `_up_kwargs`, as PyTorch-Encoding's and SPNet's modules store it."""
    value = getattr(module, "_up_kwargs", {}).get("align_corners")
    if not isinstance(value, bool):
        raise UnknownModuleError("it has no _up_kwargs that say align_corners")
    return value


def pair(size: Any) -> tuple[Any, Any]:
    """A pooling layer's output_size as a pair."""
    return (size[0], size[1]) if isinstance(size, (tuple, list)) else (size, size)


def example(conv: Any) -> Tensor:
    """A small random input for a convolution, with odd sizes that are not divisible by the bins."""
    weight = conv.weight
    size = (2, conv.in_channels, 11, 13)
    return torch.randn(size, dtype=weight.dtype, device=weight.device)
