"""Recipes: YAML files with all settings of a training run.

    network:
      name: pspnet
      backbone: resnet50s
    train:
      batch: 16

Settings that a recipe omits have the defaults defined here. Unknown settings and values of the
wrong type are errors. `base: other.yaml`, in the same folder, starts from another recipe. Any
setting can be overridden on the command line:

    python examples/train.py examples/recipes/camvid.yaml data.root=~/camvid train.epochs=10

`network.options={lateral: true}` replaces all options, `network.options.lateral=true` sets one.
Names and paths are taken literally: a class may be called `off`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError, YAMLError

from examples import ranges
from examples.data.augment import Augmentation
from examples.data.catalogue import OF_FOLDERS, Data
from examples.data.labels import DataError
from examples.ranges import number, within
from examples.training import written
from examples.training.balance import BALANCES

_REPLACED = (".options", ".values", ".colours")
OPTIMIZERS = ("sgd", "adamw")
PRECISIONS = ("float32", "bfloat16", "float16")


class RecipeError(Exception):
    """An invalid recipe; the message names the file or the setting."""


@dataclass
class Network:
    """name: one of stripctx.models.available(), or `smp:Segformer`, `transformers:...`; see
    `examples.training.third_party`. backbone: a name that create_backbone accepts, or `tiny`.
    weights: the file of the backbone's ImageNet weights; none if empty. options: arguments of the
    network's function. start: a checkpoint of the whole network to start from, ours or a published
    one; see `examples.training.start`."""

    name: str = "fcn"
    backbone: str = "resnet50"
    weights: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    start: str = ""


@dataclass
class Loss:
    """criterion: a loss of stripctx.losses and its options. class_weights: empty, or one weight per
    class. balance: `median` or `log` weights classes by their frequency in the training labels; see
    `examples.training.balance`."""

    criterion: str = "cross_entropy"
    options: dict[str, Any] = field(default_factory=dict)
    aux_weight: float = number(0.4, low=0)
    se_weight: float = number(0.2, low=0)
    class_weights: list[float] = field(default_factory=list, metadata=within(low=0))
    balance: str = "none"


@dataclass
class Group:
    """A parameter group: the parameters whose names match this regular expression (re.search; the
    first matching group applies). Their learning rate is the optimizer's times `rate`."""

    match: str = ""
    rate: float = number(1.0, low=0)
    weight_decay: float | None = number(None, low=0)  # default: the optimizer's


@dataclass
class Optimizer:
    """kind: `sgd` or `adamw`; the latter has no momentum. The learning rate of step i of n is
    rate * (1 - i / n) ** power, multiplied by (i + 1) / warmup during the first `warmup` steps."""

    kind: str = "sgd"
    rate: float = number(0.01, low=0)
    momentum: float = number(0.9, low=0, high=1)
    weight_decay: float = number(1e-4, low=0)
    power: float = number(0.9, low=0)
    warmup: int = number(0, low=0)
    groups: list[Group] = field(default_factory=list)


@dataclass
class Train:
    """batch: scenes per step over all processes. epochs: length of the run, unless steps is
    positive. steps: length of the run in steps. precision: autocast's; float16 uses loss scaling.
    norms: `sync` synchronizes batch norms between the processes (GPUs), `own` does not, `frozen`
    keeps their statistics. validate_every: epochs between validations; the last epoch is always
    validated; 0 disables validation. validate_scale: scale of the validation images, which are not
    cropped. save_every: steps between checkpoints in addition to one per epoch; 0 is none.
    log_every: steps per row of the log. workers: reader processes per training process. average: if
    positive, the decay per step of a moving average of the weights (such as 0.999), which is then
    validated and saved as best.pt."""

    batch: int = number(16, low=1)
    epochs: int = number(100, low=0)
    steps: int = number(0, low=0)
    seed: int = number(0, low=0)
    precision: str = "float32"
    compile: bool = False
    channels_last: bool = False
    norms: str = "sync"
    workers: int = number(4, low=0)
    validate_every: int = number(1, low=0)
    validate_scale: float = number(1.0, above=0)
    save_every: int = number(500, low=0)
    log_every: int = number(10, low=1)
    average: float = number(0.0, low=0, below=1)


@dataclass
class Evaluation:
    """The evaluation protocol of the trained network: a name from examples.protocols and its
    options."""

    protocol: str = "whole"
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class Recipe:
    data: Data = field(default_factory=Data)
    augmentation: Augmentation = field(default_factory=Augmentation)
    network: Network = field(default_factory=Network)
    loss: Loss = field(default_factory=Loss)
    optimizer: Optimizer = field(default_factory=Optimizer)
    train: Train = field(default_factory=Train)
    evaluation: Evaluation = field(default_factory=Evaluation)


def load(path: Path | str, changes: Sequence[str] = ()) -> Recipe:
    """Loads a recipe from a file and applies changes such as `train.batch=8`.

    Raises:
        RecipeError: the file or a setting is missing, unknown, or of the wrong type.
    """
    return _merge(str(path), _written(Path(path)), changes)


