"""Backbones: parameter counts, dilations, results against a plain ResNet, and weights."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import operator_checks
import oracles
import pytest
import torch
import torch.nn.functional as F
from checkpoints import (
    TO_ENCODING,
    TO_SEMSEG,
    TO_SEMSEG_IMAGENET,
    TO_TORCHVISION,
    State,
    count,
    randomise,
    renamed,
    same_state,
)
from networks import OPTIONS, every_network
from operator_checks import DEVICE
from torch import Tensor, nn

from stripctx import models
from stripctx.models.heads import FCNHead
from stripctx.models.network import Backbone
from stripctx.models.resnet import BLOCKS, ResNet, dilation_plan

# torchvision's published counts without the classifier's 1001 * features.
TORCHVISION_COUNTS = {
    18: 11_689_512 - 1000 * 513,
    34: 21_797_672 - 1000 * 513,
    50: 25_557_032 - 1000 * 2049,
    101: 44_549_160 - 1000 * 2049,
    152: 60_192_808 - 1000 * 2049,
}
NAMED_COUNTS = {
    "resnext50_32x4d": 25_028_904 - 1000 * 2049,
    "resnext101_32x8d": 88_791_336 - 1000 * 2049,
    "wide_resnet50_2": 68_883_240 - 1000 * 2049,
    "wide_resnet101_2": 126_886_696 - 1000 * 2049,
    "mobilenet_v2": 3_504_872 - 1000 * 1281,
}


def test_parameter_counts() -> None:
    with torch.device("meta"):
        for depth, expected in TORCHVISION_COUNTS.items():
            assert count(ResNet(depth)) == expected
        for name, expected in NAMED_COUNTS.items():
            assert count(models.create_backbone(name)) == expected
        plain = ResNet(50, stem="64-64-128")
        gated = ResNet(50, stem="64-64-128", dilation="multi_grid", strip_pooling=True)
        head, aux = 15_690_000, FCNHead(1024, 150)
        # SPNet-50 on ADE20K: 41.72 M without strip pooling in the backbone, 47.84 M with it
        assert abs(count(plain) + head + count(aux) - 41_720_000) < 10_000
        assert abs(count(gated) + head + count(aux) - 47_840_000) < 10_000
        larger = ResNet(101, stem="64-64-128", dilation="multi_grid", strip_pooling=True)
        assert abs(count(larger) + head + count(aux) - 66_830_000) < 10_000
        assert count(gated) - count(plain) == 28_992 + 115_328 + 460_032 + 3 * 1_837_568


PLANS: dict[tuple[str, int], list[tuple[int, ...]]] = {
    ("uniform", 8): [(1,) * 3, (1,) * 4, (2,) * 6, (4,) * 3],
    ("uniform", 16): [(1,) * 3, (1,) * 4, (1,) * 6, (2,) * 3],
    ("uniform", 4): [(1,) * 3, (2,) * 4, (4,) * 6, (8,) * 3],
    ("uniform", 32): [(1,) * 3, (1,) * 4, (1,) * 6, (1,) * 3],
    ("contracted", 8): [(1,) * 3, (1,) * 4, (1, 2, 2, 2, 2, 2), (2, 4, 4)],
    ("contracted", 16): [(1,) * 3, (1,) * 4, (1,) * 6, (1, 2, 2)],
    ("contracted", 4): [(1,) * 3, (1, 2, 2, 2), (2, 4, 4, 4, 4, 4), (4, 8, 8)],
    ("multi_grid", 8): [(1,) * 3, (1,) * 4, (1, 2, 2, 2, 2, 2), (4, 8, 16)],
}


@pytest.mark.parametrize(("scheme", "output_stride"), PLANS)
def test_dilations(scheme: str, output_stride: int) -> None:
    with torch.device("meta"):
        network = ResNet(50, output_stride=output_stride, dilation=scheme)
        stages = (network.layer1, network.layer2, network.layer3, network.layer4)
        for stage, expected in zip(stages, PLANS[scheme, output_stride], strict=True):
            assert tuple(block.conv2.dilation[0] for block in stage) == expected
            assert all(block.conv2.padding == block.conv2.dilation for block in stage)
        features = network(torch.empty(1, 3, 64, 64))
    strides = [min(stride, output_stride) for stride in (4, 8, 16, 32)]
    assert [64 // f.shape[2] for f in features] == strides
    assert tuple(f.shape[1] for f in features) == network.channels == (256, 512, 1024, 2048)


def test_dilations_of_basic_blocks() -> None:
    """mmseg, whose stem is 32-32-64, does not dilate a basic block's second convolution."""
    with torch.device("meta"):
        for stem, second in (("7x7", (2, 4)), ("64-64-128", (2, 4)), ("32-32-64", (1, 1))):
            network = ResNet(34, stem=stem)
            for stage, first, dilation in zip(
                (network.layer3, network.layer4), (1, 2), second, strict=True
            ):
                assert stage[0].conv1.dilation == (first, first)
                assert stage[1].conv1.dilation == (2 * first, 2 * first)
                assert all(block.conv2.dilation == (dilation, dilation) for block in stage)


