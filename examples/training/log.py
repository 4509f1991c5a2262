"""The curve of a run as CSV: a row every few steps, and a row for every validation.

Losses are means over the steps since the previous row. Columns without a value are empty.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from examples.training.loggers import Logger

COLUMNS = (
    "step", "epoch", "rate", "loss", "out", "aux", "se", "se_stage3",
    "miou", "pixel_accuracy", "seconds",
)  # fmt: skip
NO_CURVES = ("step", "epoch", "seconds")
CURVE = COLUMNS[:-1]  # the columns that must agree between two runs of one recipe


class Log:
    """Appends rows to a file.

    Args:
        path: the file; created if it does not exist.
        step: the step at which the run resumes; later rows are dropped.
        loggers: further loggers that receive the same values.
    """

    def __init__(self, path: Path, step: int, loggers: Sequence[Logger] = ()) -> None:
        kept = [row for row in read(path) if int(row["step"]) <= step] if path.exists() else []
        temporary = path.with_name(path.name + ".partial")
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(kept)
        os.replace(temporary, path)
        self.seconds = float(kept[-1]["seconds"]) if kept else 0.0
        self.file = path.open("a", newline="")
        self.writer = csv.DictWriter(self.file, COLUMNS)
        self.loggers = loggers

    def write(self, **values: Any) -> None:
        """Writes one row and flushes it to the file."""
        shown = {k: f"{v:.8g}" if isinstance(v, float) else v for k, v in values.items()}
        self.writer.writerow(shown)
        self.file.flush()
        part = "validation" if "miou" in values else "train"
        told = {f"{part}/{k}": v for k, v in values.items() if k not in NO_CURVES}
        for logger in self.loggers:
            logger.write(values["step"], told)

    def close(self) -> None:
        self.file.close()
        for logger in self.loggers:
            logger.close()


def read(path: Path | str) -> list[dict[str, str]]:
    """The complete rows; an incomplete last row is skipped."""
    with Path(path).open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [row for row in rows if None not in row.values() and row["step"].isdigit()]


def curve(path: Path | str, column: str) -> tuple[list[int], list[float]]:
    """The steps at which a column has a value, and these values."""
    rows = [row for row in read(path) if row[column]]
    return [int(row["step"]) for row in rows], [float(row[column]) for row in rows]
