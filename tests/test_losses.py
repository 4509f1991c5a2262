"""The losses against their formulas, computed pixel by pixel in float64."""

from __future__ import annotations

import copy
import doctest
import math
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import operator_checks
import pytest
import torch
import torch.nn.functional as F
from operator_checks import DEVICE
from torch import Tensor

from stripctx import losses

K = 5
ALL = (
    losses.cross_entropy,
    losses.image_weighted_cross_entropy,
    losses.relaxed_boundary_loss,
    losses.dice_loss,
    partial(losses.dice_loss, smooth=0.0),
    partial(losses.ohem_cross_entropy, threshold=0.3, min_kept=20),
)
every_loss = pytest.mark.parametrize(
    "loss", ALL, ids=lambda f: f"{f.func.__name__}*" if isinstance(f, partial) else f.__name__
)


def sample(height: int = 6, width: int = 7, dtype: torch.dtype = torch.float64) -> Any:
    """Logits, and a target with unlabelled pixels of three kinds, without class 4 in image 0 and
    without labels in image 2."""
    logits = 2 * torch.randn(3, K, height, width, dtype=torch.float64)
    target = torch.randint(0, K, (3, height, width))
    target[0][target[0] == 4] = 0
    target[0, 0, 0], target[1, 1, 2], target[1, 2, 2] = 255, -1, K
    target[1, -2:] = 255
    target[2] = 255
    return logits.to(DEVICE, dtype), target.to(DEVICE)


def pixels(logits: Tensor, target: Tensor) -> list[tuple[int, int, list[float]]]:
    """(image, label, probabilities) of all labelled pixels."""
    found = []
    for image, height, width in torch.cartesian_prod(*map(torch.arange, target.shape)).tolist():
        label = int(target[image, height, width])
        if 0 <= label < K:
            exponents = [math.exp(v) for v in logits[image, :, height, width].tolist()]
            found.append((image, label, [e / sum(exponents) for e in exponents]))
    return found


def mean(pairs: list[tuple[float, float]]) -> float:
    """The weighted mean of (value, weight); 0 for an empty list."""
    total = sum(weight for _, weight in pairs)
    return sum(value * weight for value, weight in pairs) / total if total else 0.0


def rarity(share: float, upper_bound: float, inverse: bool) -> float:
    if share == 0:
        return 1.0
    return 1 + upper_bound * (1 / share if inverse else 1 - share)


WEIGHT = torch.tensor([0.5, 1.0, 2.0, 0.25, 3.0], dtype=torch.float64, device=DEVICE)
weighted = pytest.mark.parametrize("weight", [None, WEIGHT], ids=["plain", "weighted"])


def factors(weight: Tensor | None) -> list[float]:
    return [1.0] * K if weight is None else weight.tolist()


@weighted
def test_cross_entropy(weight: Tensor | None) -> None:
    logits, target = sample()
    w = factors(weight)
    want = mean([(-math.log(p[label]), w[label]) for _, label, p in pixels(logits, target)])
    assert losses.cross_entropy(logits, target, weight=weight).item() == pytest.approx(want)
    clean = torch.where((target < 0) | (target >= K), 255, target)
    torchs = F.cross_entropy(logits, clean, weight, ignore_index=255).item()
    assert torchs == pytest.approx(want)


@weighted
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("per_batch", [False, True])
def test_image_weighted_cross_entropy(
    weight: Tensor | None, inverse: bool, per_batch: bool
) -> None:
    logits, target = sample()
    w, found, want = factors(weight), pixels(logits, target), []
    for image in range(3):
        counted = [label for i, label, _ in found if per_batch or i == image]
        scale = [rarity(counted.count(k) / max(1, len(counted)), 0.7, inverse) for k in range(K)]
        pairs = [(-math.log(p[k]), w[k] * scale[k]) for i, k, p in found if i == image]
        want.append(mean(pairs))
    loss = partial(
        losses.image_weighted_cross_entropy,
        logits,
        target,
        weight=weight,
        upper_bound=0.7,
        inverse=inverse,
        per_batch=per_batch,
    )
    assert loss(reduction="none").tolist() == pytest.approx(want)
    assert loss(reduction="sum").item() == pytest.approx(sum(want))
    assert loss().item() == pytest.approx(sum(want) / 3)
    assert want[2] == 0


