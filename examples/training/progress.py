"""Training progress: a bar on a terminal, elsewhere a line at intervals."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

QUIET = 30.0  # seconds between lines when the output is not a terminal


class Display:
    """Shows steps, loss, the last validation's mIoU, and the remaining time.

    Args:
        console: where to print; None prints nothing.
        title: a title for the run.
        start, steps: the first step, and the total number of steps.
    """

    def __init__(self, console: Console | None, title: str, start: int, steps: int) -> None:
        self.console, self.steps = console, steps
        self.loss, self.miou = "-", "-"
        self.started, self.start, self.spoke = time.monotonic(), start, time.monotonic()
        self.bar = Progress(
            TextColumn(title),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}, mIoU {task.fields[miou]}"),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=console is None or not console.is_terminal,
        )
        self.task = self.bar.add_task("", total=steps, completed=start, loss="-", miou="-")

    def __enter__(self) -> Display:
        self.bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bar.stop()

    def step(self, step: int, loss: float | None = None) -> None:
        if loss is not None:
            self.loss = f"{loss:.3f}"
        self.bar.update(self.task, completed=step, loss=self.loss, miou=self.miou)
        now = time.monotonic()
        quiet = self.console is None or self.console.is_terminal
        if quiet or now - self.spoke < QUIET or step == self.start:
            return
        self.spoke = now
        left = (now - self.started) / (step - self.start) * (self.steps - step)
        self.say(
            f"step {step} of {self.steps}: loss {self.loss}, mIoU {self.miou}, {_clock(left)} left"
        )

    def validated(self, step: int, miou: float, pixel_accuracy: float) -> None:
        self.miou = f"{miou:.1%}"
        self.say(
            f"step {step} of {self.steps}: loss {self.loss}, validation mIoU {miou:.2%}, "
            f"pixel accuracy {pixel_accuracy:.2%}"
        )

    def say(self, text: str) -> None:
        if self.console is not None:
            self.console.print(text, highlight=False, markup=False)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
