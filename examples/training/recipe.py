"""Recipes: everything that decides how a network is trained, as a YAML file.

    network:
      name: pspnet
      backbone: resnet50s
    train:
      batch: 16

What a recipe leaves out has the default that stands here; what is not known here is an error, as
is a value of another type. `base: other.yaml`, beside it, starts from another recipe. Any setting
can be replaced where a command is called:

    python examples/train.py examples/recipes/camvid.yaml data.root=~/camvid train.epochs=10

`network.options={lateral: true}` replaces all options, `network.options.lateral=true` one. Names
and paths are text as it is written: a class may be called `off`.
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
    """A recipe that cannot be; the message names the file or the setting."""


@dataclass
class Network:
    """name: one of stripctx.models.available(), or `smp:Segformer`, `transformers:...`; see
    `examples.training.third_party`. backbone: as create_backbone takes it, or `tiny`.
    weights: the file of the backbone's ImageNet weights, or none. options: of the network's
    function. start: a checkpoint of the whole network to start from, ours or a published one; see
    `examples.training.start`."""

    name: str = "fcn"
    backbone: str = "resnet50"
    weights: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    start: str = ""


@dataclass
class Loss:
    """criterion: of stripctx.losses, with its options. class_weights: none, or one a class.
    balance: `median` or `log` weighs classes by how often they occur in the labels of training; see
    `examples.training.balance`."""

    criterion: str = "cross_entropy"
    options: dict[str, Any] = field(default_factory=dict)
    aux_weight: float = number(0.4, low=0)
    se_weight: float = number(0.2, low=0)
    class_weights: list[float] = field(default_factory=list, metadata=within(low=0))
    balance: str = "none"


@dataclass
class Group:
    """The parameters whose names this regular expression finds (re.search; a parameter belongs to
    the first group that finds it): their rate is the optimizer's times `rate`."""

    match: str = ""
    rate: float = number(1.0, low=0)
    weight_decay: float | None = number(None, low=0)  # that of the optimizer


@dataclass
class Optimizer:
    """kind: `sgd`, or `adamw`, which has no momentum. After i of n steps the rate is
    rate * (1 - i / n) ** power, and during the first `warmup` steps (i + 1) / warmup of that."""

    kind: str = "sgd"
    rate: float = number(0.01, low=0)
    momentum: float = number(0.9, low=0, high=1)
    weight_decay: float = number(1e-4, low=0)
    power: float = number(0.9, low=0)
    warmup: int = number(0, low=0)
    groups: list[Group] = field(default_factory=list)


@dataclass
class Train:
    """batch: scenes a step, of all processes together. epochs, or if positive, steps: how long.
    precision: of autocast; float16 scales the loss. norms: `sync` over the processes of GPUs,
    `own`, or `frozen` at their statistics. validate_every: epochs between validations, the last
    epoch always; 0 is never. validate_scale: that of the images then, seen whole. save_every: steps
    between checkpoints, besides one an epoch; 0 is none. log_every: steps a line of the log.
    workers: processes that read scenes, for each that trains. average: if positive, what is
    validated, and kept as best.pt, is the moving average of the weights, with this decay a step;
    0.999 say."""

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
    """How the trained network is scored: a name of examples.protocols and its options."""

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
    """A recipe from its file, with changes like `train.batch=8`.

    Raises:
        RecipeError: the file or a setting is missing, unknown, or of another type.
    """
    return _merge(str(path), _written(Path(path)), changes)


def from_dict(values: dict[str, Any], changes: Sequence[str] = ()) -> Recipe:
    """A recipe as `to_dict` gave it, from a checkpoint say."""
    return _merge("recipe", OmegaConf.create(values), changes)


def to_dict(recipe: Recipe) -> dict[str, Any]:
    """Dictionaries, lists, strings and numbers only."""
    values = OmegaConf.to_container(OmegaConf.structured(recipe))
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def to_yaml(recipe: Recipe) -> str:
    return OmegaConf.to_yaml(OmegaConf.structured(recipe))


def _written(path: Path) -> DictConfig:
    """What the file says, over what its base says."""
    try:
        found = written.parse(path.read_text(), Recipe)
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({error.strerror})") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: is not YAML ({_reason(error)})") from None
    if not isinstance(found, dict):
        raise RecipeError(f"{path}: must hold sections like network and train")
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
    """What a recipe says of label files goes where a change names another dataset."""
    named = [c.partition("=")[2] for c in changes if c.startswith("data.name=")]
    if named and named[-1] != whole.data.name:
        plain = OmegaConf.structured(Data)
        for setting in OF_FOLDERS:
            OmegaConf.update(whole, f"data.{setting}", plain[setting], merge=False)


def _change(whole: DictConfig, change: str) -> None:
    """By `setting=value`."""
    key, equals, text = change.partition("=")
    if not equals:
        raise RecipeError(f"{change}: a change must read setting=value")
    try:
        value = written.parse_change(text, written.declared(Recipe, key))
        # these are replaced, where merging would keep those of another name
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
    """What is wrong, in a line, and where OmegaConf knows it, the name of the setting."""
    if isinstance(error, MarkedYAMLError):
        mark = error.problem_mark
        return f"{error.problem}, line {mark.line + 1}" if mark else str(error.problem)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    key = getattr(error, "full_key", None)
    said = lines[0] if lines else type(error).__name__
    return f"{key}: {said}" if key and not said.startswith(key) else said