def neighbourhoods(target: Tensor, border: int) -> list[list[list[set[int]]]]:
    """The labels in the neighbourhood of every pixel; K for unlabelled pixels and outside."""
    batch, height, width = target.shape
    around = range(-border, border + 1)

    def label(n: int, y: int, x: int) -> int:
        inside = 0 <= y < height and 0 <= x < width
        value = int(target[n, y, x]) if inside else K
        return value if 0 <= value < K else K

    return [
        [
            [{label(n, y + dy, x + dx) for dy in around for dx in around} for x in range(width)]
            for y in range(height)
        ]
        for n in range(batch)
    ]


@weighted
@pytest.mark.parametrize(("border", "per_batch"), [(0, False), (1, False), (1, True), (2, False)])
def test_relaxed_boundary_loss(weight: Tensor | None, border: int, per_batch: bool) -> None:
    logits, target = sample()
    w, near = factors(weight), neighbourhoods(target, border)
    probabilities = logits.softmax(1)
    want = []
    for n in range(3):
        images = range(3) if per_batch else [n]
        sets = [s for i in images for row in near[i] for s in row]
        total = sum(len(s) for s in sets)
        scale = [w[k] * rarity(sum(k in s for s in sets) / total, 1.0, False) for k in range(K)]
        loss, count = 0.0, 0
        for y, row in enumerate(near[n]):
            for x, classes in enumerate(row):
                known = classes - {K}
                if known:
                    p = sum(float(probabilities[n, k, y, x]) for k in known)
                    loss -= math.log(p) * sum(scale[k] for k in known) / len(known)
                    count += 1
        want.append(loss / (count + 1))
    loss = partial(
        losses.relaxed_boundary_loss,
        logits,
        target,
        weight=weight,
        border=border,
        per_batch=per_batch,
    )
    assert loss(reduction="none").tolist() == pytest.approx(want)
    assert loss().item() == pytest.approx(sum(want) / 3)


@weighted
@pytest.mark.parametrize("smooth", [0.0, 1.0])
def test_dice_loss(weight: Tensor | None, smooth: float) -> None:
    logits, target = sample()
    target[target == 3] = 0
    found, pairs = pixels(logits, target), []
    for k in range(K):
        overlap = sum(p[k] for _, label, p in found if label == k)
        mass = sum(p[k] + (label == k) for _, label, p in found)
        pairs.append((1 - (2 * overlap + smooth) / (mass + smooth), factors(weight)[k]))
    loss = losses.dice_loss(logits, target, weight=weight, smooth=smooth)
    assert loss.item() == pytest.approx(mean(pairs))


@weighted
@pytest.mark.parametrize(("threshold", "min_kept"), [(0.3, 1), (0.05, 20), (0.0, 10_000)])
def test_ohem_cross_entropy(weight: Tensor | None, threshold: float, min_kept: int) -> None:
    logits, target = sample()
    w = factors(weight)
    found = sorted((p[label], label) for _, label, p in pixels(logits, target))
    kept = [one for i, one in enumerate(found) if one[0] < threshold or i < min_kept]
    assert len(kept) >= min(min_kept, len(found))
    want = mean([(-math.log(p), w[label]) for p, label in kept])
    loss = losses.ohem_cross_entropy(
        logits, target, weight=weight, threshold=threshold, min_kept=min_kept
    )
    assert loss.item() == pytest.approx(want)


def test_class_presence() -> None:
    _, target = sample()
    for ignore_index in (255, 2):
        got = losses.class_presence(target, K, ignore_index)
        for image, row in zip(target, got.tolist(), strict=True):
            labels = set(image.flatten().tolist()) - {ignore_index}
            assert row == [float(k in labels) for k in range(K)]
    assert got.dtype == torch.float32
    assert losses.class_presence(target[:0], K).shape == (0, K)
    one = losses.class_presence(torch.zeros(1, 2, 2, dtype=torch.uint8), 1)
    assert one.tolist() == [[1.0]]  # upstream's histogram is degenerate here


