"""The labels family against torch's interpolation and losses, on every backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import operator_checks
import pytest
import torch
import torch.nn.functional as F
from operator_checks import DEVICE, DTYPES, EMULATED, FORMATS, LAYOUTS, bits, make, relative_error
from operator_suite import Refusal, beyond_two_to_the_31, leaf, map_of, to_meta
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from benchmarks import memory
from stripctx import extension, functional

OPS = torch.ops.stripctx

# Logits (N, K, h, w) and the image's size: sizes that do not divide, one position, the same size,
# one class and many, rows longer than a vector and a tile, empty.
SHAPES = (
    ((2, 3, 5, 7), (9, 17)),
    ((1, 19, 6, 10), (24, 40)),
    ((1, 1, 1, 1), (1, 1)),
    ((2, 4, 1, 1), (21, 5)),
    ((1, 2, 3, 1), (3, 40)),
    ((2, 5, 6, 9), (6, 9)),
    ((1, 21, 9, 13), (70, 100)),
    ((1, 150, 4, 5), (29, 37)),
    ((2, 17, 3, 40), (5, 333)),
    ((1, 3, 33, 2), (260, 3)),
    ((0, 3, 4, 5), (8, 8)),
)
WIDE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 2e-6, torch.bfloat16: 2e-6}
NARROW = {torch.float64: 1e-12, torch.float32: 4e-6, torch.float16: 1e-3, torch.bfloat16: 5e-3}

either_alignment = pytest.mark.parametrize("align_corners", [False, True])
any_shape = pytest.mark.parametrize("shape,size", SHAPES, ids=str)
HERE = DTYPES if extension.backend() == "native" else (torch.float64, torch.bfloat16)
any_dtype = pytest.mark.parametrize("dtype", HERE, ids=str)
any_layout = pytest.mark.parametrize("layout", FORMATS)


def up(logits: Tensor, size: Any, align_corners: bool) -> Tensor:
    """Interpolates in float64, for any dtype of the logits."""
    if logits.size(0) == 0:
        return logits.double()[..., :1, :1].expand(*logits.shape[:2], *size)
    return F.interpolate(logits.double(), size, mode="bilinear", align_corners=align_corners)


def labels_for(shape: Any, size: Any, dtype: torch.dtype = torch.int64) -> Tensor:
    """Labels of every class, and ignored pixels."""
    labels = torch.randint(-1, shape[1], (shape[0], *size))
    labels[labels < 0] = 255
    labels[labels == 255] = 255 if shape[1] <= 255 else shape[1] + 3
    return labels.to(DEVICE, dtype if shape[1] < 255 else torch.int64)


def ignored(labels: Tensor, classes: int) -> int:
    return 255 if classes <= 255 else classes + 3


def grad_of(loss: Callable[[Tensor], Tensor], logits: Tensor, seed: Tensor | None = None) -> Any:
    leaf = logits.detach().requires_grad_()
    value = loss(leaf)
    seed = torch.ones_like(value) if seed is None else seed.to(value.dtype)
    return value.detach(), torch.autograd.grad(value, leaf, seed)[0]


def compare(
    ours: Callable[[Tensor], Tensor], plain: Callable[[Tensor], Tensor], logits: Tensor
) -> None:
    """Compares values and gradients, ours in the logits' dtype, torch's in float64."""
    reference = logits.detach().double()
    seed = torch.randn_like(plain(reference))
    value, gradient = grad_of(ours, logits, seed)
    expected, wanted = grad_of(plain, reference, seed)
    assert gradient.dtype == logits.dtype and gradient.shape == logits.shape
    assert relative_error(value, expected) <= WIDE[logits.dtype]
    if not wanted.any():  # a single class: probabilities are 1 up to rounding
        wanted, gradient = wanted + 1, gradient + 1
    assert relative_error(gradient, wanted) <= NARROW[logits.dtype]


@any_shape
@any_dtype
@any_layout
@either_alignment
def test_cross_entropy(
    shape: Any, size: Any, dtype: torch.dtype, layout: str, align_corners: bool
) -> None:
    logits = 3 * make(shape, dtype, layout)
    target = labels_for(shape, size)
    ignore = ignored(target, shape[1])
    for reduction in ("none", "sum", *(["mean"] if shape[0] else [])):
        compare(
            lambda x, r=reduction: functional.upsample_cross_entropy(
                x, target, align_corners=align_corners, ignore_index=ignore, reduction=r
            ),
            lambda x, r=reduction: F.cross_entropy(
                up(x, size, align_corners), target, ignore_index=ignore, reduction=r
            ),
            logits,
        )


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("ignore", [255, 0, -100])
@pytest.mark.parametrize("label_dtype", [torch.int64, torch.int32, torch.uint8], ids=str)
def test_cross_entropy_options(
    weighted: bool, smoothing: float, reduction: str, ignore: int, label_dtype: torch.dtype
) -> None:
    shape, size = (2, 20, 5, 7), (11, 23)
    target = torch.randint(0, 20, (2, *size), device=DEVICE)
    target[:, 2] = ignore if ignore >= 0 or label_dtype is not torch.uint8 else 0
    weight = torch.rand(20, device=DEVICE, dtype=torch.float64) if weighted else None
    options = {"label_smoothing": smoothing, "reduction": reduction, "ignore_index": ignore}
    for dtype, align_corners in ((torch.float64, True), (torch.float32, False)):
        compare(
            lambda x, a=align_corners: functional.upsample_cross_entropy(
                x, target.to(label_dtype), weight, align_corners=a, **options
            ),
            lambda x, a=align_corners: F.cross_entropy(up(x, size, a), target, weight, **options),
            make(shape, dtype, "contiguous"),
        )


@any_shape
@any_dtype
@any_layout
@either_alignment
def test_argmax(
    shape: Any, size: Any, dtype: torch.dtype, layout: str, align_corners: bool
) -> None:
    """Equal to torch's wherever the two largest logits differ by more than rounding."""
    logits = make(shape, dtype, layout)
    labels, chance = functional.upsample_softmax_max(logits, size, align_corners=align_corners)
    wide = up(logits, size, align_corners)
    assert labels.shape == (shape[0], *size) and labels.dtype == torch.int64
    picked = wide.gather(1, labels[:, None])[:, 0]
    assert (wide.amax(1) - picked).abs().le(1e-12 if dtype is torch.float64 else 2e-6).all()
    assert relative_error(chance, wide.softmax(1).amax(1)) < WIDE[dtype]
    for kind in (torch.int64, torch.int32, torch.uint8):
        alone = functional.upsample_argmax(logits, size, align_corners=align_corners, dtype=kind)
        assert alone.dtype == kind and torch.equal(alone.long(), labels)


