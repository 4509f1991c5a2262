"""Recipes: reading, overriding, writing, errors; the networks of all recipes in the repository can
be built."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import oracles
import pytest
import torch

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from examples import protocols  # noqa: E402
from examples.data import catalogue  # noqa: E402
from examples.training import networks, objective, recipe  # noqa: E402
from examples.training.processes import Processes  # noqa: E402
from examples.training.recipe import RecipeError  # noqa: E402

WRITTEN = """
network: {name: spnet, backbone: tiny, options: {mixed: 1, strip_pooling: false}}
optimizer:
  groups:
    - {match: ^head, rate: 10}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(WRITTEN)
    return path


def test_recipe_is_read_changed_and_written(file: Path) -> None:
    found = recipe.load(file, ["train.batch=8", "augmentation.crop=[64,128]", "data.root=~/x"])
    assert found.network.options == {"mixed": 1, "strip_pooling": False}
    assert found.optimizer.groups == [recipe.Group("^head", 10.0)]
    assert (found.train.batch, found.augmentation.crop, found.data.root) == (8, [64, 128], "~/x")
    assert recipe.from_dict(recipe.to_dict(found)) == found
    file.write_text(recipe.to_yaml(found))
    assert recipe.load(file) == found


def test_options_are_replaced_or_changed_one_by_one(file: Path) -> None:
    for change, options in (
        ("network.options={}", {}),
        ("network.options={bins: [1, 2]}", {"bins": [1, 2]}),
        ("network.options.mixed=2", {"mixed": 2, "strip_pooling": False}),
    ):
        assert recipe.load(file, [change]).network.options == options


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("train.batch=x", "train.batch: Value 'x'"),
        ("train.bach=3", "train.bach: Key 'bach' not in 'Train'"),
        ("train.batch", "train.batch: a change must have the form setting=value"),
        ("train.precision=int8", "train.precision: must be one of float32"),
        ("train.batch=0", "train.batch: must be positive, got 0"),
        ("train.norms=off", "train.norms: must be sync"),
        ("augmentation.crop=[8]", "augmentation.crop: must be 2 positive numbers, got [8]"),
    ],
)
def test_invalid_changes(file: Path, change: str, words: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(words)):
        recipe.load(file, [change])


@pytest.mark.parametrize(
    "change",
    [
        "train.batch=-1", "train.workers=-1", "train.save_every=-5", "train.log_every=0",
        "train.validate_every=-1", "train.validate_scale=0", "train.steps=-1", "train.seed=-1",
        "train.epochs=-3", "optimizer.rate=-0.1", "optimizer.rate=nan", "optimizer.momentum=1.1",
        "optimizer.weight_decay=-1e-4", "optimizer.power=-1", "optimizer.groups[0].rate=-1",
        "optimizer.warmup=-1", "train.average=1",
        "loss.aux_weight=-0.4", "loss.se_weight=inf", "loss.class_weights=[1,-1]",
        "data.height=0", "data.width=-1", "data.train_count=0", "data.val_count=0",
        "data.max_pixels=0", "data.white=-1", "augmentation.rotation=-10",
        "augmentation.scale=[2,1]", "augmentation.scale=[0,1]", "augmentation.long_side=-1",
        "augmentation.jitter=0.6", "augmentation.blur_sigma=[2,1]",
    ],
)  # fmt: skip
def test_numbers_out_of_range(file: Path, change: str) -> None:
    setting = change.partition("=")[0]
    with pytest.raises(RecipeError, match=f"^{re.escape(setting)}: must be .*, got ") as refusal:
        recipe.load(file, [change])
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("text", ["network: {nam: spnet}", "a: [", "- 3", None, b"PK\3\4\xff"])
def test_invalid_files(file: Path, text: str | bytes | None) -> None:
    if text is None:
        file.unlink()
    else:
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(RecipeError, match=f"^{file}: [^\n]*$"):
        recipe.load(file)


