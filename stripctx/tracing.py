"""Support for torch.fx: a layer is traced as one module call, like those of torch.nn, and checks of
image sizes in networks are skipped. Feature extractors, quantisation and the folding of norms trace
networks in this way. For TorchScript see ops/calls.py."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import torch.fx

# As in torch's own functions: comparing a traced size here does not make it a constant.
warnings.filterwarnings("ignore", category=torch.jit.TracerWarning, module=r"stripctx\.")

Forward = TypeVar("Forward", bound=Callable[..., Any])


def is_proxy(value: Any) -> bool:
    """Whether the value is a proxy of torch.fx's symbolic tracing."""
    return isinstance(value, torch.fx.Proxy)


def one_call(forward: Forward) -> Forward:
    """Decorates the `forward` of a layer that torch.fx records as one call, because its code
    depends on sizes."""

    @functools.wraps(forward)
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        proxy = _first_proxy((*args, *kwargs.values()))
        if proxy is None:
            return forward(self, *args, **kwargs)
        if self is proxy.tracer.root:
            raise NotImplementedError(
                f"{type(self).__name__}: torch.fx records it as one call of a network that it is "
                "in, and does not trace it by itself; trace torch.nn.Sequential(layer)"
            )
        path = proxy.tracer.path_of_module(self)
        return proxy.tracer.create_proxy("call_module", path, args, kwargs)

    return cast(Forward, run)


def _first_proxy(values: Sequence[Any]) -> Any:
    for value in values:
        found = _first_proxy(value) if isinstance(value, (tuple, list)) else value
        if is_proxy(found):
            return found
    return None