def from_dict(values: dict[str, Any], changes: Sequence[str] = ()) -> Recipe:
    """Restores a recipe from the result of `to_dict`, such as a checkpoint's."""
    return _merge("recipe", OmegaConf.create(values), changes)


def to_dict(recipe: Recipe) -> dict[str, Any]:
    """Converts a recipe to plain dictionaries, lists, strings and numbers."""
    values = OmegaConf.to_container(OmegaConf.structured(recipe))
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def to_yaml(recipe: Recipe) -> str:
    return OmegaConf.to_yaml(OmegaConf.structured(recipe))


def _written(path: Path) -> DictConfig:
    """The settings of the file merged over those of its base."""
    try:
        found = written.parse(path.read_text(), Recipe)
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({error.strerror})") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: is not YAML ({_reason(error)})") from None
    if not isinstance(found, dict):
        raise RecipeError(f"{path}: must contain sections such as network and train")
    base = found.pop("base", None)
    own = OmegaConf.create(found)
    if base is None:
        return own
    whole = OmegaConf.merge(_written(path.parent / str(base)), own)
    assert isinstance(whole, DictConfig)
    return whole


def _merge(source: str, values: Any, changes: Sequence[str]) -> Recipe:
    try:
        whole = OmegaConf.merge(OmegaConf.structured(Recipe), values)
    except (OmegaConfBaseException, ValueError) as error:
        raise RecipeError(f"{source}: {_reason(error)}") from None
    assert isinstance(whole, DictConfig)
    _leave_own_labels(whole, changes)
    for change in changes:
        _change(whole, change)
    try:
        recipe = OmegaConf.to_object(whole)
    except (OmegaConfBaseException, ValueError) as error:
        raise RecipeError(f"{source}: {_reason(error)}") from None
    assert isinstance(recipe, Recipe)
    _check(recipe)
    return recipe


def _leave_own_labels(whole: DictConfig, changes: Sequence[str]) -> None:
    """Drops the recipe's label file settings if a change selects another dataset."""
    named = [c.partition("=")[2] for c in changes if c.startswith("data.name=")]
    if named and named[-1] != whole.data.name:
        plain = OmegaConf.structured(Data)
        for setting in OF_FOLDERS:
            OmegaConf.update(whole, f"data.{setting}", plain[setting], merge=False)


def _change(whole: DictConfig, change: str) -> None:
    """Applies one change, `setting=value`."""
    key, equals, text = change.partition("=")
    if not equals:
        raise RecipeError(f"{change}: a change must have the form setting=value")
    try:
        value = written.parse_change(text, written.declared(Recipe, key))
        # These settings are replaced; merging would keep entries with other keys.
        OmegaConf.update(whole, key, value, merge=not key.endswith(_REPLACED))
    except YAMLError as error:
        reason = f"{_reason(error)}; names with # or : in a list need quotes"
        raise RecipeError(f"{key}: cannot be read, {text!r} ({reason})") from None
    except (OmegaConfBaseException, ValueError, TypeError, AttributeError, IndexError) as error:
        said = _reason(error)
        raise RecipeError(said if said.startswith(key) else f"{key}: {said}") from None


def _check(recipe: Recipe) -> None:
    try:
        recipe.data = recipe.data.resolved()
        recipe.data.check()
        recipe.augmentation.check()
        ranges.check("", recipe)
    except (ValueError, DataError) as error:
        raise RecipeError(str(error)) from None
    train = recipe.train
    if train.steps == train.epochs == 0:
        raise RecipeError(f"train.epochs: must be positive, got {train.epochs}")
    if train.precision not in PRECISIONS:
        raise RecipeError(
            f"train.precision: must be one of {', '.join(PRECISIONS)}, got {train.precision}"
        )
    if recipe.optimizer.kind not in OPTIMIZERS:
        raise RecipeError(
            f"optimizer.kind: must be {' or '.join(OPTIMIZERS)}, got {recipe.optimizer.kind}"
        )
    if recipe.loss.balance not in BALANCES:
        raise RecipeError(
            f"loss.balance: must be one of {', '.join(BALANCES)}, got {recipe.loss.balance}"
        )
    if recipe.loss.balance != "none" and recipe.loss.class_weights:
        raise RecipeError("loss.balance: computes weights, but loss.class_weights gives some")
    if train.norms not in ("sync", "own", "frozen"):
        raise RecipeError(f"train.norms: must be sync, own or frozen, got {train.norms}")


def _reason(error: Exception) -> str:
    """The error in one line, with the setting's name where OmegaConf reports it."""
    if isinstance(error, MarkedYAMLError):
        mark = error.problem_mark
        return f"{error.problem}, line {mark.line + 1}" if mark else str(error.problem)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    key = getattr(error, "full_key", None)
    said = lines[0] if lines else type(error).__name__
    return f"{key}: {said}" if key and not said.startswith(key) else said