@every_loss
def test_nothing_labelled(loss: Callable[..., Tensor]) -> None:
    """Fully ignored images do not contribute; a batch of them gives 0 and no gradient."""
    logits, target = sample()
    logits.requires_grad_()
    loss(logits, target).backward()
    assert logits.grad.isfinite().all() and not logits.grad[2].any()
    assert logits.grad[:2].any()
    logits.grad = None
    value = loss(logits, torch.full_like(target, 255))
    value.backward()
    assert value.item() == 0
    assert not logits.grad.any()
    assert loss(logits[:0], target[:0]).item() == 0


@every_loss
def test_another_ignore_index(loss: Callable[..., Tensor]) -> None:
    logits, target = sample()
    other = torch.where(target == 2, 255, target)
    assert torch.equal(loss(logits, target, ignore_index=2), loss(logits, other))


@every_loss
def test_gradients(loss: Callable[..., Tensor]) -> None:
    logits, target = sample(3, 4)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, target, weight=WEIGHT), (logits,))
    assert torch.autograd.gradgradcheck(lambda x: loss(x, target), (logits,), fast_mode=True)


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_types(loss: Callable[..., Tensor], dtype: torch.dtype) -> None:
    """Computed in float32: the result equals that of the rounded logits in float32."""
    logits, target = sample(dtype=dtype)
    value = loss(logits, target.to(torch.int32))
    assert value.dtype == torch.float32
    assert torch.equal(value, loss(logits.float(), target))
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
        assert torch.equal(value, loss(logits, target))


@every_loss
def test_far_logits(loss: Callable[..., Tensor]) -> None:
    logits, target = sample(dtype=torch.float32)
    logits = (logits * 1e4).requires_grad_()
    loss(logits, target).backward()
    assert logits.grad.isfinite().all()


@every_loss
def test_compiles(loss: Callable[..., Tensor]) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for size in ((6, 7), (5, 9)):
        logits, target = sample(*size, dtype=torch.float32)
        torch.testing.assert_close(compiled(logits, target), loss(logits, target))


def outputs_of_a_network() -> tuple[dict[str, Tensor], Tensor]:
    logits, target = sample()
    outputs = {"out": logits, "aux": logits.flip(1)}
    for name in ("se", "se_stage3"):
        outputs[name] = torch.randn(3, K, dtype=torch.float64, device=DEVICE)
    return outputs, target


@weighted
def test_total(weight: Tensor | None) -> None:
    outputs, target = outputs_of_a_network()
    total = losses.SegmentationLoss(weight=weight)
    present = losses.class_presence(target, K).double()
    want = losses.cross_entropy(outputs["out"], target, weight=weight)
    assert torch.equal(total(outputs["out"], target), want)
    want = want + 0.4 * losses.cross_entropy(outputs["aux"], target, weight=weight)
    for name in ("se", "se_stage3"):
        want = want + 0.2 * F.binary_cross_entropy(outputs[name].sigmoid(), present, weight)
    torch.testing.assert_close(total(outputs, target), want)
    assert set(total.terms(outputs, target)) == set(outputs)
    assert not total.state_dict()
    for other in (copy.deepcopy(total), pickle.loads(pickle.dumps(total))):
        assert torch.equal(other(outputs, target), total(outputs, target))


def test_total_of_another_criterion() -> None:
    outputs, target = outputs_of_a_network()
    criterion = partial(losses.relaxed_boundary_loss, upper_bound=0.5)
    total = losses.SegmentationLoss(criterion=criterion, aux_weight=1.0, ignore_index=3)
    maps = {name: outputs[name] for name in ("out", "aux")}
    want = sum(criterion(x, target, ignore_index=3) for x in maps.values())
    torch.testing.assert_close(total(maps, target), want)


