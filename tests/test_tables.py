"""Tables and figures of scores: class names are plain text, even if they resemble markup."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from examples import figures, tables  # noqa: E402
from examples.metrics import Scores, SegmentationScores  # noqa: E402

NAMES = ["[bold]", "$a_$", "never"]


@pytest.fixture
def scores() -> Scores:
    counting = SegmentationScores(3)
    counting.update(torch.tensor([[0, 1, 1, 1]]), torch.tensor([[0, 0, 1, 1]]))
    return counting.compute()


def shown(table: object) -> list[list[str]]:
    console = Console(record=True, width=120)
    console.print(table)
    rows = [line.strip("│┃ ") for line in console.export_text().splitlines()]
    cells = [row.replace("┃", "│").split("│") for row in rows]
    return [[cell.strip() for cell in row] for row in cells if len(row) > 1]


def test_table_of_one_network(scores: Scores) -> None:
    assert shown(tables.of_one(NAMES, scores)) == [
        ["class", "IoU", "labelled", "predicted"],
        ["[bold]", "50.00%", "50.0%", "25.0%"],
        ["$a_$", "66.67%", "50.0%", "75.0%"],
        ["never", "-", "0.0%", "0.0%"],
        ["mIoU", "58.33%"],
        ["pixel accuracy", "75.00%"],
    ]


def test_table_side_by_side(scores: Scores) -> None:
    counting = SegmentationScores(3)
    counting.update(torch.tensor([[0, 0, 1, 1]]), torch.tensor([[0, 0, 1, 1]]))
    found = shown(tables.side_by_side(NAMES, ["a.pt", "[b].pt"], [scores, counting.compute()]))
    assert found == [
        ["class", "a.pt", "[b].pt", "+/-"],
        ["[bold]", "50.00%", "100.00%", "+50.00"],
        ["$a_$", "66.67%", "100.00%", "+33.33"],
        ["never", "-", "-", "-"],
        ["mIoU", "58.33%", "100.00%", "+41.67"],
        ["pixel accuracy", "75.00%", "100.00%", "+25.00"],
    ]


def test_picture_of_confusions(scores: Scores, tmp_path: Path) -> None:
    """A single $ must not start a formula."""
    figures.confusion(["$x^$", "b", "$\\nothing$"], scores, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000