def test_argmax_takes_the_first_of_equals() -> None:
    logits = torch.randint(0, 2, (2, 40, 5, 6), device=DEVICE).float()
    expected = up(logits, (5, 6), True).argmax(1)
    assert torch.equal(functional.upsample_argmax(logits, (5, 6), align_corners=True), expected)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@any_layout
def test_nonfinite_logits(bad: float, layout: str) -> None:
    logits = make((1, 7, 5, 6), torch.float32, layout)
    logits[0, 3, 2, 2] = bad
    logits[0, 5, 2, 3] = bad
    logits[0, 1, 4, 5] = bad
    size = (17, 40)
    wide = F.interpolate(logits, size, mode="bilinear", align_corners=False)
    labels, chance = functional.upsample_softmax_max(logits, size, align_corners=False)
    assert torch.equal(labels, wide.argmax(1))
    torch.testing.assert_close(chance, wide.softmax(1).amax(1), equal_nan=True)
    target = labels_for(logits.shape, size)
    ours = functional.upsample_cross_entropy(logits, target, align_corners=False, reduction="none")
    want = F.cross_entropy(wide, target, ignore_index=255, reduction="none")
    torch.testing.assert_close(ours, want, equal_nan=True, rtol=1e-5, atol=1e-5)


def test_logits_far_apart() -> None:
    """A class is masked by a large negative number, as with open vocabularies; no overflow."""
    logits = 1e4 * make((1, 4, 3, 3), torch.float32, "contiguous")
    logits[:, 2] = -1e30
    target = torch.randint(0, 2, (1, 9, 9), device=DEVICE)
    ours = grad_of(
        lambda x: functional.upsample_cross_entropy(x, target, align_corners=True), logits
    )
    want = grad_of(lambda x: F.cross_entropy(up(x, (9, 9), True), target), logits.double())
    assert relative_error(ours[0], want[0]) < 1e-6 and relative_error(ours[1], want[1]) < 1e-3


