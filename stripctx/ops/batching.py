"""Batching rules for vmap. Operators that treat channels independently fold the mapped dimension
into the channels, those that treat images independently into the batch; others run in a loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def over_channels(operator: Callable[..., Any]) -> Callable[..., Any]:
    """A batching rule: (N, C, H, W) and (C,) arguments become (N, B*C, H, W) and (B*C,); so do the
    tensors in lists."""

    def rule(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        batch = info.batch_size
        outputs = operator(
            *(_fold_argument(arg, dim, batch) for arg, dim in zip(args, in_dims, strict=True))
        )
        single = isinstance(outputs, Tensor)
        outputs = (outputs,) if single else outputs
        dims = [0 if out.dim() == 1 else 1 for out in outputs]
        split = [
            out.unflatten(dim, (batch, out.size(dim) // batch))
            for out, dim in zip(outputs, dims, strict=True)
        ]
        if single:
            return split[0], dims[0]
        return (split, dims) if isinstance(outputs, list) else (tuple(split), tuple(dims))

    return rule


def _fold_argument(arg: Any, dims: Any, batch: int) -> Any:
    if isinstance(arg, (list, tuple)):
        return [_fold_argument(item, dim, batch) for item, dim in zip(arg, dims, strict=True)]
    return _fold(arg, dims, batch) if isinstance(arg, Tensor) else arg


def _fold(arg: Tensor, dim: int | None, batch: int) -> Tensor:
    arg = arg.unsqueeze(0).expand(batch, *arg.shape) if dim is None else arg.movedim(dim, 0)
    if arg.dim() == 2:
        return arg.flatten()
    return arg.movedim(0, 1).flatten(1, 2)


def over_images(operator: Callable[..., Any]) -> Callable[..., Any]:
    """A batching rule: every (N, ...) argument, alone or in a list, becomes (B*N, ...)."""

    def rule(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        batch = info.batch_size

        def fold(arg: Any, dim: Any) -> Any:
            if isinstance(arg, Tensor):
                arg = arg.expand(batch, *arg.shape) if dim is None else arg.movedim(dim, 0)
                return arg.flatten(0, 1)
            if isinstance(arg, (list, tuple)) and isinstance(arg[0], Tensor):
                dims = dim if isinstance(dim, (list, tuple)) else [dim] * len(arg)
                return [fold(item, d) for item, d in zip(arg, dims, strict=True)]
            return arg

        def split(out: Tensor) -> Tensor:
            return out.unflatten(0, (batch, out.size(0) // batch))

        outputs = operator(*(fold(arg, dim) for arg, dim in zip(args, in_dims, strict=True)))
        if isinstance(outputs, Tensor):
            return split(outputs), 0
        kind = type(outputs)
        return kind(map(split, outputs)), kind(0 for _ in outputs)

    return rule


def over_images_of(count: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Returns a function that makes a batching rule for an operator where only the first `count`
    arguments and the result are (N, ...). The rule folds the mapped dimension into N if no other
    argument is mapped, and loops otherwise."""

    def rule_of(operator: Callable[..., Any]) -> Callable[..., Any]:
        loop = in_a_loop(operator)

        def rule(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
            if any(dim is not None for dim in in_dims[count:]):
                return loop(info, in_dims, *args)
            of_images = over_images(lambda *images: operator(*images, *args[count:]))
            return of_images(info, in_dims[:count], *args[:count])

        return rule

    return rule_of


def in_a_loop(operator: Callable[..., Any]) -> Callable[..., Any]:
    """A batching rule that calls the operator once for each element of the batch."""

    def rule(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        def one(index: int) -> Any:
            return operator(
                *(
                    arg if dim is None else arg.select(dim, index)
                    for arg, dim in zip(args, in_dims, strict=True)
                )
            )

        results = [one(index) for index in range(info.batch_size)]
        if isinstance(results[0], Tensor):
            return torch.stack(results), 0
        stacked = tuple(torch.stack(group) for group in zip(*results, strict=True))
        return stacked, (0,) * len(stacked)

    return rule
