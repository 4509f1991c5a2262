"""Networks: any size, gradients, numbers, and what users do to modules."""

from __future__ import annotations

import copy
import doctest
import importlib
import pickle
from collections.abc import Callable
from typing import Any

import battery
import pytest
import torch
from battery import DEVICE
from checkpoints import randomise
from torch import Tensor, nn

from stripctx import losses, models
from stripctx.models.network import FCNHead, SegmentationNetwork

# Complete networks. A new network is one more line here.

NETWORKS: dict[str, Callable[[], SegmentationNetwork]] = {
    "fcn": lambda: models.fcn(5, "resnet18"),
}
every_network = pytest.mark.parametrize("name", NETWORKS)


def make(name: str) -> SegmentationNetwork:
    return NETWORKS[name]().to(DEVICE)


def image(*size: int) -> Tensor:
    return torch.randn(size, device=DEVICE)


def test_registry() -> None:
    assert models.available() == sorted(NETWORKS)
    network = models.create("fcn", num_classes=4, backbone="resnet18", aux=False)
    assert network.head[4].out_channels == 4 and network.aux_head is None


@every_network
@pytest.mark.parametrize("size", [(2, 64, 64), (2, 1, 1), (2, 33, 50), (3, 97, 7), (1, 65, 129)])
def test_any_size(name: str, size: tuple[int, int, int]) -> None:
    batch, height, width = size
    network = make(name).eval()
    x = image(batch, 3, height, width)
    with torch.no_grad():
        outputs = network(x)
        assert list(outputs) == ["out"]
        assert outputs["out"].shape == (batch, 5, height, width)
        assert outputs["out"].isfinite().all()
        if height > 1:
            outputs = network.train()(x)
            assert {"out", "aux"} <= set(outputs)
            assert outputs["aux"].shape == outputs["out"].shape


@every_network
def test_training_step(name: str) -> None:
    """Every parameter gets a finite gradient; the auxiliary head is evaluated once."""
    network = make(name)
    outputs = network(image(2, 3, 64, 64))
    target = torch.randint(0, 5, (2, 64, 64), device=DEVICE)
    losses.SegmentationLoss()(outputs, target).backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key
        assert parameter.grad.any(), key
    for key, value in network.state_dict().items():
        assert not key.endswith("num_batches_tracked") or value == 1, key


@every_network
def test_survives_conversions(name: str) -> None:
    network = randomise(make(name)).eval()
    x = image(1, 3, 64, 64)
    with torch.no_grad():
        expected = network(x)["out"]
        for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
            assert torch.equal(other(x)["out"], expected)
            other.load_state_dict({f"module.{k}": v for k, v in network.state_dict().items()})
        state = dict(network.named_parameters()) | dict(network.named_buffers())
        assert torch.equal(torch.func.functional_call(network, state, (x,))["out"], expected)
        fresh = make(name).eval()
        fresh.load_state_dict(network.state_dict(), strict=True)
        assert torch.equal(fresh(x)["out"], expected)
        synced = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(network))
        assert any(isinstance(m, nn.SyncBatchNorm) for m in synced.modules())
        torch.testing.assert_close(synced(x)["out"], expected)


@every_network
def test_channels_last_and_autocast(name: str) -> None:
    network = make(name).eval()
    x = image(2, 3, 64, 64)
    with torch.no_grad():
        expected = network(x)["out"]
        last = network.to(memory_format=torch.channels_last)(
            x.contiguous(memory_format=torch.channels_last)
        )["out"]
        assert battery.relative_error(last, expected) < 1e-4
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
        outputs = network.train()(x)
        assert outputs["out"].dtype == torch.bfloat16
        assert all(y.isfinite().all() for y in outputs.values())
        loss = losses.SegmentationLoss()(outputs, torch.zeros_like(x[:, 0]).long())
    loss.backward()
    assert loss.dtype == torch.float32
    assert all(p.grad.isfinite().all() for p in network.parameters())


@every_network
def test_compiles(name: str) -> None:
    torch._dynamo.reset()
    network = make(name)
    for module in network.modules():
        if isinstance(module, nn.Dropout | nn.Dropout2d):
            module.p = 0.0
    compiled = torch.compile(network, fullgraph=True, dynamic=True, backend="aot_eager")
    for height, width in ((64, 64), (48, 70)):
        x = image(2, 3, height, width)
        got, want = compiled(x), network(x)
        assert got.keys() == want.keys()
        for key, value in want.items():
            torch.testing.assert_close(got[key], value, rtol=1e-4, atol=1e-4)


@every_network
def test_exports(name: str) -> None:
    """For any size of image."""
    network = make(name).eval()
    sizes = {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    with torch.no_grad():
        program = torch.export.export(network, (image(2, 3, 64, 96),), dynamic_shapes=(sizes,))
        for height, width in ((64, 96), (65, 77)):
            x = image(2, 3, height, width)
            torch.testing.assert_close(program.module()(x)["out"], network(x)["out"])


def test_without_auxiliary_head() -> None:
    """Upstream's SPNet fails to train so."""
    network = models.fcn(5, "resnet18", aux=False)
    assert list(network(torch.randn(2, 3, 32, 32))) == ["out"]


def test_other_norm_layers() -> None:
    network = models.fcn(5, "resnet18", norm_layer=lambda channels: nn.GroupNorm(4, channels))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in network.modules())
    assert network(torch.randn(1, 3, 32, 32))["out"].shape == (1, 5, 32, 32)


REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: models.create("unet", num_classes=3), "name must be one of"),
    (lambda: models.fcn(0, "resnet18"), "num_classes must be positive, got 0"),
    (lambda: FCNHead(0, 3), "in_channels must be positive, got 0"),
    (
        lambda: models.fcn(3, "resnet18")(torch.zeros(1, 4, 8, 8)),
        "FCN: x must have shape (N, 3, H, W), got (1, 4, 8, 8)",
    ),
    (lambda: models.fcn(3, "resnet18")(torch.zeros(3, 8, 8)), "got (3, 8, 8)"),
]


@pytest.mark.parametrize(("call", "words"), REFUSED)
def test_refuses(call: Callable[[], Any], words: str) -> None:
    battery.raises(ValueError, words, call)


@pytest.mark.parametrize("module", ["backbones", "fcn", "network", "registry", "resnet"])
def test_examples_run(module: str) -> None:
    code = importlib.import_module(f"stripctx.models.{module}")
    results = doctest.testmod(code, extraglobs={"torch": torch, **vars(models)})
    assert results.failed == 0