@every_loss
@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
def test_small_logits(loss: Callable[..., Tensor], align_corners: bool, weighted: bool) -> None:
    """Equals the loss of interpolated logits, and its gradient."""
    _, target = sample(13, 18)
    logits = torch.randn(3, K, 4, 6, dtype=torch.float64, device=DEVICE, requires_grad=True)
    weight = torch.rand(K, dtype=torch.float64, device=DEVICE) if weighted else None
    wide = F.interpolate(logits, (13, 18), mode="bilinear", align_corners=align_corners)
    want = loss(wide, target, weight=weight)
    value = loss(logits, target, weight=weight, align_corners=align_corners)
    torch.testing.assert_close(value, want)
    torch.testing.assert_close(
        torch.autograd.grad(value, logits)[0], torch.autograd.grad(want, logits)[0]
    )


def test_small_logits_without_labels() -> None:
    """The loss is 0, without a gradient."""
    logits = torch.randn(2, K, 3, 3, device=DEVICE, requires_grad=True)
    target = torch.full((2, 6, 6), 255, device=DEVICE)
    for loss in (losses.cross_entropy, losses.ohem_cross_entropy):
        value = loss(logits, target)
        assert value == 0 and not torch.autograd.grad(value, logits)[0].any()


def test_small_outputs() -> None:
    _, target = sample(13, 18)
    small = {
        name: torch.randn(3, K, 4, 6, dtype=torch.float64, device=DEVICE) for name in ("out", "aux")
    }
    wide = {
        name: F.interpolate(map, (13, 18), mode="bilinear", align_corners=False)
        for name, map in small.items()
    }
    total = losses.SegmentationLoss(align_corners=False)
    torch.testing.assert_close(total(small, target), total(wide, target))


def test_small_auxiliary_map_takes_the_nearest_labels() -> None:
    logits, target = sample(6, 7)
    aux = torch.randn(3, K, 4, 3, dtype=torch.float64, device=DEVICE)
    total = losses.SegmentationLoss(shrink_aux=True)
    terms = total.terms({"out": logits, "aux": aux}, target)
    nearest = F.interpolate(target[:, None].double(), (4, 3), mode="nearest")[:, 0].long()
    torch.testing.assert_close(terms["aux"], 0.4 * losses.cross_entropy(aux, nearest))


MAP, TARGET = torch.zeros(2, 3, 4, 5), torch.zeros(2, 4, 5, dtype=torch.long)
REFUSED: list[tuple[Callable[..., Any], tuple[Any, ...], str]] = [
    (
        losses.cross_entropy,
        (MAP[0], TARGET),
        "cross_entropy: logits must be a floating map (N, K, H, W), got torch.float32 (3, 4, 5)",
    ),
    (losses.dice_loss, (MAP.long(), TARGET), "got torch.int64 (2, 3, 4, 5)"),
    (
        losses.ohem_cross_entropy,
        (MAP, TARGET[:, 1:]),
        "target must have shape (2, 4, 5), or be larger than logits, got (2, 3, 5)",
    ),
    (losses.cross_entropy, (MAP, TARGET.float()), "target must hold integers, got torch.float32"),
    (
        partial(losses.relaxed_boundary_loss, weight=torch.ones(4)),
        (MAP, TARGET),
        "relaxed_boundary_loss: weight must have shape (3,), got (4,)",
    ),
    (partial(losses.relaxed_boundary_loss, border=-1), (MAP, TARGET), "border must not be neg"),
    (partial(losses.ohem_cross_entropy, min_kept=0), (MAP, TARGET), "min_kept must be positive"),
    (
        partial(losses.image_weighted_cross_entropy, reduction="avg"),
        (MAP, TARGET),
        "reduction must be mean, sum or none, got 'avg'",
    ),
    (losses.class_presence, (MAP.long(), 3), "class_presence: target must be 3-D (N, H, W), got"),
    (losses.SegmentationLoss(), ({"aux": MAP}, TARGET), "outputs must hold 'out', got ['aux']"),
]


@pytest.mark.parametrize(("function", "arguments", "words"), REFUSED)
def test_refuses(function: Callable[..., Any], arguments: tuple[Any, ...], words: str) -> None:
    operator_checks.raises(ValueError, words, lambda: function(*arguments))


@pytest.mark.parametrize("module", ["images", "labels", "pixels", "total"])
def test_examples_run(module: str) -> None:
    code = getattr(losses, module)
    names = {"torch": torch, **vars(code)}
    assert doctest.testmod(code, extraglobs=names).failed == 0
