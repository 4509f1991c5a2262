"""Losses and label maps of interpolated logits, in scopes: the same values, without logits at the
image's size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import stripctx
from stripctx.fusion.lazy import Lazy

CLASSES, SIZE = 5, (16, 24)


class Head(nn.Module):
    """Logits at a quarter of the size, interpolated as in segmentation networks."""

    def __init__(self, align_corners: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, CLASSES, 3, padding=1)
        self.align_corners = align_corners

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(self.conv(x), SIZE, mode="bilinear", align_corners=self.align_corners)


class WithLoss(nn.Module):
    """Computes the loss in its forward, like transformers' models."""

    def __init__(self, criterion: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, CLASSES, 1)
        self.criterion = criterion

    def forward(self, x: Tensor, target: Tensor) -> dict[str, Tensor]:
        logits = self.conv(x)
        wide = F.interpolate(logits, target.shape[-2:], mode="bilinear", align_corners=False)
        return {"loss": self.criterion(wide, target), "logits": logits}


class Calls:
    """Records which of our operators run, and whether a map of the logits' full size is created."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.largest = 0

    def __enter__(self) -> Calls:
        outer = self

        class Watch(torch.utils._python_dispatch.TorchDispatchMode):
            def __torch_dispatch__(
                self, function: Any, types: Any, args: Any = (), kwargs: Any = None
            ) -> Any:
                result = function(*args, **(kwargs or {}))
                if function.namespace == "stripctx":
                    outer.names.append(function._schema.name.partition("::")[2])
                for one in result if isinstance(result, (tuple, list)) else (result,):
                    if isinstance(one, Tensor) and one.dim() == 4:
                        outer.largest = max(outer.largest, one.shape[1:].numel())
                return result

        self.mode = Watch()
        self.mode.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self.mode.__exit__(*exception)


def image() -> Tensor:
    return torch.randn(2, 3, 4, 6, dtype=torch.float64)


def target() -> Tensor:
    labels = torch.randint(0, CLASSES, (2, *SIZE))
    labels[:, :3] = 255
    return labels


WEIGHT = torch.rand(CLASSES, dtype=torch.float64)
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "function": lambda z, y: F.cross_entropy(z, y, ignore_index=255),
    "weighted": lambda z, y: F.cross_entropy(
        z, y, WEIGHT, ignore_index=255, label_smoothing=0.1, reduction="sum"
    ),
    "module": lambda z, y: nn.CrossEntropyLoss(ignore_index=255, reduction="none")(z, y).mean(),
    "binary": lambda z, y: F.binary_cross_entropy_with_logits(
        z,
        F.one_hot(y.clamp(max=4), CLASSES).movedim(3, 1).to(z.dtype),
        pos_weight=WEIGHT[:, None, None],
    ),
}


@pytest.mark.parametrize("name", list(LOSSES))
@pytest.mark.parametrize("align_corners", [False, True])
def test_losses(name: str, align_corners: bool) -> None:
    network, x, y = Head(align_corners).double(), image(), target()
    want = LOSSES[name](network(x), y)
    wanted = torch.autograd.grad(want, list(network.parameters()))
    with stripctx.fusing(), Calls() as calls:
        loss = LOSSES[name](network(x), y)
        gradients = torch.autograd.grad(loss, list(network.parameters()))
    assert loss.dtype == want.dtype and any(n.startswith("upsample_") for n in calls.names)
    torch.testing.assert_close(loss, want, rtol=1e-11, atol=1e-12)
    for a, b in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    if name != "binary":  # its target has the same number of elements
        assert calls.largest < CLASSES * SIZE[0] * SIZE[1]


def test_losses_inside_a_fused_network() -> None:
    network = WithLoss(nn.CrossEntropyLoss(ignore_index=255)).double()
    x, y = image(), target()
    want = network(x, y)["loss"]
    stripctx.fuse(network, x, y)
    with Calls() as calls:
        loss = network(x, y)["loss"]
    assert "upsample_cross_entropy" in calls.names
    torch.testing.assert_close(loss, want, rtol=1e-11, atol=1e-12)


LABEL_MAPS: dict[str, Callable[[Tensor], Tensor]] = {
    "argmax": lambda z: z.argmax(1),
    "torch.argmax": lambda z: torch.argmax(z, dim=1, keepdim=True),
    "argmax from the end": lambda z: z.argmax(dim=-3),
    "max": lambda z: z.max(1)[1],
    "torch.max": lambda z: torch.max(z, 1).indices,
    "softmax": lambda z: z.softmax(1).argmax(1),
    "F.softmax": lambda z: F.softmax(z, dim=1).max(dim=1)[1],
}


@pytest.mark.parametrize("name", list(LABEL_MAPS))
def test_label_maps(name: str) -> None:
    network, x = Head().double(), image()
    with torch.no_grad():
        want = LABEL_MAPS[name](network(x))
        with stripctx.fusing(), Calls() as calls:
            labels = LABEL_MAPS[name](network(x))
    assert torch.equal(labels, want) and labels.dtype == want.dtype
    assert any(n in ("upsample_argmax", "upsample_softmax_max") for n in calls.names)
    assert calls.largest < CLASSES * SIZE[0] * SIZE[1]


def test_values_of_max() -> None:
    network, x = Head().double(), image()
    want, places = network(x).max(1)
    with stripctx.fusing():
        values, labels = network(x).max(1)
        chance, _ = network(x).softmax(1).max(1, keepdim=True)
    assert torch.equal(labels, places) and isinstance(values, Lazy)
    torch.testing.assert_close(values + 0, want)
    torch.testing.assert_close(chance + 0, network(x).softmax(1).amax(1, True))
    (chance * 1).sum().backward()
    assert network.conv.weight.grad is not None and network.conv.weight.grad.any()


UNUSUAL: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "probabilities": lambda z, y: F.cross_entropy(z, torch.softmax(torch.ones_like(z + 0), 1)),
    "other dimension": lambda z, y: z.argmax(2),
    "all": lambda z, y: z.max(),
    "softmax along rows": lambda z, y: z.softmax(2),
    "log-softmax": lambda z, y: F.nll_loss(F.log_softmax(z, 1), y, ignore_index=255),
    "two losses": lambda z, y: LOSSES["function"](z, y) + LOSSES["module"](z, y),
    "loss and labels": lambda z, y: LOSSES["function"](z, y) + z.argmax(1).sum(),
    "two tensors": lambda z, y: torch.max(z, torch.zeros_like(z + 0)),
}


@pytest.mark.parametrize("name", list(UNUSUAL))
def test_other_uses_are_computed_by_torch(name: str) -> None:
    network, x, y = Head().double(), image(), target()
    want = UNUSUAL[name](network(x), y)
    with stripctx.fusing():
        value = UNUSUAL[name](network(x), y) + 0
    torch.testing.assert_close(value, want)


@pytest.mark.parametrize("factor", [4, 4.0, (4.0, 4.0), 2.5])
def test_scale_factors(factor: Any) -> None:
    """Sizes are used if they are equivalent to the factor, otherwise torch's implementation."""
    logits = torch.randn(1, CLASSES, 5, 7, dtype=torch.float64, requires_grad=True)
    sides = factor if isinstance(factor, tuple) else (factor, factor)
    size = (int(5 * sides[0]), int(7 * sides[1]))
    y = torch.randint(0, CLASSES, (1, *size))

    def loss() -> Tensor:
        return F.cross_entropy(F.interpolate(logits, scale_factor=factor, mode="bilinear"), y)

    want = torch.autograd.grad(loss(), logits)[0]
    with stripctx.fusing(), Calls() as calls:
        gradient = torch.autograd.grad(loss(), logits)[0]
    assert ("upsample_cross_entropy" in calls.names) == (factor != 2.5)
    torch.testing.assert_close(gradient, want)


