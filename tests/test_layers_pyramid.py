"""PyramidPooling, PyramidPoolingConv and MixedPooling: equal to plain PyTorch, published layouts,
training, and common uses of modules."""

from __future__ import annotations

import copy
import doctest
import importlib
from collections.abc import Callable
from typing import Any

import operator_checks
import pytest
import torch
import torch.nn.functional as F
from checkpoints import count, randomise, renamed, same_state
from operator_checks import DEVICE, FORMATS
from torch import Tensor, nn

from stripctx import MixedPooling, PyramidPooling, PyramidPoolingConv

# The papers' modules in plain PyTorch, with the layers' convolutions and norms.


def plain_pyramid(layer: PyramidPooling | PyramidPoolingConv, x: Tensor) -> Tensor:
    pool = F.adaptive_avg_pool2d if layer.mode == "mean" else F.adaptive_max_pool2d
    parts = [
        F.interpolate(
            branch(pool(x, size)), x.shape[2:], mode="bilinear", align_corners=layer.align_corners
        )
        for size, branch in zip(layer.bins, layer.branches, strict=True)
    ]
    together = torch.cat([x, *parts] if layer.x_first else [*parts, x], 1)
    return layer.conv(together) if isinstance(layer, PyramidPoolingConv) else together


def plain_mixed(layer: MixedPooling, x: Tensor) -> Tensor:
    def up(y: Tensor) -> Tensor:
        return F.interpolate(y, x.shape[2:], mode="bilinear", align_corners=layer.align_corners)

    paths = []
    if layer.arms != "long":
        y = layer.conv1_1(x)
        fine, coarse = (F.adaptive_avg_pool2d(y, size) for size in layer.pool_sizes)
        total = layer.conv2_0(y) + up(layer.conv2_1(fine)) + up(layer.conv2_2(coarse))
        paths.append(layer.conv2_5(F.relu(total)))
    if layer.arms != "short":
        z = layer.conv1_2(x)
        strips = layer.pooling == "strip"
        cols = up(layer.conv2_3(F.adaptive_avg_pool2d(z, (1, None) if strips else 1)))
        rows = up(layer.conv2_4(F.adaptive_avg_pool2d(z, (None, 1) if strips else 1)))
        paths.append(layer.conv2_6(F.relu(cols + rows)))
    return F.relu(x + layer.conv3(torch.cat(paths, 1)))


def plain(layer: nn.Module, x: Tensor) -> Tensor:
    return (plain_mixed if isinstance(layer, MixedPooling) else plain_pyramid)(layer, x)


def group_norm(channels: int) -> nn.Module:
    return nn.GroupNorm(1, channels)


VARIANTS: dict[str, Callable[[], nn.Module]] = {
    "pyramid": lambda: PyramidPooling(8),
    "smp": lambda: PyramidPooling(8, x_first=False, global_norm=False),
    "mmseg": lambda: PyramidPooling(8, branch_channels=3, align_corners=False),
    "max": lambda: PyramidPooling(8, (1, (2, 3)), mode="max", norm_layer=None),
    "conv": lambda: PyramidPoolingConv(8, 5),
    "conv-smp": lambda: PyramidPoolingConv(8, 5, kernel_size=1, x_first=False, bias=True),
    "conv-mmseg": lambda: PyramidPoolingConv(8, 5, align_corners=False, norm_layer=group_norm),
    "strip": lambda: MixedPooling(8, (5, 3)),
    "mixed-short": lambda: MixedPooling(8, (5, (3, 2)), arms="short", align_corners=False),
    "mixed-long": lambda: MixedPooling(8, arms="long"),
    "mixed-global": lambda: MixedPooling(8, (5, 3), pooling="global"),
}
LAYERS = ("smp", "conv", "strip")
every_variant = pytest.mark.parametrize("name", VARIANTS)
every_layer = pytest.mark.parametrize("name", LAYERS)


def make(name: str) -> nn.Module:
    return randomise(VARIANTS[name]()).to(DEVICE)