# Text is not converted.

NAMES = ["on", "off", "yes", "no", "y", "true", "null", "~", "007", "1_0", "1e3", "2024-01-01"]


def test_names_are_read_as_text(file: Path) -> None:
    listed = ", ".join(NAMES)
    found = recipe.load(file, ["data.name=folders", f"data.classes=[{listed}]"])
    assert found.data.classes == NAMES
    file.write_text(
        f"data: {{name: folders, classes: [{listed}], root: off}}\nloss: {{criterion: no}}"
    )
    found = recipe.load(file)
    assert (found.data.classes, found.data.root) == (NAMES, "off")
    assert found.loss.criterion == "no"
    assert recipe.from_dict(recipe.to_dict(found)) == found
    file.write_text(recipe.to_yaml(found))
    assert recipe.load(file) == found


@pytest.mark.parametrize("path", ["/data/set #2", "off", "C: x", "[a]", "~/x", "a: b", "007", "-"])
def test_paths_are_read_as_text(file: Path, path: str) -> None:
    assert recipe.load(file, [f"data.root={path}"]).data.root == path
    for quoted in (f"'{path}'", f'"{path}"'):
        assert recipe.load(file, [f"data.root={quoted}"]).data.root == path
    file.write_text(f"data: {{root: '{path}'}}")
    assert recipe.load(file).data.root == path


def test_names_that_contain_a_hash(file: Path) -> None:
    """Accepted if quoted or within a word, otherwise refused instead of being cut off."""
    found = recipe.load(file, ["data.name=folders", "data.classes=['#1', a#2]"])
    assert found.data.classes == ["#1", "a#2"]
    for change in ("data.classes=[a, #1]", "data.classes=[a #1]"):
        with pytest.raises(RecipeError, match=r"^data\.classes: cannot be read, .* need quotes"):
            recipe.load(file, [change])


def test_other_values_keep_their_yaml_types(file: Path) -> None:
    changes = ["train.compile=on", "optimizer.rate=1e-3", "optimizer.groups[0].rate=2"]
    changes += ["network.options={lateral: true, eps: 1e-5, drop: null}"]
    found = recipe.load(file, changes)
    assert (found.train.compile, found.optimizer.rate) == (True, 1e-3)
    assert found.optimizer.groups[0].rate == 2
    assert found.network.options == {"lateral": True, "eps": 1e-5, "drop": None}


def test_duplicate_settings(file: Path) -> None:
    for text in ("train: {batch: 2, batch: 4}", "train: {batch: 2}\ntrain: {epochs: 2}"):
        file.write_text(text)
        with pytest.raises(RecipeError, match=f"^{file}: .*(batch|train) occurs twice"):
            recipe.load(file)


def test_network_of_a_recipe(file: Path) -> None:
    settings = recipe.load(file).network
    network = networks.build(settings, 5).eval()
    assert network(torch.zeros(1, 3, 40, 56))["out"].shape == (1, 5, 40, 56)
    assert not networks.takes_heights(network)
    hanet = networks.build(recipe.Network("deeplabv3plus_hanet", "tiny"), 5)
    assert networks.takes_heights(hanet)
    for name, words in (("unet", "must be one of"), ("fcn", "mixed")):
        with pytest.raises(RecipeError, match=words):
            networks.build(recipe.Network(name, "tiny", "", settings.options), 5)


