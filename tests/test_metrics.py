"""The scores of scene parsing against counts made pixel by pixel."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path

import process_group
import pytest
import torch
from torch import Tensor

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from examples.metrics import Scores, SegmentationScores  # noqa: E402

CLASSES, IGNORED = 5, 255


def batches(count: int = 3, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Predictions and labels without class 3; some labels are ignored."""
    random = torch.Generator().manual_seed(seed)
    classes = torch.tensor([0, 1, 2, 4])
    found = []
    for _ in range(count):
        prediction, target = classes[torch.randint(4, (2, 2, 7, 9), generator=random)]
        target[torch.rand(2, 7, 9, generator=random) < 0.2] = IGNORED
        found.append((prediction, target))
    return found


def counted(pairs: Sequence[tuple[Tensor, Tensor]]) -> list[list[int]]:
    """The confusion matrix, counted pixel by pixel."""
    confusion = [[0] * CLASSES for _ in range(CLASSES)]
    for prediction, target in pairs:
        for found, true in zip(
            prediction.flatten().tolist(), target.flatten().tolist(), strict=True
        ):
            if true != IGNORED:
                confusion[true][found] += 1
    return confusion


def ratios(confusion: list[list[int]]) -> tuple[list[float], float]:
    iou = []
    for k in range(CLASSES):
        either = sum(confusion[k]) + sum(row[k] for row in confusion) - confusion[k][k]
        iou.append(confusion[k][k] / either if either else math.nan)
    right = sum(confusion[k][k] for k in range(CLASSES))
    return iou, right / sum(map(sum, confusion))


def scored(pairs: Sequence[tuple[Tensor, Tensor]]) -> SegmentationScores:
    scores = SegmentationScores(CLASSES, IGNORED)
    for prediction, target in pairs:
        scores.update(prediction, target)
    return scores


def same(first: Scores, second: Scores) -> bool:
    return (
        torch.equal(first.confusion, second.confusion)
        and torch.allclose(first.iou, second.iou, rtol=0, atol=0, equal_nan=True)
        and (first.miou, first.pixel_accuracy) == (second.miou, second.pixel_accuracy)
    )


def test_scores_equal_counts_pixel_by_pixel() -> None:
    pairs = batches()
    found = scored(pairs).compute()
    confusion = counted(pairs)
    iou, accuracy = ratios(confusion)
    assert found.confusion.tolist() == confusion
    assert found.iou.tolist() == pytest.approx(iou, rel=1e-12, nan_ok=True)
    assert math.isnan(found.iou[3])
    assert found.miou == pytest.approx(sum(v for v in iou if v == v) / 4, rel=1e-12)
    assert found.pixel_accuracy == pytest.approx(accuracy, rel=1e-12)


def test_a_class_that_is_only_predicted_counts_as_zero() -> None:
    scores = SegmentationScores(3)
    scores.update(torch.tensor([[0, 1]]), torch.tensor([[0, 0]]))
    found = scores.compute()
    assert found.iou[:2].tolist() == [0.5, 0.0] and math.isnan(found.iou[2])
    assert found.miou == 0.25


def test_ignored_pixels_do_not_count() -> None:
    (prediction, target), *_ = batches(1)
    other = torch.where(target == IGNORED, (prediction + 1) % CLASSES, prediction)
    assert same(scored([(prediction, target)]).compute(), scored([(other, target)]).compute())


def test_nothing_labelled_scores_nan() -> None:
    nothing = torch.full((1, 4, 4), IGNORED)
    found = scored([(torch.zeros_like(nothing), nothing)]).compute()
    assert math.isnan(found.miou) and math.isnan(found.pixel_accuracy)
    assert found.confusion.sum() == 0


@pytest.mark.parametrize(
    ("dtype", "ignored"), [(torch.uint8, 255), (torch.int32, 255), (torch.int16, -1)]
)
def test_labels_of_any_integer_type(dtype: torch.dtype, ignored: int) -> None:
    pairs = batches()
    scores = SegmentationScores(CLASSES, ignored)
    for prediction, target in pairs:
        label = torch.where(target == IGNORED, ignored, target)
        scores.update(prediction.to(dtype), label.to(dtype))
    assert same(scores.compute(), scored(pairs).compute())


def test_reset_clears_the_counts() -> None:
    first, second = batches(2)
    scores = scored([first])
    scores.compute()
    scores.reset()
    scores.update(*second)
    assert same(scores.compute(), scored([second]).compute())


def test_merge_adds_the_counts() -> None:
    first, second, third = batches(3)
    one, two = scored([first, second]), scored([third])
    one.compute()
    one.merge(two)
    assert same(one.compute(), scored([first, second, third]).compute())


def test_merge_needs_the_same_classes() -> None:
    with pytest.raises(ValueError, match="got 4 and 255 for 5 and 255"):
        SegmentationScores(5).merge(SegmentationScores(4))


def test_deterministic_algorithms_do_not_change_the_scores() -> None:
    pairs = batches()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        found = scored(pairs).compute()
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    assert same(found, scored(pairs).compute())


def _count_a_share(rank: int, folder: Path) -> None:
    found = scored(batches(5)[rank :: process_group.SIZE]).compute()
    torch.save(found, folder / f"{rank}.pt")


@pytest.mark.slow
def test_processes_score_together(tmp_path: Path) -> None:
    process_group.run(_count_a_share, tmp_path, tmp_path)
    for rank in range(process_group.SIZE):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=False)
        assert same(found, scored(batches(5)).compute())


@pytest.mark.parametrize("wrong", [5, 254, -1])
def test_a_label_out_of_range(wrong: int) -> None:
    target = torch.tensor([[0, wrong]])
    with pytest.raises(ValueError, match=f"target must hold the classes 0 to 4, got {wrong}"):
        SegmentationScores(5).update(torch.zeros_like(target), target)


def test_a_prediction_out_of_range() -> None:
    with pytest.raises(ValueError, match="prediction must hold the classes 0 to 4, got 5"):
        SegmentationScores(5).update(torch.tensor([[5]]), torch.tensor([[0]]))


def test_mismatched_shapes_are_refused() -> None:
    scores = SegmentationScores(5)
    with pytest.raises(ValueError, match=r"target's shape \(1, 2\), got \(1, 3\)"):
        scores.update(torch.zeros(1, 3, dtype=torch.long), torch.zeros(1, 2, dtype=torch.long))
    with pytest.raises(ValueError, match=r"integers, got torch\.float32"):
        scores.update(torch.zeros(1, 2), torch.zeros(1, 2, dtype=torch.long))
    with pytest.raises(ValueError, match="at least 2, got 1"):
        SegmentationScores(1)
    with pytest.raises(ValueError, match="must not be a class, 0 to 4, got 4"):
        SegmentationScores(5, 4)
