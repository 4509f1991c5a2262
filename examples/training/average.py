"""The moving average of a network's weights, which often scores better than the final weights
(Polyak and Juditsky, 1992)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

Tensors = tuple[Tensor, ...] | list[Tensor]  # the types that AveragedModel passes


class Average:
    """Averages a network's weights: average = d * average + (1 - d) * weights after every step. The
    decay d is limited to (1 + n) / (10 + n) after n steps, so that a short run does not depend on
    its initial weights. The norms' statistics are copied from the network.

    Args:
        network: the network before the first step.
        decay: d, such as 0.999.
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
        """Counts steps itself: reading the module's counter would synchronize the device."""
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(averages, weights, 1 - decay)