@every_variant
@pytest.mark.parametrize("training", [True, False])
def test_equals_plain(name: str, training: bool) -> None:
    layer = make(name).double().train(training)
    other = copy.deepcopy(layer)
    for layout in FORMATS:
        layer.zero_grad()
        other.zero_grad()
        x = operator_checks.make((3, 8, 9, 7), torch.float64, layout).requires_grad_()
        y = x.detach().clone().requires_grad_()
        out, expected = layer(x), plain(other, y)
        weight = torch.randn_like(expected)
        (out * weight).sum().backward()
        (expected * weight).sum().backward()
        assert operator_checks.relative_error(out, expected) < 1e-12
        assert operator_checks.relative_error(x.grad, y.grad) < 1e-10
        for (key, a), b in zip(layer.named_parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, msg=key, rtol=1e-9, atol=1e-9)
        for a, b in zip(layer.buffers(), other.buffers(), strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("size", [(2, 8, 1, 1), (2, 8, 1, 9), (3, 8, 13, 2)])
@every_layer
def test_small_maps(name: str, size: tuple[int, ...]) -> None:
    """Maps smaller than the bins."""
    layer = make(name).double()
    x = torch.randn(size, dtype=torch.float64, device=DEVICE)
    assert operator_checks.relative_error(layer(x), plain(copy.deepcopy(layer), x)) < 1e-12


def test_conv_equals_pyramid_then_conv() -> None:
    fused = make("conv").eval()
    whole = PyramidPooling(8).to(DEVICE).eval()
    whole.load_state_dict({k: v for k, v in fused.state_dict().items() if "branches" in k})
    x = torch.randn(2, 8, 12, 10, device=DEVICE)
    assert whole.out_channels == fused.conv.in_channels == whole(x).shape[1] == 16
    torch.testing.assert_close(fused(x), fused.conv(whole(x)), rtol=1e-4, atol=1e-5)


# Published layouts, relative to the module.

CONV = (r"branches\.(\d)\.0\.", r"branches\.(\d)\.1\.", r"conv\.")
SEMSEG = (r"features.\1.1.", r"features.\1.2.")
MMSEG = (r"\1.1.conv.", r"\1.1.bn.")
SMP = (r"blocks.\1.pool.1.0.", r"blocks.\1.pool.1.1.")
UPERNET = (r"blocks.\1.1.0.", r"blocks.\1.1.1.")
ENCODING = ((r"branches\.0\.", "conv1."), (r"branches\.1\.", "conv2."))
ENCODING += ((r"branches\.2\.", "conv3."), (r"branches\.3\.", "conv4."))


def prefixed(prefix: str, replacements: tuple[str, str], conv: str) -> tuple[Any, ...]:
    names = (*(prefix + r for r in replacements), conv)
    return tuple(zip(CONV, names, strict=True))


PYRAMIDS = {
    "semseg": prefixed("", SEMSEG, ""),
    "PyTorch-Encoding": ENCODING,
    "mmseg": prefixed("", MMSEG, ""),
    "smp": prefixed("", SMP, ""),
    "UPerNet": prefixed("", UPERNET, ""),
}
HEADS = {
    "semseg": prefixed("ppm.", SEMSEG, "cls.0."),
    "PyTorch-Encoding": (*((a, f"0.{b}") for a, b in ENCODING), (r"conv\.", "1.")),
    "mmseg": prefixed("psp_modules.", MMSEG, "bottleneck.conv."),
    "smp": prefixed("psp.", SMP, "conv.0."),
    "UPerNet": prefixed("", UPERNET, "out_conv.0."),
}


@pytest.mark.parametrize("layout", PYRAMIDS)
@pytest.mark.parametrize("wrapped", [False, True])
def test_pyramid_loads(layout: str, wrapped: bool) -> None:
    options = {"global_norm": layout != "smp"}
    for kind, rules in (
        (lambda: PyramidPooling(8, **options), PYRAMIDS[layout]),
        (lambda: PyramidPoolingConv(8, 3, **options), HEADS[layout]),
    ):
        source, target = randomise(kind()), kind()
        state = renamed(source.state_dict(), *rules)
        assert not any(key.startswith("branches") for key in state)
        if wrapped:
            state = {"state_dict": {f"module.{key}": value for key, value in state.items()}}
        target.load_state_dict(state, strict=True)
        same_state(source, target)


def test_smp_global_branch() -> None:
    """smp's key layout: a bias in the first branch, norms in the others."""
    keys = {f"blocks.{i}.pool.1.0.weight" for i in range(4)} | {"blocks.0.pool.1.0.bias"}
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    keys |= {f"blocks.{i}.pool.1.1.{entry}" for i in (1, 2, 3) for entry in norm}
    layer = PyramidPooling(8, x_first=False, global_norm=False)
    rules = prefixed("", SMP, "")
    assert set(renamed(layer.state_dict(), *rules)) == keys


def test_mixed_keys_equal_upstreams() -> None:
    convs = ["conv1_1", "conv1_2", *(f"conv2_{i}" for i in range(7)), "conv3"]
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    keys = {f"{conv}.0.weight" for conv in convs}
    keys |= {f"{conv}.1.{entry}" for conv in convs for entry in norm}
    layer = MixedPooling(8)
    assert set(layer.state_dict()) == keys
    shapes = {name: tuple(p.shape) for name, p in layer.named_parameters() if p.dim() == 4}
    assert shapes["conv1_1.0.weight"] == (2, 8, 1, 1)
    assert shapes["conv2_3.0.weight"] == (2, 2, 1, 3)
    assert shapes["conv2_4.0.weight"] == (2, 2, 3, 1)
    assert shapes["conv3.0.weight"] == (8, 4, 1, 1)


def test_parameter_counts() -> None:
    """Equal to upstream's modules."""
    with torch.device("meta"):
        assert count(MixedPooling(1024)) == 4_397_568
        assert count(PyramidPooling(2048)) == 4 * (2048 * 512 + 2 * 512)
        assert count(PyramidPoolingConv(2048, 512).conv) == 4096 * 512 * 9


# A batch of one.


def test_batch_of_one_under_global_pooling() -> None:
    x = torch.randn(1, 8, 9, 7, device=DEVICE)
    layer = MixedPooling(8, pooling="global").to(DEVICE)
    words = 'got 1; with pooling="strip" there is no such map'
    operator_checks.raises(ValueError, words, lambda: layer(x))
    assert layer.eval()(x).isfinite().all()
    assert MixedPooling(8).to(DEVICE)(x).isfinite().all()
    grouped = MixedPooling(8, pooling="global", norm_layer=group_norm).to(DEVICE)
    assert grouped(x).isfinite().all()


@pytest.mark.parametrize("kind", [PyramidPooling, lambda c, **o: PyramidPoolingConv(c, 3, **o)])
def test_batch_of_one(kind: Callable[..., nn.Module]) -> None:
    x = torch.randn(1, 8, 9, 7, device=DEVICE)
    words = "needs a batch of two or more, got 1; with global_norm=False"
    operator_checks.raises(ValueError, words, lambda: kind(8).to(DEVICE)(x))
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(kind(8)).to(DEVICE)
    operator_checks.raises(ValueError, words, lambda: synced(x))
    assert kind(8).to(DEVICE).eval()(x).isfinite().all()
    for options in ({"global_norm": False}, {"norm_layer": None}, {"norm_layer": group_norm}):
        layer = kind(8, **options).to(DEVICE)
        layer(x).square().sum().backward()
        assert all(p.grad.isfinite().all() for p in layer.parameters())
    frozen = kind(8).to(DEVICE)
    for norm in frozen.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.eval()
    assert frozen(x).isfinite().all()


# Common uses of modules.


@every_layer
def test_trains(name: str) -> None:
    """Adam fits a target that requires context: the difference of a map from its mean."""
    layer = nn.Sequential(make(name), nn.LazyConv2d(8, 1)).to(DEVICE)
    x = torch.randn(4, 8, 10, 12, device=DEVICE) + torch.randn(4, 8, 1, 1, device=DEVICE)
    target = x.mean((2, 3), keepdim=True).expand_as(x)
    layer(x)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.02)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = F.mse_loss(layer(x), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: PyramidPooling(0), "PyramidPooling: in_channels must be positive, got 0"),
    (lambda: PyramidPooling(8, (1, 0)), "bins must be one to eight positive integers"),
    (lambda: PyramidPooling(8, ()), "bins must be one to eight positive integers"),
    (lambda: PyramidPooling(3), "branch_channels must be positive, got 0 from in_channels 3"),
    (lambda: PyramidPooling(8, mode="sum"), 'mode must be "mean" or "max", got \'sum\''),
    (lambda: PyramidPooling(8)(torch.zeros(2, 4, 5, 5)), "(N, 8, H, W), got (2, 4, 5, 5)"),
    (lambda: PyramidPoolingConv(8, 0), "out_channels must be positive, got 0"),
    (lambda: PyramidPoolingConv(8, 4, kernel_size=2), "kernel_size must be odd and positive"),
    (lambda: MixedPooling(3), "in_channels must be at least 4, got 3"),
    (lambda: MixedPooling(8, (20, 12, 6)), "pool_sizes must be two positive integers"),
    (lambda: MixedPooling(8, arms="all"), "arms must be one of both, short, long, got 'all'"),
    (lambda: MixedPooling(8, pooling="max"), "pooling must be one of strip, global, got 'max'"),
    (lambda: MixedPooling(8)(torch.zeros(8, 5, 5)), "(N, 8, H, W), got (8, 5, 5)"),
]


@pytest.mark.parametrize(("call", "words"), REFUSED)
def test_refuses(call: Callable[[], Any], words: str) -> None:
    operator_checks.raises(ValueError, words, call)


@pytest.mark.parametrize("module", ["strip", "pyramid"])
def test_examples_run(module: str) -> None:
    code = importlib.import_module(f"stripctx.layers.{module}")
    assert doctest.testmod(code, extraglobs={"torch": torch}).failed == 0