@pytest.mark.parametrize("autocast", [False, True])
def test_dtypes_equal_torchs(autocast: bool) -> None:
    network = Head().to(torch.float32 if autocast else torch.bfloat16)
    x, y = image().to(network.conv.weight.dtype), target()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        want = LOSSES["function"](network(x), y)
        with stripctx.fusing():
            loss = LOSSES["function"](network(x), y)
    assert loss.dtype == want.dtype
    torch.testing.assert_close(loss, want, rtol=2e-2, atol=2e-2)


@pytest.mark.slow
def test_compile() -> None:
    network = WithLoss(nn.CrossEntropyLoss(ignore_index=255)).double()
    x, y = image(), target()
    want = network(x, y)["loss"]
    stripctx.fuse(network)
    torch._dynamo.reset()
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    loss = compiled(x, y)["loss"]
    torch.testing.assert_close(loss, want, rtol=1e-11, atol=1e-12)
    loss.backward()
    assert network.conv.weight.grad.any()


@pytest.mark.slow
def test_compiled_label_maps() -> None:
    network, x = Head(), image().float()

    def labels(x: Tensor) -> Tensor:
        with stripctx.fusing():
            return network(x).argmax(1)

    torch._dynamo.reset()
    with torch.no_grad():
        compiled = torch.compile(labels, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(x), network(x).argmax(1))


def test_loss_inside_transformers() -> None:
    """SegFormer computes its loss itself, from logits at a quarter of the size."""
    transformers = pytest.importorskip("transformers")
    config = transformers.SegformerConfig(
        hidden_sizes=[8, 16, 16, 16], depths=[1, 1, 1, 1], num_attention_heads=[1, 1, 2, 2],
        decoder_hidden_size=16, num_labels=CLASSES,
    )  # fmt: skip
    torch.manual_seed(0)
    network = transformers.SegformerForSemanticSegmentation(config).double().eval()
    x, y = torch.randn(1, 3, 64, 64, dtype=torch.float64), torch.randint(0, CLASSES, (1, 64, 64))
    want = network(x, labels=y).loss
    wanted = torch.autograd.grad(want, network.decode_head.classifier.weight)[0]
    stripctx.fuse(network)
    with Calls() as calls:
        loss = network(x, labels=y).loss
        gradient = torch.autograd.grad(loss, network.decode_head.classifier.weight)[0]
    assert "upsample_cross_entropy" in calls.names
    torch.testing.assert_close(loss, want, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(gradient, wanted, rtol=1e-9, atol=1e-12)
