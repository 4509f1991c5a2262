"""Loggers of a training run besides log.csv: TensorBoard, or one that a function of yours creates.

    python examples/train.py ... --log-to tensorboard
    python examples/train.py ... --log-to my_logging:Wandb --log-to tensorboard

`my_logging.py` is in the current directory, or installed. For Weights & Biases:

    import wandb

    class Wandb:
        def __init__(self, folder, recipe, step):
            self.run = wandb.init(project="scenes", id=folder.name, resume="allow", config=recipe)
        def write(self, step, values):
            self.run.log(values, step=step)
        def close(self):
            self.run.finish()

For MLflow:

    import mlflow

    class Mlflow:
        def __init__(self, folder, recipe, step):
            mlflow.start_run(run_name=folder.name)
            mlflow.log_dict(recipe, "recipe.json")
        def write(self, step, values):
            mlflow.log_metrics({name.replace("/", "."): v for name, v in values.items()}, step)
        def close(self):
            mlflow.end_run()
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from examples.commands import ArgumentError

TENSORBOARD = "tensorboard"


class Logger(Protocol):
    """Receives the same values as log.csv, in the first process only."""

    def write(self, step: int, values: dict[str, float]) -> None:
        """Records the values of a step: `train/loss`, `train/out`, `train/rate` and so on, or
        `validation/miou` and `validation/pixel_accuracy`. A resumed run may write the same steps
        again, with the same values."""
        ...

    def close(self) -> None: ...


# Called with the run's folder, its recipe as returned by `recipe.to_dict`, and the first step.
Maker = Callable[[Path, dict[str, Any], int], Logger]


def find(name: str) -> Maker:
    """Returns the function that creates the logger of this name.

    Args:
        name: `tensorboard`, or `module:function`, which is imported.

    Raises:
        ArgumentError: the function cannot be imported.
    """
    if name == TENSORBOARD:
        try:
            importlib.import_module("torch.utils.tensorboard")
        except ImportError:
            raise ArgumentError(
                "--log-to: tensorboard needs its package: pip install stripctx[tensorboard]"
            ) from None
        return TensorBoard
    module, colon, function = name.partition(":")
    if not colon:
        raise ArgumentError(f"--log-to: must be {TENSORBOARD} or module:function, got {name}")
    if "" not in sys.path:
        sys.path.append("")  # the current directory
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ArgumentError(f"--log-to: {name} cannot be imported ({error})") from None


class TensorBoard:
    """Writes into the subfolder `tensorboard` of the run; the recipe is stored as text."""

    def __init__(self, folder: Path, recipe: dict[str, Any], step: int) -> None:
        board = importlib.import_module("torch.utils.tensorboard")
        # A resumed run repeats the steps after its last checkpoint: drop their earlier records.
        self.writer = board.SummaryWriter(str(folder / TENSORBOARD), purge_step=step + 1)
        if step == 0:
            lines = [f"    {name}: {values}" for name, values in recipe.items()]
            self.writer.add_text("recipe", "\n".join(lines), 0)

    def write(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()
