"""Properties of all networks: any size, gradients, counts, and common uses of modules."""

from __future__ import annotations

import copy
import doctest
import importlib
import pickle
from collections.abc import Callable
from pkgutil import iter_modules
from typing import Any

import operator_checks
import pytest
import torch
from checkpoints import count, randomise
from networks import (
    GLOBAL_NORMS,
    OPTIONS,
    as_dict,
    every_network,
    every_segmentation,
    image,
    make,
    undropped,
)
from operator_checks import DEVICE
from torch import Tensor, nn

from stripctx import losses, models
from stripctx.models import registry
from stripctx.models.heads import FCNHead


def test_registry() -> None:
    assert models.available() == sorted(OPTIONS)
    network = models.create("fcn", num_classes=4, backbone="resnet18", aux=False)
    assert network.head[4].out_channels == 4 and network.aux_head is None


@every_segmentation
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
        if batch == 1 and name in GLOBAL_NORMS:
            operator_checks.raises(ValueError, "with global_norm=False", lambda: network.train()(x))
        elif height > 1:
            outputs = network.train()(x)
            assert {"out", "aux"} <= set(outputs)
            assert outputs["aux"].shape == outputs["out"].shape


@every_segmentation
def test_small_logits(name: str) -> None:
    """With resize=False logits are not interpolated to the image; predict equals the argmax of the
    interpolated ones."""
    network = make(name).double().eval()
    x = image(2, 3, 65, 97).double()
    with torch.no_grad():
        want, small = network(x)["out"], network(x, resize=False)["out"]
    assert small.shape[2] < 30
    wide = nn.functional.interpolate(
        small, (65, 97), mode="bilinear", align_corners=network.align_corners
    )
    torch.testing.assert_close(wide, want)
    for dtype in (torch.int64, torch.uint8):
        labels = network.predict(x, dtype=dtype)
        assert labels.dtype == dtype and torch.equal(labels.long(), want.argmax(1))
    network.train()
    target = torch.randint(0, 5, (2, 65, 97), device=DEVICE)
    total = losses.SegmentationLoss(align_corners=network.align_corners)
    torch.manual_seed(3)
    value = total.terms(network(x, resize=False), target)["out"]
    torch.manual_seed(3)
    torch.testing.assert_close(value, total.terms(network(x), target)["out"])


def loss(outputs: Tensor | dict[str, Tensor]) -> Tensor:
    """The loss for random labels."""
    if isinstance(outputs, Tensor):
        target = torch.arange(outputs.shape[0], device=DEVICE)
        return nn.functional.cross_entropy(outputs.float(), target)
    batch, _, height, width = outputs["out"].shape
    target = torch.randint(0, 5, (batch, height, width), device=DEVICE)
    return losses.SegmentationLoss()(outputs, target)


@every_network
def test_training_step(name: str) -> None:
    """Every parameter gets a finite gradient; the auxiliary head is evaluated once."""
    network = make(name)
    loss(network(image(2, 3, 64, 64))).backward()
    for key, parameter in network.named_parameters():
        if not parameter.requires_grad:  # HANet's fixed tables
            continue
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key
        # The gradient of a bias before a norm is 0 up to rounding.
        assert key.endswith("bias") or parameter.grad.any(), key
    for key, value in network.state_dict().items():
        assert not key.endswith("num_batches_tracked") or value == 1, key


@every_network
def test_copies_and_conversions(name: str) -> None:
    network = randomise(make(name)).eval()
    x = image(1, 3, 64, 64)

    def call(network: nn.Module) -> Tensor:
        return as_dict(network(x))["out"]

    with torch.no_grad():
        expected = call(network)
        for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
            assert torch.equal(call(other), expected)
            other.load_state_dict({f"module.{k}": v for k, v in network.state_dict().items()})
        state = dict(network.named_parameters()) | dict(network.named_buffers())
        assert torch.equal(
            as_dict(torch.func.functional_call(network, state, (x,)))["out"], expected
        )
        fresh = make(name).eval()
        fresh.load_state_dict(network.state_dict(), strict=True)
        assert torch.equal(call(fresh), expected)
        synced = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(network))
        assert any(isinstance(m, nn.SyncBatchNorm) for m in synced.modules())
        torch.testing.assert_close(call(synced), expected)


@every_network
def test_channels_last_and_autocast(name: str) -> None:
    network = make(name).eval()
    x = image(2, 3, 64, 64)
    with torch.no_grad():
        expected = as_dict(network(x))["out"]
        last = network.to(memory_format=torch.channels_last)(
            x.contiguous(memory_format=torch.channels_last)
        )
        assert operator_checks.relative_error(as_dict(last)["out"], expected) < 1e-4
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
        outputs = network.train()(x)
        assert as_dict(outputs)["out"].dtype == torch.bfloat16
        assert all(y.isfinite().all() for y in as_dict(outputs).values())
        total = loss(outputs)
    total.backward()
    assert total.dtype == torch.float32
    assert all(p.grad.isfinite().all() for p in network.parameters() if p.requires_grad)