def test_weights_in_timms_names(tmp_path: Path) -> None:
    """In timm's own layout, and in that of our backbones."""
    timm = oracles.timm()
    with pytest.raises(RecipeError, match=r"^network: .*no_such_network"):
        networks.build(recipe.Network("fcn", "timm:no_such_network"), 5)
    name, path = "mobilenetv3_small_050", tmp_path / "some.pth"
    own = timm.create_model(name, features_only=True).state_dict()
    for start in ("", "network."):
        torch.save({start + key: value for key, value in own.items()}, path)
        network = networks.build(recipe.Network("fcn", f"timm:{name}", str(path)), 5)
        loaded = network.backbone.network.state_dict()
        assert all(torch.equal(loaded[key], value) for key, value in own.items())


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    """The error names the setting and the file, in one line."""
    own = networks.TinyBackbone().state_dict()
    whole = {**own, "stem.0.weight": own["stem.0.weight"][:5]}
    part = {key: value for key, value in own.items() if key != "stem.0.weight"}
    for name, entries in (("size", whole), ("part", part), ("list", [1])):
        torch.save(entries, tmp_path / f"{name}.pth")
    (tmp_path / "text.pth").write_text("no checkpoint")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "size.pth").read_bytes()[:900])
    for name, words in (
        ("size", "size mismatch for stem.0.weight"),
        ("part", "1 entries are missing, stem.0.weight"),
        ("list", "weights must be a path or hold a state_dict"),
        ("text", ""),
        ("cut", ""),
    ):
        path = tmp_path / f"{name}.pth"
        with pytest.raises(RecipeError) as refusal:
            networks.build(recipe.Network("fcn", "tiny", str(path)), 5)
        said = str(refusal.value)
        assert said.startswith(f"network.weights: {path} does not fit (") and words in said
        assert "\n" not in said
    missing = recipe.Network("fcn", "tiny", str(tmp_path / "none.pth"))
    with pytest.raises(RecipeError, match=r"^network\.weights: there is no file .*none\.pth$"):
        networks.build(missing, 5)
    networks.build(missing, 5, pretrained=False)


RECIPES = sorted((REPOSITORY / "examples" / "recipes").glob("*.yaml"))


def test_recipe_extends_its_base(file: Path) -> None:
    other = file.with_name("other.yaml")
    other.write_text("base: small.yaml\nnetwork: {options: {mixed: 2}}\ntrain: {batch: 4}\n")
    found = recipe.load(other)
    assert found.network.options == {"mixed": 2, "strip_pooling": False}
    assert (found.network.name, found.train.batch) == ("spnet", 4)
    other.write_text("base: missing.yaml")
    with pytest.raises(RecipeError, match=r"missing\.yaml: cannot be read"):
        recipe.load(other)


@pytest.mark.parametrize("path", RECIPES, ids=[path.stem for path in RECIPES])
def test_recipe_in_the_repository(path: Path) -> None:
    """The network, its parameter groups, loss and protocol can be created; nothing is computed."""
    found = recipe.load(path)
    classes = len(catalogue.labelling(found.data).classes)
    if ":" in found.network.name:
        oracles.transformers() if "transformers" in found.network.name else oracles.whole_smp()
    elif ":" in found.network.backbone:
        oracles.timm()
    with torch.device("meta"):
        network = networks.build(found.network, classes)
    sgd = objective.optimizer(network, found.optimizer)
    count = sum(len(group["params"]) for group in sgd.param_groups)
    assert count == sum(parameter.requires_grad for parameter in network.parameters())
    objective.Objective(found.loss, classes, Processes())
    protocols.create(found.evaluation.protocol, **found.evaluation.options)