@pytest.mark.parametrize("classes", [1, 2, 8, 16, 17, 64, 255, 2000])
def test_any_number_of_classes(classes: int) -> None:
    if EMULATED and classes > 300:
        classes = 300
    shape, size = (1, classes, 3, 4), (7, 9)
    target = labels_for(shape, size)
    ignore = ignored(target, classes)
    compare(
        lambda x: functional.upsample_cross_entropy(
            x, target, align_corners=False, ignore_index=ignore
        ),
        lambda x: F.cross_entropy(up(x, size, False), target, ignore_index=ignore),
        make(shape, torch.float32, "contiguous"),
    )
    logits = make(shape, torch.float32, "channels_last")
    labels = functional.upsample_argmax(logits, size, align_corners=False)
    assert torch.equal(labels, up(logits, size, False).argmax(1))


def test_all_pixels_ignored() -> None:
    logits = make((2, 3, 4, 4), torch.float32, "contiguous").requires_grad_()
    target = torch.full((2, 8, 8), 255, device=DEVICE)
    loss = functional.upsample_cross_entropy(logits, target, align_corners=False)
    assert loss.isnan()
    total = functional.upsample_cross_entropy(logits, target, align_corners=False, reduction="sum")
    assert total == 0
    total.backward()
    assert not logits.grad.any()


def test_labels_outside_the_classes_count_nowhere() -> None:
    logits = make((1, 3, 4, 4), torch.float32, "contiguous")
    target = torch.randint(0, 3, (1, 9, 9), device=DEVICE)
    outside = target.clone()
    outside[0, :4] = torch.tensor([-7, 3, 2**40, -(2**62), 2**31, 254, 256, 2**32], device=DEVICE)[
        torch.arange(9, device=DEVICE) % 8
    ]
    target[0, :4] = 255
    for reduction in ("mean", "none"):
        ours, want = (
            grad_of(
                lambda x, t=t, r=reduction: functional.upsample_cross_entropy(
                    x, t, align_corners=True, reduction=r
                ),
                logits,
            )
            for t in (outside, target)
        )
        assert torch.equal(ours[0], want[0]) and torch.equal(ours[1], want[1])


@pytest.mark.parametrize("options", ["plain", "weight", "pos_weight", "both"])
@any_dtype
@any_layout
@either_alignment
def test_binary_cross_entropy(
    options: str, dtype: torch.dtype, layout: str, align_corners: bool
) -> None:
    for shape, size in SHAPES[:7]:
        full = (*shape[:2], *size)
        target = torch.rand(full, device=DEVICE, dtype=torch.float64).to(dtype)
        weight = torch.rand(size, device=DEVICE).to(dtype)
        positive = torch.rand((shape[1], 1, 1), device=DEVICE).to(dtype) * 4
        chosen = {
            "weight": weight if options in ("weight", "both") else None,
            "pos_weight": positive if options in ("pos_weight", "both") else None,
        }
        for reduction in ("none", "sum", "mean"):
            compare(
                lambda x, t=target, c=chosen, r=reduction: functional.upsample_binary_cross_entropy(
                    x, t, **c, align_corners=align_corners, reduction=r
                ),
                lambda x, t=target, c=chosen, r=reduction, s=size: (
                    F.binary_cross_entropy_with_logits(
                        up(x, s, align_corners),
                        t.double(),
                        **{k: None if v is None else v.double() for k, v in c.items()},
                        reduction=r,
                    )
                ),
                3 * make(shape, dtype, layout),
            )


def test_binary_targets_of_other_kinds() -> None:
    logits = 30 * make((2, 1, 4, 5), torch.float32, "contiguous")
    mask = torch.rand(2, 1, 16, 20, device=DEVICE) > 0.5
    want = functional.upsample_binary_cross_entropy(logits, mask.float(), align_corners=True)
    strided = mask.float().transpose(2, 3).contiguous().transpose(2, 3)
    for target in (mask, mask.byte(), mask.double(), strided):
        ours = functional.upsample_binary_cross_entropy(logits, target, align_corners=True)
        assert torch.equal(ours, want)


def plain_dice(logits: Tensor, target: Tensor, size: Any, align_corners: bool) -> Tensor:
    classes = logits.size(1)
    known = ((target >= 0) & (target < classes))[:, None]
    chance = up(logits, size, align_corners).softmax(1) * known
    truth = (target[:, None] == torch.arange(classes, device=DEVICE).view(-1, 1, 1)) & known
    return torch.stack(
        [(chance * truth).sum((2, 3)), chance.sum((2, 3)), truth.sum((2, 3)).double()]
    )