def check_compiled(network: nn.Module, *sizes: tuple[int, int], **options: Any) -> None:
    """Compiles to one graph, with the results of eager PyTorch, forward and backward."""
    torch._dynamo.reset()
    compiled = torch.compile(network, fullgraph=True, **options)
    parameters = [p for p in network.parameters() if p.requires_grad]
    for height, width in sizes:
        x = image(2, 3, height, width)
        outputs = as_dict(compiled(x)), as_dict(network(x))
        assert_close(*outputs)
        totals = [sum(y.square().mean() for y in one.values()) for one in outputs]
        both = [torch.autograd.grad(total, parameters) for total in totals]
        for a, b in zip(*both, strict=True):
            assert (a - b).norm() <= 1e-3 * b.norm() + 1e-4


@pytest.mark.slow
@every_network
def test_compiles(name: str) -> None:
    """For images of any size; and with a graph of the backward pass, at one size: for any size that
    takes four times as long, and test_layers tries it on every layer."""
    network = undropped(make(name, "resnet18" if name == "fcn" else None))
    check_compiled(network, (64, 96), (48, 70), dynamic=True, backend="eager")
    check_compiled(network, (64, 96), dynamic=False, backend="aot_eager")


def assert_close(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    assert got.keys() == want.keys()
    for key, value in want.items():
        torch.testing.assert_close(got[key], value, rtol=1e-4, atol=1e-4)


@every_network
def test_exports(name: str) -> None:
    """For any image size."""
    network = make(name).eval()
    sizes = {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    with torch.no_grad():
        program = torch.export.export(network, (image(2, 3, 64, 96),), dynamic_shapes=(sizes,))
        for height, width in ((64, 96), (65, 77)):
            x = image(2, 3, height, width)
            assert_close(as_dict(program.module()(x)), as_dict(network(x)))


def test_without_auxiliary_head() -> None:
    """Upstream's SPNet fails to train without it."""
    network = models.fcn(5, "resnet18", aux=False)
    assert list(network(torch.randn(2, 3, 32, 32))) == ["out"]


@every_network
def test_other_norm_layers(name: str) -> None:
    def norm(channels: int) -> nn.Module:
        return nn.GroupNorm(4, channels)

    options = {**OPTIONS[name], "norm_layer": norm}
    network = models.create(name, num_classes=5, backbone="resnet18", **options)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in network.modules())
    assert as_dict(network(torch.randn(1, 3, 32, 32)))["out"].shape[:2] == (1, 5)


def test_parameter_counts() -> None:
    """Equal to upstream's networks, including auxiliary heads."""
    with torch.device("meta"):
        for network, parameters in (
            (models.pspnet(150, "resnet50s"), 49_180_908),
            (models.pspnet(19, "resnet101s"), 68_072_166),
            (models.spnet(150, "resnet50s"), 47_838_124),
            (models.spnet(150, "resnet50s", strip_pooling=False), 41_721_068),
            (models.spnet(150, "resnet101s"), 66_830_252),
            (models.encnet(150, "resnet50s"), 36_164_578),
            (models.deeplabv3plus_hanet(19, "resnet101s"), 64_803_149),
            (models.deeplabv3plus_hanet(19, "resnet50", output_stride=16), 45_687_245),
        ):
            assert count(network) == parameters
        assert len(models.pspnet(150, "resnet50s").state_dict()) == 370


REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: models.create("unet", num_classes=3), "name must be one of"),
    (lambda: models.fcn(0, "resnet18"), "fcn: num_classes must be positive, got 0"),
    (lambda: models.deepten(0), "deepten: num_classes must be positive, got 0"),
    (lambda: models.deepten(3, channels=0), "deepten: channels must be positive, got 0"),
    (lambda: models.encnet(-1), "encnet: num_classes must be positive, got -1"),
    (lambda: FCNHead(0, 3), "in_channels must be positive, got 0"),
    (
        lambda: models.fcn(3, "resnet18")(torch.zeros(1, 4, 8, 8)),
        "FCN: x must have shape (N, 3, H, W), got (1, 4, 8, 8)",
    ),
    (lambda: models.fcn(3, "resnet18")(torch.zeros(3, 8, 8)), "got (3, 8, 8)"),
]


@pytest.mark.parametrize(("call", "words"), REFUSED)
def test_refuses(call: Callable[[], Any], words: str) -> None:
    operator_checks.raises(ValueError, words, call)


@pytest.mark.parametrize("module", [name for _, name, _ in iter_modules(models.__path__)])
def test_examples_run(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_FACTORIES", dict(registry._FACTORIES))  # one example adds to it
    code = importlib.import_module(f"stripctx.models.{module}")
    results = doctest.testmod(code, extraglobs={"torch": torch, **vars(models)})
    assert results.failed == 0
