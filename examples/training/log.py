"""The curve of a run as CSV: a row every few steps, and a row for every validation.

Losses are means over the steps since the row before; a column stays empty where there is nothing.
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
CURVE = COLUMNS[:-1]  # what two runs of one recipe have in common


class Log:
    """Appends to a file.

    Args:
        path: the file; made where there is none.
        step: rows after this step are of a run that was killed, and are dropped.
        loggers: are told the same.
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
        """One row; it is in the file when this returns."""
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
    """The complete rows; a last one that was cut off is left out."""
    with Path(path).open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [row for row in rows if None not in row.values() and row["step"].isdigit()]


def curve(path: Path | str, column: str) -> tuple[list[int], list[float]]:
    """The steps at which a column has a value, and the values."""
    rows = [row for row in read(path) if row[column]]
    return [int(row["step"]) for row in rows], [float(row[column]) for row in rows]