@any_shape
@any_dtype
@any_layout
@either_alignment
def test_dice(shape: Any, size: Any, dtype: torch.dtype, layout: str, align_corners: bool) -> None:
    target = labels_for(shape, size)
    compare(
        lambda x: torch.stack(functional.upsample_dice(x, target, align_corners=align_corners)),
        lambda x: plain_dice(x, target, size, align_corners),
        make(shape, dtype, layout),
    )


def losses(align_corners: bool, shape: Any, size: Any) -> dict[str, Callable[[Tensor], Tensor]]:
    target = labels_for(shape, size)
    binary = torch.rand((*shape[:2], *size), device=DEVICE, dtype=torch.float64)
    options: dict[str, Any] = {"align_corners": align_corners}
    weight = torch.rand(shape[1], dtype=torch.float64, device=DEVICE)
    return {
        "mean": lambda x: functional.upsample_cross_entropy(x, target, **options),
        "smooth": lambda x: functional.upsample_cross_entropy(
            x, target, weight, label_smoothing=0.2, reduction="none", **options
        ),
        "binary": lambda x: functional.upsample_binary_cross_entropy(
            x, binary.to(x.dtype), pos_weight=weight[:, None, None], **options
        ),
        "dice": lambda x: torch.stack(functional.upsample_dice(x, target, **options)[:2]),
    }


LOSSES = ("mean", "smooth", "binary", "dice")


@pytest.mark.slow
@pytest.mark.parametrize("name", LOSSES)
@either_alignment
def test_gradients(name: str, align_corners: bool) -> None:
    shape, size = (2, 3, 2, 3), (4, 7)
    loss = losses(align_corners, shape, size)[name]
    for layout in FORMATS:
        logits = make(shape, torch.float64, layout).requires_grad_()
        assert gradcheck(loss, logits, fast_mode=EMULATED)
    assert gradgradcheck(loss, logits, fast_mode=EMULATED)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_same_bits(name: str, layout: str) -> None:
    shape, size = (2, 37, 12, 15), (60, 70)
    loss = losses(False, shape, size)[name]
    logits = make(shape, torch.float32, layout)
    first = grad_of(loss, logits)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3, threads):
            if extension.backend() != "reference":
                torch.set_num_threads(count)
            for a, b in zip(first, grad_of(loss, logits), strict=True):
                assert torch.equal(bits(a), bits(b))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", LOSSES)
def test_any_strides(name: str, layout: str) -> None:
    shape, size = (2, 19, 6, 11), (13, 45)
    loss = losses(True, shape, size)[name]
    logits = make(shape, torch.float32, layout)
    ours, want = grad_of(loss, logits), grad_of(loss, logits.contiguous())
    for a, b in zip(ours, want, strict=True):
        assert relative_error(a, b) < 2e-6


def test_strided_targets_and_gradients() -> None:
    shape, size = (2, 5, 4, 6), (9, 14)
    logits = make(shape, torch.float32, "contiguous")
    target = labels_for(shape, size)
    for other in (
        target.transpose(1, 2).contiguous().transpose(1, 2),
        torch.stack([target, target], 3)[..., 1],
    ):
        for seed in (torch.randn(2, *size, device=DEVICE), torch.randn(2, 1, 1, device=DEVICE)):
            results = [
                grad_of(
                    lambda x, t=t: functional.upsample_cross_entropy(
                        x, t, align_corners=False, reduction="none"
                    ),
                    logits,
                    seed.expand(2, *size),
                )
                for t in (target, other)
            ]
            for a, b in zip(*results, strict=True):
                if extension.backend() == "reference":  # PyTorch's kernels depend on alignment
                    assert relative_error(a, b) < 2e-6
                else:
                    assert torch.equal(a, b)


@pytest.mark.slow
@pytest.mark.parametrize("name", LOSSES)
def test_compile(name: str) -> None:
    shape, size = (2, 6, 4, 5), (9, 14)
    loss = losses(False, shape, size)[name]
    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for height in (3, 4):
        logits = make((2, 6, height, 5), torch.float32, "channels_last")
        for a, b in zip(grad_of(compiled, logits), grad_of(loss, logits), strict=True):
            assert torch.equal(a, b)


