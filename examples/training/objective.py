"""The optimization of a recipe over all processes: loss, parameter groups, learning rate."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from examples.data.labels import IGNORE
from examples.training.processes import Processes
from examples.training.recipe import Loss, Optimizer, RecipeError
from stripctx import losses
from stripctx.losses.labels import shrunk

_NO_OPTIONS = ("logits", "target", "weight", "ignore_index", "align_corners")
_MEANS_OVER_PIXELS = ("out", "aux")


class Objective(nn.Module):
    """The loss of a recipe, one term per output of the network.

    The mean over one process's labelled pixels is not its share of the mean over all. Each mean is
    therefore weighted by its number of pixels, so that cross-entropy equals that of a single
    process with the whole batch. Other criteria are averaged over the processes.

    Args:
        network: the network whose outputs these are; defines their interpolation to the target's
            size.
        class_weights: weights to use if the recipe gives none; one per class, or empty.
    """

    weight: Tensor | None

    def __init__(
        self,
        settings: Loss,
        num_classes: int,
        processes: Processes,
        network: nn.Module | None = None,
        class_weights: Sequence[float] = (),
    ) -> None:
        super().__init__()
        criterion = check(settings, num_classes)
        given = settings.class_weights or class_weights
        weight = torch.tensor(given) if given else None
        self.processes, self.num_classes = processes, num_classes
        self.shared = criterion is losses.cross_entropy and processes.size > 1
        self.register_buffer("weight", weight, persistent=False)
        self.criterion = losses.SegmentationLoss(
            aux_weight=settings.aux_weight,
            se_weight=settings.se_weight,
            criterion=functools.partial(criterion, **settings.options),
            weight=weight,
            ignore_index=IGNORE,
            align_corners=getattr(network, "align_corners", False),
            shrink_aux=not getattr(network, "enlarge_aux", True),
        )

    def forward(self, outputs: Mapping[str, Tensor] | Tensor, target: Tensor) -> dict[str, Tensor]:
        """The terms of the loss, by output; their mean over the processes is that of the whole
        batch."""
        terms = self.criterion.terms(outputs, target)
        if self.shared:
            for name in _MEANS_OVER_PIXELS:
                if name in terms:
                    labels = target
                    if name == "aux" and self.criterion.shrink_aux:
                        labels = shrunk(target, *outputs[name].shape[2:])
                    terms[name] = terms[name] * self._share(labels)
        return terms

    @torch.no_grad()
    def _share(self, target: Tensor) -> Tensor:
        """This process's weighted share of all labelled pixels, times the number of processes."""
        labels = target.clamp(max=self.num_classes)
        weight = torch.ones(self.num_classes) if self.weight is None else self.weight
        own = nn.functional.pad(weight.to(target.device, torch.float64), (0, 1))[labels].sum()
        total = self.processes.sum_(own.clone())
        return (own * self.processes.size / torch.where(total > 0, total, 1.0)).float()


def check(settings: Loss, num_classes: int) -> Callable[..., Tensor]:
    """Returns the criterion; raises RecipeError with the name of an invalid setting."""
    criterion: Any = getattr(losses, settings.criterion, None)
    takes = {} if criterion is None else inspect.signature(criterion).parameters
    if settings.criterion not in losses.__all__ or "logits" not in takes:
        raise RecipeError(
            f"loss.criterion: must be a function of stripctx.losses, got {settings.criterion!r}"
        )
    given = [name for name in takes if name not in _NO_OPTIONS]
    unknown = [name for name in settings.options if name not in given]
    if unknown:
        raise RecipeError(
            f"loss.options: {settings.criterion} takes {', '.join(given) or 'none'}, "
            f"got {', '.join(unknown)}"
        )
    if settings.class_weights and len(settings.class_weights) != num_classes:
        raise RecipeError(
            f"loss.class_weights: must be {num_classes}, one per class, "
            f"got {len(settings.class_weights)}"
        )
    if settings.class_weights and not any(settings.class_weights):
        raise RecipeError("loss.class_weights: must contain a positive weight, got none")
    try:
        labels = torch.zeros(1, 2, 2, dtype=torch.int64)
        criterion(torch.zeros(1, num_classes, 2, 2), labels, **settings.options)
    except (TypeError, ValueError, RuntimeError) as error:
        raise RecipeError(f"loss.options: {' '.join(str(error).split())}") from None
    return criterion


def optimizer(network: nn.Module, settings: Optimizer) -> torch.optim.Optimizer:
    """Creates SGD or AdamW with the recipe's groups; a group's `share` is its factor of the
    rate."""
    try:
        patterns = [re.compile(group.match) for group in settings.groups]
    except re.error as error:
        raise RecipeError(
            f"optimizer.groups: {error.pattern!r} is not a regular expression ({error.msg})"
        ) from None
    chosen: list[list[nn.Parameter]] = [[] for _ in range(len(patterns) + 1)]
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            found = (i for i, pattern in enumerate(patterns) if pattern.search(name))
            chosen[next(found, len(patterns))].append(parameter)
    for pattern, parameters in zip(patterns, chosen, strict=False):
        if not parameters:
            raise RecipeError(f"optimizer.groups: no parameter matches {pattern.pattern!r}")
    groups = []
    for i, parameters in enumerate(chosen):
        group = settings.groups[i] if i < len(patterns) else None
        decay = None if group is None else group.weight_decay
        groups.append(
            {
                "params": parameters,
                "share": 1.0 if group is None else group.rate,
                "weight_decay": settings.weight_decay if decay is None else decay,
            }
        )
    kept = [group for group in groups if group["params"]]
    if settings.kind == "adamw":
        return torch.optim.AdamW(kept, lr=settings.rate)
    return torch.optim.SGD(kept, lr=settings.rate, momentum=settings.momentum)


def set_rate(optimizer: torch.optim.Optimizer, settings: Optimizer, step: int, steps: int) -> float:
    """Sets the learning rates of step `step` (from 0); returns the base rate."""
    rate = settings.rate * (1 - step / steps) ** settings.power
    if step < settings.warmup:
        rate *= (step + 1) / settings.warmup
    for group in optimizer.param_groups:
        group["lr"] = rate * group["share"]
    return rate