# The settings of each recipe including its bases: crop, batch, rate, length of training (in steps
# from 1000, otherwise in epochs), long side at scale 1 and crop of the test.
COMES_TO = {
    "ade20k_encnet50": (480, 16, 0.004, 180, 520, 480),
    "ade20k_encnet50_dist": (480, 16, 0.01, 120, 520, 480),
    "ade20k_encnet101": (576, 16, 0.004, 180, 640, 576),
    "ade20k_fcn50": (480, 16, 0.004, 180, 520, 480),
    "ade20k_pspnet50": (473, 16, 0.01, 100, 512, 473),
    "ade20k_pspnet101": (473, 16, 0.01, 100, 512, 473),
    "ade20k_spnet50": (480, 16, 0.01, 120, 512, 480),
    "ade20k_spnet101": (480, 16, 0.01, 120, 512, 480),
    "cityscapes_encnet101": (768, 8, 0.002, 240, 2048, 768),
    "cityscapes_hanet101_os8": (768, 8, 0.01, 40_000, None, 1024),
    "cityscapes_hanet101_os16": (768, 8, 0.01, 40_000, None, 1024),
    "cityscapes_hanet101_best": (864, 12, 0.01, 90_000, None, 1024),
    "cityscapes_hanet_mobilenet": (768, 8, 0.01, 40_000, None, 1024),
    "cityscapes_hanet_resnext101": (864, 12, 0.01, 90_000, None, 1024),
    "cityscapes_pspnet50": (713, 16, 0.01, 200, 2048, 713),
    "cityscapes_pspnet101": (713, 16, 0.01, 200, 2048, 713),
    "cityscapes_spnet101": (768, 8, 0.005, 180, 2048, 768),
    "cityscapes_upernet50": (769, 8, 0.01, 40_000, 2048, 769),
    "cityscapes_upernet101": (769, 8, 0.01, 40_000, 2048, 769),
    "pascal_context_encnet50": (480, 16, 0.001, 80, 520, 480),
    "pascal_context_encnet101": (480, 16, 0.001, 80, 520, 480),
    "voc_encnet101": (480, 16, 0.001, 80, 520, 480),
    "voc_encnet101_last": (480, 16, 0.0001, 50, 520, 480),
    "voc_pspnet50": (473, 16, 0.01, 50, 512, 473),
    "voc_pspnet101": (473, 16, 0.01, 50, 512, 473),
}
OWN = {
    "camvid",
    "camvid_lite0",
    "camvid_segformer",
    "camvid_upernet",
    "scenes",
}  # recipes with our own settings


def test_every_recipe_of_a_paper_is_listed() -> None:
    assert {path.stem for path in RECIPES} == COMES_TO.keys() | OWN


@pytest.mark.parametrize("name", COMES_TO)
def test_settings_of_each_recipe(name: str) -> None:
    found = recipe.load(REPOSITORY / "examples" / "recipes" / f"{name}.yaml")
    train, look, varied = found.train, found.evaluation.options, found.augmentation
    assert varied.crop[0] == varied.crop[1] and look["flip"]
    assert (
        varied.crop[0], train.batch, found.optimizer.rate, train.steps or train.epochs,
        look.get("base_size"), look["crop"],
    ) == COMES_TO[name]  # fmt: skip
    system = found.network.name
    narrow = name == "cityscapes_spnet101"
    assert varied.scale == ([0.5, 1.75] if narrow else [0.5, 2.0])
    turned = {"pspnet": 10, "spnet": 1 if narrow else 10}.get(system, 0)
    assert varied.rotation == turned and varied.rotation_chance == varied.flip_chance == 0.5
    assert varied.long_side == (look["base_size"] if system in ("encnet", "fcn") else 0)
    hanet, upernet = system == "deeplabv3plus_hanet", system == "upernet"
    unblurred = ("encnet", "fcn", "upernet")
    assert varied.blur_chance == (0 if system in unblurred else 1 if hanet else 0.5)
    assert found.optimizer.weight_decay == (5e-4 if hanet or upernet else 1e-4)
    assert found.loss.aux_weight == (0.2 if system in ("encnet", "fcn") else 0.4)
    heads = [(group.match, group.rate, group.weight_decay) for group in found.optimizer.groups]
    assert heads == (
        []
        if upernet
        else [(r"^head\.hanet\d", 1, 1e-4)]
        if hanet
        else [(r"^(head|aux_head)\.", 10, None)]
    )


def test_hanet_recipes_draw_half_of_their_crops_by_class() -> None:
    hanet = [path for path in RECIPES if "hanet" in path.stem]
    for path in hanet:
        data = recipe.load(path).data
        assert (data.class_uniform, data.tile) == (0.5, 1024)
    assert len(hanet) == 5
