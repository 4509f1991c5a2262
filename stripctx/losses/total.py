"""The weighted sum of a criterion over all outputs of a network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stripctx.losses.labels import at_least_float32, class_presence, shrunk
from stripctx.losses.pixels import cross_entropy


class SegmentationLoss(nn.Module):
    """The weighted sum of a criterion over the outputs of a network of stripctx.models.

        criterion(out) + aux_weight * criterion(aux) + se_weight * (bce(se) + bce(se_stage3))

    with bce the binary cross-entropy of EncNet's semantic encoding logits (N, K) against
    `class_presence`. Outputs that the network does not return are skipped. `out` and `aux` may be
    smaller than the target, as `network(x, resize=False)` returns them: the criterion interpolates.

    The weight 0.4 is that of PSPNet, SPNet and HANet, and 0.2 that of EncNet's paper;
    PyTorch-Encoding's scripts use 0.2 for both.

    Args:
        aux_weight, se_weight: the factors above.
        criterion: a function of `stripctx.losses`, a functools.partial of one, or any function of
            logits and target with the keywords weight, ignore_index and, for small logits,
            align_corners.
        weight: (K,), one factor per class, for the criterion and, as upstream, for the bce.
        ignore_index: the label to ignore.
        align_corners: for logits smaller than the target; pass `network.align_corners`.
        shrink_aux: whether a smaller `aux` is compared with labels reduced to its size by nearest
            neighbour instead, as HANet does.

    Shape:
        a dictionary of outputs, or the logits `out` alone, and a target (N, H, W) to a scalar.

    Examples:
        >>> outputs = {"out": torch.zeros(1, 4, 2, 2), "aux": torch.zeros(1, 4, 2, 2)}
        >>> SegmentationLoss()(outputs, torch.zeros(1, 2, 2, dtype=torch.long))
        tensor(1.9408)
    """

    weight: Tensor | None

    def __init__(
        self,
        *,
        aux_weight: float = 0.4,
        se_weight: float = 0.2,
        criterion: Callable[..., Tensor] = cross_entropy,
        weight: Tensor | None = None,
        ignore_index: int = 255,
        align_corners: bool = True,
        shrink_aux: bool = False,
    ) -> None:
        super().__init__()
        self.align_corners, self.shrink_aux = align_corners, shrink_aux
        self.factors = {"out": 1.0, "aux": aux_weight, "se": se_weight, "se_stage3": se_weight}
        self.criterion = criterion
        self.ignore_index = ignore_index
        self.register_buffer("weight", weight, persistent=False)

    def terms(self, outputs: Mapping[str, Tensor] | Tensor, target: Tensor) -> dict[str, Tensor]:
        """The terms of the sum by output name, each multiplied by its factor."""
        if isinstance(outputs, Tensor):
            outputs = {"out": outputs}
        if "out" not in outputs:
            raise ValueError(f"SegmentationLoss: outputs must hold 'out', got {list(outputs)}")
        return {
            name: factor * self._term(name, outputs[name], target)
            for name, factor in self.factors.items()
            if name in outputs
        }

    def forward(self, outputs: Mapping[str, Tensor] | Tensor, target: Tensor) -> Tensor:
        return torch.stack(list(self.terms(outputs, target).values())).sum()

    if TYPE_CHECKING:

        def __call__(self, outputs: Mapping[str, Tensor] | Tensor, target: Tensor) -> Tensor: ...

    def _term(self, name: str, logits: Tensor, target: Tensor) -> Tensor:
        if name.startswith("se"):
            present = class_presence(target, logits.shape[1], self.ignore_index)
            logits = at_least_float32(logits)
            weight = None if self.weight is None else self.weight.to(logits)
            return F.binary_cross_entropy_with_logits(logits, present.to(logits), weight)
        options: dict[str, Any] = {"weight": self.weight, "ignore_index": self.ignore_index}
        if logits.shape[2:] != target.shape[1:]:
            if name == "aux" and self.shrink_aux:
                target = shrunk(target, logits.shape[2], logits.shape[3])
            else:
                options["align_corners"] = self.align_corners
        return self.criterion(logits, target, **options)
