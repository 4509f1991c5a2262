"""The moving average of a network's weights, which often scores better than the last ones
(Polyak and Juditsky, 1992)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

Tensors = tuple[Tensor, ...] | list[Tensor]  # as AveragedModel calls it


class Average:
    """Follows a network: average = d * average + (1 - d) * weights after every step, where d is the
    decay, but at first (1 + n) / (10 + n) after n steps, so that a short run does not hang on
    its initial weights. Statistics of norms are those of the network.

    Args:
        network: as it is before the first step.
        decay: d, 0.999 say.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.steps, self.decay = 0, decay
        self._averaged = AveragedModel(network, multi_avg_fn=self._average)
        self._averaged.requires_grad_(False)

    @property
    def network(self) -> nn.Module:
        return self._averaged.module

    def update(self, network: nn.Module) -> None:
        self._averaged.update_parameters(network)
        self.steps += 1

    def state_dict(self) -> dict[str, Any]:
        return {"network": self.network.state_dict(), "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.steps = state["steps"]
        self._averaged.n_averaged.fill_(self.steps)

    @torch.no_grad()
    def _average(self, averages: Tensors, weights: Tensors, _: object) -> None:
        """Counts steps by itself: to ask the module would wait for the device."""
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(averages, weights, 1 - decay)