def test_positions_of_strip_pooling() -> None:
    with torch.device("meta"):
        for depth, last in ((50, 5), (101, 22)):
            network = ResNet(depth, strip_pooling=True)
            gated = {n[: -len(".spm")] for n, _ in network.named_modules() if n.endswith(".spm")}
            fixed = {"layer1.2", "layer2.3", "layer4.0", "layer4.1", "layer4.2"}
            assert gated == fixed | {f"layer3.{last}"}
        assert ResNet(50).layer4[0].spm is None


def plain_resnet(
    state: State, x: Tensor, depth: int, dilations: list[tuple[int, ...]]
) -> list[Tensor]:
    """A ResNet in eval mode with torchvision's or SPNet's keys: deep stem, strip pooling."""

    def norm(x: Tensor, name: str) -> Tensor:
        parts = [state[f"{name}.{p}"] for p in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(x, *parts)

    def unit(x: Tensor, conv: str, bn: str, **options: Any) -> Tensor:
        return norm(F.conv2d(x, state[f"{conv}.weight"], **options), bn)

    def gate(x: Tensor, spm: str) -> Tensor:
        rows = unit(x.mean(3, keepdim=True), f"{spm}.conv1", f"{spm}.bn1", padding=(1, 0))
        cols = unit(x.mean(2, keepdim=True), f"{spm}.conv2", f"{spm}.bn2", padding=(0, 1))
        mixed = F.relu(rows + cols)
        return F.conv2d(mixed, state[f"{spm}.conv3.weight"], state[f"{spm}.conv3.bias"]).sigmoid()

    if "conv1.weight" in state:
        x = F.relu(unit(x, "conv1", "bn1", stride=2, padding=3))
    else:
        x = F.relu(unit(x, "conv1.0", "conv1.1", stride=2, padding=1))
        x = F.relu(unit(x, "conv1.3", "conv1.4", padding=1))
        x = F.relu(unit(x, "conv1.6", "bn1", padding=1))
    x, features = F.max_pool2d(x, 3, 2, 1), []
    for stage, blocks in enumerate(dilations, 1):
        for index, dilation in enumerate(blocks):
            name, shortcut = f"layer{stage}.{index}", x
            stride = 2 if stage > 1 and index == 0 and max(blocks) == 1 else 1
            options = {"padding": dilation, "dilation": dilation, "stride": stride}
            groups = 1
            if depth >= 50:  # a group's 3x3 convolution has the group's channels only
                outputs, inputs, *_ = state[f"{name}.conv2.weight"].shape
                groups = outputs // inputs
            if f"{name}.downsample.0.weight" in state:
                shortcut = unit(x, f"{name}.downsample.0", f"{name}.downsample.1", stride=stride)
            if depth < 50:
                x = F.relu(unit(x, f"{name}.conv1", f"{name}.bn1", **options))
                d = max(blocks)
                x = unit(x, f"{name}.conv2", f"{name}.bn2", padding=d, dilation=d)
            else:
                x = F.relu(unit(x, f"{name}.conv1", f"{name}.bn1"))
                x = F.relu(unit(x, f"{name}.conv2", f"{name}.bn2", groups=groups, **options))
                if f"{name}.spm.conv1.weight" in state:
                    x = x * gate(x, f"{name}.spm")
                x = unit(x, f"{name}.conv3", f"{name}.bn3")
            x = F.relu(x + shortcut)
        features.append(x)
    return features


@pytest.mark.parametrize(
    ("depth", "options", "rules"),
    [
        (18, {"output_stride": 16}, TO_TORCHVISION),
        (18, {}, TO_TORCHVISION),
        (50, {"dilation": "uniform"}, TO_TORCHVISION),
        (50, {"groups": 8, "group_width": 4}, TO_TORCHVISION),
        (50, {"stem": "64-64-128", "dilation": "multi_grid", "strip_pooling": True}, TO_ENCODING),
    ],
)
def test_resnet_equals_plain(
    depth: int, options: dict[str, Any], rules: tuple[tuple[str, str], ...]
) -> None:
    network = randomise(ResNet(depth, **options)).double().to(DEVICE).eval()
    plan = dilation_plan(
        BLOCKS[depth], options.get("output_stride", 8), options.get("dilation", "contracted")
    )
    x = torch.randn(1, 3, 33, 41, dtype=torch.float64, device=DEVICE)
    state = renamed(network.state_dict(), *rules)
    with torch.no_grad():
        expected = plain_resnet(state, x, depth, [stage.block_dilations for stage in plan])
        for value, want in zip(network(x), expected, strict=True):
            assert operator_checks.relative_error(value, want) < 1e-11


def plain_mobilenet(state: State, x: Tensor, lost: dict[int, int]) -> list[Tensor]:
    """MobileNetV2 in eval mode with torchvision's keys; `lost` maps the features whose stride was
    replaced to the dilation used instead. Strides, expansions and features are written out here."""
    strided, taken = {0, 2, 4, 7, 14} - set(lost), (6, 10, 17, 18)

    def unit(x: Tensor, conv: str, bn: str, **options: Any) -> Tensor:
        parts = [state[f"{bn}.{p}"] for p in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(F.conv2d(x, state[f"{conv}.weight"], **options), *parts)

    features = []
    for index in range(19):
        name, stride = f"features.{index}", 2 if index in strided else 1
        if index in (0, 18):
            options = {"stride": stride, "padding": 1 if index == 0 else 0}
            x = F.relu6(unit(x, f"{name}.0", f"{name}.1", **options))
        else:
            before, layer = x, 0
            if index > 1:
                x, layer = F.relu6(unit(x, f"{name}.conv.0.0", f"{name}.conv.0.1")), 1
            d = lost.get(index, 1)
            options = {"stride": stride, "padding": d, "dilation": d, "groups": x.shape[1]}
            x = F.relu6(unit(x, f"{name}.conv.{layer}.0", f"{name}.conv.{layer}.1", **options))
            x = unit(x, f"{name}.conv.{layer + 1}", f"{name}.conv.{layer + 2}")
            x = x + before if x.shape == before.shape else x
        if index in taken:
            features.append(x)
    return features


@pytest.mark.parametrize(("output_stride", "lost"), [(32, {}), (16, {14: 2}), (8, {7: 2, 14: 4})])
def test_mobilenet_equals_plain(output_stride: int, lost: dict[int, int]) -> None:
    network = models.create_backbone("mobilenet_v2", output_stride=output_stride)
    randomise(network).double().to(DEVICE).eval()
    x = torch.randn(1, 3, 65, 97, dtype=torch.float64, device=DEVICE)
    with torch.no_grad():
        expected = plain_mobilenet(renamed(network.state_dict(), *TO_MOBILENET), x, lost)
        for value, want in zip(network(x), expected, strict=True):
            assert operator_checks.relative_error(value, want) < 1e-11
    assert tuple(each.shape[1] for each in expected) == network.channels


# torchvision numbers the blocks across the stages: 2, 5, 4, 7 and 1 of them.
TO_MOBILENET = tuple(
    (rf"{stage}\.{index}\.", f"features.{first + index}.")
    for stage, first, length in (
        ("stem", 0, 2), ("layer1", 2, 5), ("layer2", 7, 4), ("layer3", 11, 7), ("layer4", 18, 1)
    )
    for index in range(length)
)  # fmt: skip


@pytest.mark.parametrize("rules", [TO_MOBILENET, TO_SEMSEG])
def test_weights_of_mobilenet(rules: tuple[tuple[str, str], ...]) -> None:
    """Loads torchvision's weights without the classifier, and those of HANet's networks."""
    source = randomise(models.create_backbone("mobilenet_v2"))
    state = renamed(source.state_dict(), *rules)
    if rules is TO_MOBILENET:
        state |= {"classifier.1.weight": torch.zeros(9, 1280), "classifier.1.bias": torch.zeros(9)}
    same_state(source, models.create_backbone("mobilenet_v2", weights=state))


BACKBONE_LAYOUTS = {
    "ours": ("resnet18s", ()),
    "torchvision": ("resnet18", TO_TORCHVISION),
    "PyTorch-Encoding": ("resnet18s", TO_ENCODING),
    "semseg's ImageNet": ("resnet18s", TO_SEMSEG_IMAGENET),
    "semseg": ("resnet18s", TO_SEMSEG),
    "HANet, 7x7": ("resnet18", TO_SEMSEG),
    "HANet, ResNeXt": ("resnext50_32x4d", TO_SEMSEG),
    "torchvision's ResNeXt": ("resnext50_32x4d", TO_TORCHVISION),
    "mmseg": ("resnet18c", ()),
}


@pytest.mark.parametrize("layout", BACKBONE_LAYOUTS)
def test_backbone_weights(layout: str) -> None:
    """Loads strictly; ImageNet's classifier is left out."""
    name, rules = BACKBONE_LAYOUTS[layout]
    source = randomise(models.create_backbone(name))
    state = renamed(source.state_dict(), *rules)
    target = models.create_backbone(name)
    target.load_state_dict(state, strict=True)
    same_state(source, target)
    imagenet = {**state, "fc.weight": torch.zeros(9, 512), "fc.bias": torch.zeros(9)}
    keys = list(imagenet)
    same_state(source, models.create_backbone(randomise(target), weights=imagenet))
    assert list(imagenet) == keys


def test_backbone_weights_of_a_file(tmp_path: Path) -> None:
    """With a wrapper's prefix, and from a version without the norms' batch counters."""
    source = randomise(models.create_backbone("resnet18"))
    state = renamed(source.state_dict(), *TO_TORCHVISION)
    old = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    wrapped = {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in old.items()}}
    torch.save(wrapped, tmp_path / "weights.pth")
    same_state(source, models.create_backbone("resnet18", weights=wrapped))
    for path in (tmp_path / "weights.pth", str(tmp_path / "weights.pth")):
        same_state(source, models.create_backbone("resnet18", weights=path))


@every_network
def test_every_network_takes_weights(name: str, tmp_path: Path) -> None:
    source = randomise(models.create_backbone("resnet18"))
    torch.save(renamed(source.state_dict(), *TO_TORCHVISION), tmp_path / "weights.pth")
    options = {**OPTIONS[name], "backbone_weights": tmp_path / "weights.pth"}
    network = models.create(name, num_classes=5, backbone="resnet18", **options)
    same_state(source, network.backbone)


def test_weights_without_strip_pooling_leave_it_unchanged() -> None:
    source = randomise(models.create_backbone("resnet50s"))
    target = models.create_backbone("resnet50s", strip_pooling=True, weights=source.state_dict())
    for key, value in source.state_dict().items():
        assert torch.equal(value, target.state_dict()[key])


def test_unsafe_file_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": Path("x")}, tmp_path / "weights.pth")
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        models.create_backbone("resnet18", weights=tmp_path / "weights.pth")


def test_custom_backbone() -> None:
    class Own(Backbone):
        channels = (4, 4, 8, 8)

        def __init__(self) -> None:
            super().__init__()
            self.convs = nn.ModuleList(
                nn.Conv2d(a, b, 3, 2, 1) for a, b in ((3, 4), (4, 4), (4, 8), (8, 8))
            )

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            features = []
            for conv in self.convs:
                x = conv(x)
                features.append(x)
            return tuple(features)

    outputs = models.fcn(6, Own())(torch.randn(2, 3, 37, 41))
    assert {name: y.shape for name, y in outputs.items()} == dict.fromkeys(
        ("out", "aux"), (2, 6, 37, 41)
    )


def test_timm_backbone() -> None:
    oracles.timm()
    network = models.fcn(3, "timm:resnet18", output_stride=16)
    assert network.backbone.channels == (64, 128, 256, 512)
    assert network(torch.randn(2, 3, 64, 48))["aux"].shape == (2, 3, 64, 48)


@pytest.mark.parametrize("name", ["pvt_v2_b0", "hrnet_w18_small", "vgg11", "vit_tiny_patch16_224"])
def test_timm_at_its_native_stride(name: str) -> None:
    """Networks without dilation in timm accept images of any size too."""
    oracles.timm()
    network = models.fcn(3, f"timm:{name}", output_stride=32).eval()
    assert network(torch.randn(1, 3, 50, 70))["out"].shape == (1, 3, 50, 70)


@pytest.mark.parametrize(
    "name", ["swin_tiny_patch4_window7_224", "pvt_v2_b0", "hrnet_w18_small", "vgg11", "densenet121"]
)
def test_timm_without_dilation_is_refused(name: str) -> None:
    oracles.timm()
    with torch.device("meta"), pytest.raises(ValueError, match="output_stride must be 32 for"):
        models.create_backbone(f"timm:{name}", output_stride=8)


def test_missing_timm_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    words = "name 'resnet18' needs the timm library: pip install stripctx[timm]"
    operator_checks.raises(ValueError, words, lambda: models.create_backbone("timm:resnet18"))


SMALL = {"conv1.weight": torch.zeros(64, 3, 7, 7)}
REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: ResNet(20), "ResNet: depth must be 18, 34, 50, 101 or 152, got 20"),
    (lambda: ResNet(18, stem="3x3"), "stem must be one of 7x7, 64-64-128, 32-32-64, got '3x3'"),
    (lambda: ResNet(18, output_stride=2), "output_stride must be 4, 8, 16 or 32, got 2"),
    (lambda: ResNet(18, dilation="hdc"), "dilation must be one of contracted, uniform, multi_grid"),
    (lambda: ResNet(34, strip_pooling=True), "strip_pooling needs a depth of 50 or more, got 34"),
    (lambda: ResNet(34, groups=32), "groups need a depth of 50 or more, got 34"),
    (
        lambda: models.create_backbone("mobilenet_v2", output_stride=4),
        "MobileNetV2: output_stride must be 8, 16 or 32, got 4",
    ),
    (
        lambda: models.create_backbone("mobilenet_v2", strip_pooling=True),
        "strip_pooling needs a ResNet, got 'mobilenet_v2'",
    ),
    (lambda: models.create_backbone("vgg16"), "backbone must be resnet18, 34, 50, 101 or 152"),
    (lambda: models.create_backbone("resnet50d"), "got 'resnet50d'"),
    (
        lambda: models.create_backbone("timm:resnet18", strip_pooling=True),
        "strip_pooling needs a ResNet, got 'timm:resnet18'",
    ),
    (
        lambda: models.create_backbone("timm:resnet18", output_stride=4),
        "TimmBackbone: output_stride must be 8, 16 or 32, got 4",
    ),
    (
        lambda: models.create_backbone("resnet18", weights=SMALL),
        "ResNet: 99 entries are missing, stem.1.weight, stem.1.bias",
    ),
    (
        lambda: models.create_backbone(
            "resnet18", weights={**ResNet(18).state_dict(), "head.bias": torch.zeros(1)}
        ),
        "ResNet: 1 entries are none of its own, head.bias",
    ),
    (lambda: models.create_backbone("resnet18", weights=[1]), "weights must be a path or hold a"),
]


@pytest.mark.parametrize(("call", "words"), REFUSED)
def test_refuses(call: Callable[[], Any], words: str) -> None:
    operator_checks.raises(ValueError, words, call)
