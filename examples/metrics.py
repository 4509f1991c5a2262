"""Scores of scene parsing from one confusion matrix, which torchmetrics counts.

    IoU_k = n_kk / (sum_j n_kj + sum_j n_jk - n_kk)        n_kj: pixels of class k predicted as j

mIoU is the mean over the classes that occur in labels or predictions; pixel accuracy is the
fraction of labelled pixels that are correct. Counts are integers, so scores do not depend on the
order or the number of processes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix


@dataclass(frozen=True)
class Scores:
    """The result of `SegmentationScores.compute`; fractions of 1, on the CPU.

    Attributes:
        miou: the mean of `iou` over the classes that occur; nan if nothing was counted.
        pixel_accuracy: correct pixels divided by labelled pixels.
        iou: (K,) float64, nan for a class that is neither labelled nor predicted anywhere.
        confusion: (K, K) int64, a row per true class, a column per predicted class.
    """

    miou: float
    pixel_accuracy: float
    iou: Tensor
    confusion: Tensor


class SegmentationScores:
    """Counts predictions against labels, batch by batch.

    Args:
        num_classes: K.
        ignore_index: the label of ignored pixels; not a class index.
        device: where to count; must be the predictions' device.

    Example:
        >>> scores = SegmentationScores(2)
        >>> scores.update(torch.tensor([[0, 1, 1]]), torch.tensor([[0, 0, 255]]))
        >>> found = scores.compute()
        >>> found.miou, found.pixel_accuracy
        (0.25, 0.5)
    """

    def __init__(
        self, num_classes: int, ignore_index: int = 255, *, device: torch.device | str = "cpu"
    ) -> None:
        if num_classes < 2:
            raise ValueError(
                f"SegmentationScores: num_classes must be at least 2, got {num_classes}"
            )
        if 0 <= ignore_index < num_classes:
            raise ValueError(
                "SegmentationScores: ignore_index must not be a class, "
                f"0 to {num_classes - 1}, got {ignore_index}"
            )
        self.num_classes, self.ignore_index = num_classes, ignore_index
        # Arguments are checked in `update`, which is cheaper: torchmetrics would sort all pixels.
        # Its cache would survive `merge`.
        self._counts = MulticlassConfusionMatrix(
            num_classes, ignore_index=ignore_index, validate_args=False, compute_with_cache=False
        ).to(device)

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Counts a batch.

        Args:
            prediction: class indices, an integer dtype, of target's shape.
            target: (N, H, W) or (H, W), class indices 0 to K-1 or ignore_index.

        Raises:
            ValueError: the shapes differ, or a value is not a class index.
        """
        if prediction.shape != target.shape:
            raise ValueError(
                f"SegmentationScores: prediction must have the target's shape "
                f"{tuple(target.shape)}, got {tuple(prediction.shape)}"
            )
        self._check("prediction", prediction)
        self._check("target", target[target != self.ignore_index])
        with _any_order():
            self._counts.update(prediction, target)

    def _check(self, argument: str, classes: Tensor) -> None:
        if classes.is_floating_point() or classes.is_complex():
            raise ValueError(
                f"SegmentationScores: {argument} must hold integers, got {classes.dtype}"
            )
        if classes.numel() == 0:
            return
        least, greatest = (int(value) for value in classes.aminmax())
        if least < 0 or greatest >= self.num_classes:
            wrong = least if least < 0 else greatest
            raise ValueError(
                f"SegmentationScores: {argument} must hold the classes 0 to "
                f"{self.num_classes - 1}, got {wrong}"
            )

    def merge(self, other: SegmentationScores) -> None:
        """Adds the counts of another instance, such as another process's."""
        if (other.num_classes, other.ignore_index) != (self.num_classes, self.ignore_index):
            raise ValueError(
                "SegmentationScores: merge needs the same num_classes and ignore_index, "
                f"got {other.num_classes} and {other.ignore_index} for "
                f"{self.num_classes} and {self.ignore_index}"
            )
        self._counts.merge_state(other._counts)

    def reset(self) -> None:
        """Sets all counts to zero."""
        self._counts.reset()

    def compute(self) -> Scores:
        """The scores of all counts, summed over all processes if torch.distributed is
        initialized."""
        confusion = self._counts.compute().cpu()
        right = confusion.diagonal().double()
        labelled, predicted = confusion.sum(1), confusion.sum(0)
        iou = right / (labelled + predicted - right)  # 0 / 0 is nan: the class does not occur
        return Scores(
            miou=iou.nanmean().item(),
            pixel_accuracy=(right.sum() / confusion.sum()).item(),
            iou=iou,
            confusion=confusion,
        )


@contextmanager
def _any_order() -> Iterator[None]:
    """Disables deterministic algorithms: integer sums do not depend on the order, and torchmetrics
    would otherwise compare every pixel with all K*K pairs of classes."""
    strict = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(strict, warn_only=warn_only)
