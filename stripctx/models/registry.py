"""Networks by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from torch import nn

if TYPE_CHECKING:
    from stripctx.models.deeplab_hanet import DeepLabHANet
    from stripctx.models.deepten import DeepTEN
    from stripctx.models.encnet import EncNet
    from stripctx.models.fcn import FCN
    from stripctx.models.pspnet import PSPNet
    from stripctx.models.spnet import SPNet
    from stripctx.models.upernet import UPerNet

Factory = TypeVar("Factory", bound=Callable[..., nn.Module])

_FACTORIES: dict[str, Callable[..., nn.Module]] = {}


def register(factory: Factory) -> Factory:
    """Decorator for a function that creates a network: `create` then finds it by its name.

    Args:
        factory: the function; its name becomes that of the network.

    Returns:
        The function, unchanged.

    Examples:
        >>> from stripctx.models import fcn
        >>> @register
        ... def small_fcn(num_classes: int) -> nn.Module:
        ...     return fcn(num_classes, "resnet18", aux=False)
        >>> "small_fcn" in available()
        True
    """
    _FACTORIES[factory.__name__] = factory
    return factory


def available() -> list[str]:
    """The names that `create` accepts.

    Examples:
        >>> available()[:3]
        ['deeplabv3plus_hanet', 'deepten', 'encnet']
    """
    return sorted(_FACTORIES)


@overload
def create(name: Literal["fcn"], **options: Any) -> FCN: ...
@overload
def create(name: Literal["pspnet"], **options: Any) -> PSPNet: ...
@overload
def create(name: Literal["spnet"], **options: Any) -> SPNet: ...
@overload
def create(name: Literal["deeplabv3plus_hanet"], **options: Any) -> DeepLabHANet: ...
@overload
def create(name: Literal["encnet"], **options: Any) -> EncNet: ...
@overload
def create(name: Literal["upernet"], **options: Any) -> UPerNet: ...
@overload
def create(name: Literal["deepten"], **options: Any) -> DeepTEN: ...
@overload
def create(name: str, **options: Any) -> nn.Module: ...
def create(name: str, **options: Any) -> nn.Module:
    """Creates a network by name.

    Args:
        name: one of `available()`.
        options: the arguments of the function of that name.

    Returns:
        The network, in training mode. Its type is known to type checkers if the name is a literal.

    Raises:
        ValueError: for an unknown name or an invalid option.

    Examples:
        >>> network = create("fcn", num_classes=19, backbone="resnet18")
        >>> network.eval()(torch.randn(1, 3, 65, 97))["out"].shape
        torch.Size([1, 19, 65, 97])
    """
    if name not in _FACTORIES:
        known = ", ".join(available())
        raise ValueError(f"create: name must be one of {known}, got {name!r}")
    return _FACTORIES[name](**options)
