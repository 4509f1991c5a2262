"""Tables of scores, for one network and for several side by side."""

from __future__ import annotations

from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from examples.metrics import Scores


def of_one(names: Sequence[str], scores: Scores) -> Table:
    """One row per class; mean and pixel accuracy at the bottom."""
    shown = _table("IoU", "labelled", "predicted")
    total = scores.confusion.sum().item()
    for k, name in enumerate(names):
        shown.add_row(
            escape(name),
            _percent(scores.iou[k].item()),
            f"{scores.confusion[k].sum().item() / total:.1%}",
            f"{scores.confusion[:, k].sum().item() / total:.1%}",
        )
    shown.add_section()
    shown.add_row("[bold]mIoU[/]", f"[bold]{_percent(scores.miou)}[/]")
    shown.add_row("pixel accuracy", _percent(scores.pixel_accuracy))
    return shown


def side_by_side(names: Sequence[str], titles: Sequence[str], scores: Sequence[Scores]) -> Table:
    """The IoU per class and network, and the difference from the first network in points."""
    headings = [titles[0], *(text for title in titles[1:] for text in (title, "+/-"))]
    shown = _table(*headings)
    for k, name in enumerate(names):
        shown.add_row(escape(name), *_compared([each.iou[k].item() for each in scores]))
    shown.add_section()
    mious = _compared([each.miou for each in scores])
    shown.add_row("[bold]mIoU[/]", *(f"[bold]{value}[/]" for value in mious))
    shown.add_row("pixel accuracy", *_compared([each.pixel_accuracy for each in scores]))
    return shown


def _table(*headings: str) -> Table:
    shown = Table()
    shown.add_column("class")
    for heading in headings:
        shown.add_column(escape(heading), justify="right", overflow="fold")
    return shown


def _compared(values: Sequence[float]) -> list[str]:
    first = values[0]
    cells = [_percent(first)]
    for value in values[1:]:
        difference = 100 * (value - first)
        cells += [_percent(value), "-" if difference != difference else f"{difference:+.2f}"]
    return cells


def _percent(share: float) -> str:
    return "-" if share != share else f"{share:.2%}"
