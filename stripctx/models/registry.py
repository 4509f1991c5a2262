"""Networks by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

Factory = TypeVar("Factory", bound=Callable[..., nn.Module])

_FACTORIES: dict[str, Callable[..., nn.Module]] = {}


def register(factory: Factory) -> Factory:
    """Decorates the function that makes a network: its name becomes the network's."""
    _FACTORIES[factory.__name__] = factory
    return factory


def available() -> list[str]:
    """The names that `create` knows."""
    return sorted(_FACTORIES)


def create(name: str, **options: Any) -> nn.Module:
    """The network called `name`, made with `options`; see the function of that name.

    Example:
        >>> network = create("fcn", num_classes=19, backbone="resnet18")
        >>> network.eval()(torch.randn(1, 3, 65, 97))["out"].shape
        torch.Size([1, 19, 65, 97])
    """
    if name not in _FACTORIES:
        known = ", ".join(available())
        raise ValueError(f"create: name must be one of {known}, got {name!r}")
    return _FACTORIES[name](**options)