@pytest.mark.slow
def test_export() -> None:
    class Network(torch.nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return functional.upsample_softmax_max(x, (19, 30), align_corners=False)

    x = make((2, 6, 4, 5), torch.float32, "contiguous")
    exported = torch.export.export(Network(), (x,)).module()
    for a, b in zip(exported(x), Network()(x), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", LOSSES)
def test_vmap(name: str) -> None:
    shape, size = (2, 3, 4, 5), (9, 8)
    loss = losses(False, shape, size)[name]
    stacked = torch.stack([make(shape, torch.float32, "contiguous") for _ in range(3)])
    mapped = grad_of(torch.vmap(loss), stacked)
    looped = [grad_of(loss, one) for one in stacked]
    for k in range(2):
        torch.testing.assert_close(mapped[k], torch.stack([each[k] for each in looped]))


def test_autocast() -> None:
    """Half logits are interpolated and summed in float32."""
    shape, size = (2, 6, 4, 5), (9, 14)
    logits, target = make(shape, torch.float32, "contiguous"), labels_for(shape, size)
    plain = functional.upsample_cross_entropy(logits.bfloat16(), target, align_corners=False)
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
        loss = functional.upsample_cross_entropy(logits.bfloat16(), target, align_corners=False)
    assert loss.dtype == torch.float32 and torch.equal(loss, plain)


def test_offsets_past_two_to_the_31() -> None:
    shape, size = (2, 3, 3, 4), (7, 9)
    logits, target = make(shape, torch.bfloat16, "contiguous"), labels_for(shape, size)

    def loss(x: Tensor, t: Tensor) -> Tensor:
        return functional.upsample_cross_entropy(x, t, align_corners=False)

    far = grad_of(lambda x: loss(x, beyond_two_to_the_31(target.byte())), logits)
    near = grad_of(lambda x: loss(x, target), logits)
    assert all(torch.equal(a, b) for a, b in zip(far, near, strict=True))
    assert torch.equal(loss(beyond_two_to_the_31(logits), target), near[0])


@pytest.mark.skipif(extension.backend() != "native", reason="tests the native kernels")
@pytest.mark.skipif(DEVICE.type == "cuda", reason="measured on the CPU")
def test_memory() -> None:
    """For any number of classes: forward two maps (N, H, W) in addition to the results, backward
    two and the gradient. Logits at the image's size would take 1.2 GB."""
    classes, height, width = 300, 1000, 1000
    logits = torch.randn(1, classes, 125, 125, requires_grad=True)
    target = torch.randint(0, classes, (1, height, width))
    one_map, slack = 4 * height * width, 2**21

    def peak(run: Callable[[], Any]) -> int:
        found = memory.peak_extra_bytes(run, repeats=1, budget=0)
        assert found is not None
        return found

    with torch.no_grad():
        assert peak(lambda: up_cross_entropy(logits, target)) <= 2 * one_map + slack
        size = (height, width)
        labels = peak(
            lambda: functional.upsample_argmax(logits, size, align_corners=False, dtype=torch.int32)
        )
        assert labels <= one_map + slack
    both = peak(lambda: torch.autograd.grad(up_cross_entropy(logits, target), logits))
    assert both <= 2 * one_map + logits.nbytes + slack


def up_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    return functional.upsample_cross_entropy(logits, target, align_corners=False)


def samples(layout: str) -> dict[Any, tuple[Any, ...]]:
    shape, size = (2, 6, 4, 5), (9, 14)
    logits, target = make(shape, torch.float32, layout), labels_for(shape, size)
    binary = torch.rand((*shape[:2], *size), device=DEVICE)
    map = torch.rand((2, *size), device=DEVICE)
    weight = torch.rand(6, device=DEVICE)
    return {
        OPS.upsample_argmax: (logits, [9, 14], False, 8),
        OPS.upsample_softmax_max: (logits, [9, 14], True, 1),
        OPS.upsample_cross_entropy: (logits, target, weight, False, 255, 0.1, True),
        OPS.upsample_cross_entropy_backward: (
            map, logits, target, None, map + 5, False, 255, 0.1
        ),
        OPS.upsample_binary_cross_entropy: (logits, binary, None, binary, True, False),
        OPS.upsample_binary_cross_entropy_backward: (
            binary, logits, binary, binary, None, True
        ),
        OPS.upsample_dice: (logits, target, False, 255),
        OPS.upsample_dice_backward: (
            torch.rand(2, 3, 6, device=DEVICE), logits, target, map + 5, False, 255
        ),
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
@pytest.mark.parametrize("operator", list(samples("contiguous")), ids=str)
def test_opcheck(operator: Any, layout: str) -> None:
    arguments = samples(layout)[operator]
    logits = 0 if operator.default._schema.arguments[0].name == "logits" else 1
    arguments = tuple(leaf(a) if i <= logits else a for i, a in enumerate(arguments))
    torch.library.opcheck(operator.default, arguments)


def test_forward_mode_is_refused() -> None:
    loss = losses(False, (1, 3, 2, 2), (4, 4))["mean"]
    logits = make((1, 3, 2, 2), torch.float32, "contiguous")
    operator_checks.raises(
        NotImplementedError, "not supported", lambda: torch.func.grad(loss)(logits)
    )


X, SIZE = (2, 3, 4, 5), (2, 8, 9)


def ce(*arguments: Any, **options: Any) -> Tensor:
    return functional.upsample_cross_entropy(*arguments, align_corners=False, **options)


def argmax(*arguments: Any, **options: Any) -> Tensor:
    return functional.upsample_argmax(*arguments, align_corners=False, **options)


def binary(*arguments: Any, **options: Any) -> Tensor:
    return functional.upsample_binary_cross_entropy(*arguments, align_corners=False, **options)


def target_of(*size: int, dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.zeros(size, dtype=dtype, device=DEVICE)


REFUSED: list[Refusal] = [
    (argmax, (map_of(2, 3), (8, 9)), "upsample_argmax: logits must be 4-D (N, K, h, w)"),
    (argmax, (map_of(2, 0, 4, 5), (8, 9)), "logits must have a class, a row and a column"),
    (argmax, (map_of(*X), (8, 4)), "size must be at least the size of logits, (4, 5), got (8, 4)"),
    (argmax, (map_of(*X), (8,)), "size must be at least the size of logits, (4, 5), got (8)"),
    (ce, (map_of(*X), target_of(2, 8)), "target must be 3-D (N, H, W), got 2-D (2, 8)"),
    (ce, (map_of(*X), map_of(*SIZE)), "target must be int64, int32 or uint8, got float32"),
    (ce, (map_of(*X), target_of(1, 8, 9)), "target must have shape (2, 8, 9), got (1, 8, 9)"),
    (ce, (map_of(*X), target_of(2, 8, 4)), "target must be at least the size of logits"),
    (ce, (map_of(*X), target_of(*SIZE), map_of(4)), "weight must have shape (3), got (4)"),
    (binary, (map_of(*X), map_of(2, 8, 9)), "target must be 4-D (N, K, H, W)"),
    (binary, (map_of(*X), map_of(2, 4, 8, 9)), "target must have shape (2, 3, 8, 9)"),
    (binary, (map_of(*X), map_of(2, 3, 8, 9), map_of(4)), "weight must broadcast to (2, 3, 8, 9)"),
    (
        OPS.upsample_cross_entropy_backward,
        (map_of(2, 8, 8), map_of(*X), target_of(*SIZE), None, map_of(*SIZE), False, 255, 0.0),
        "upsample_cross_entropy_backward: grad must have shape (2, 8, 9), got (2, 8, 8)",
    ),
    (
        OPS.upsample_dice_backward,
        (map_of(2, 2, 3), map_of(*X), target_of(*SIZE), map_of(*SIZE), False, 255),
        "grad must have shape (2, 3, 3), got (2, 2, 3)",
    ),
]


@pytest.mark.parametrize("refusal", REFUSED)
def test_refuses(refusal: Refusal) -> None:
    function, arguments, words = refusal
    operator_checks.raises(ValueError, words, lambda: function(*arguments))
    operator_checks.raises(ValueError, words, lambda: function(*map(to_meta, arguments)))


def test_refuses_options() -> None:
    logits, target = map_of(*X), target_of(*SIZE)
    for call, words in (
        (lambda: ce(logits, target, reduction="max"), "reduction must be mean, sum or none"),
        (lambda: ce(logits, target, label_smoothing=1.5), "label_smoothing must be from 0 to 1"),
        (lambda: argmax(logits, (8, 9), dtype=torch.int16), "must be int64, int32 or uint8"),
        (lambda: argmax(map_of(1, 257, 2, 2), (8, 9), dtype=torch.uint8), "at most 256 classes"),
    ):
        operator_checks.raises(ValueError, words, call)


def test_every_sample_is_an_operator() -> None:
    names = {
        n for n in torch._C._dispatch_get_all_op_names() if n.startswith("stripctx::upsample_")
    }
    assert names == {
        f"stripctx::{operator.default._schema.name[10:]}" for operator in samples("contiguous")
    }
