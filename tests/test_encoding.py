"""The encoding family: operators, gradients, rounding, operator suite, refusals. The layers are
tested in test_layers_encoding.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import operator_checks
import pytest
import torch
from operator_checks import DEVICE, DTYPES, EMULATED, FORMATS, Case, Shape
from operator_suite import FAR_SHAPES, OperatorSuite, Refusal, far_and_near, map_of
from torch import Tensor

from stripctx import extension, functional

OPS = torch.ops.stripctx


def plain_encode(x: Tensor, codewords: Tensor, scale: Tensor) -> Tensor:
    """The definition, which materialises N*L*K*D residuals."""
    residuals = x.flatten(2).mT[:, :, None] - codewords
    assignments = (residuals.square().sum(-1) * scale).softmax(-1)
    return (assignments[..., None] * residuals).sum(1)


def plain_gate(x: Tensor, gate: Tensor) -> Tensor:
    return (x + x * gate[..., None, None]).relu()


def softened(encode: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Divides the scale by about D, exactly, so that noise gives assignments between 0 and 1."""

    def run(x: Tensor, codewords: Tensor, scale: Tensor) -> Tensor:
        return encode(x, codewords, scale / 2 ** (codewords.size(1) - 1).bit_length())

    return run


def encode_case(codes: int) -> Case:
    return Case(
        f"encode{codes}",
        softened(functional.encode),
        softened(plain_encode),
        lambda s: [s, (codes, s[1]), (codes,)],
        cancels=10,
    )


ENCODE = encode_case(5)
GATE = Case("channel_gate", functional.channel_gate, plain_gate, lambda s: [s, s[:2]])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("codes", [1, 3, 31, 32, 33, 64])
@pytest.mark.parametrize("depth", [1, 3, 33, 130])
def test_any_sizes(codes: int, depth: int, dtype: torch.dtype, layout: str) -> None:
    """K, D and L that are not multiples of vectors, tiles and blocks; general and tensor core
    kernels."""
    length = {1: 29, 3: 67, 33: 50, 130: 1}[depth]
    operator_checks.check_float64(encode_case(codes), (2, depth, 1, length), dtype, layout)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(1, 512, 6, 11), (1, 640, 3, 5), (3, 128, 14, 14)], ids=str)
def test_sizes_of_the_networks(shape: Shape, dtype: torch.dtype) -> None:
    """The depths of EncNet and Deep TEN, and one too large for the tensor core kernels."""
    operator_checks.check_float64(encode_case(32), shape, dtype, "contiguous")


@pytest.mark.skipif(not EMULATED, reason="counts launches")
@pytest.mark.parametrize(
    ("dtype", "kind"),
    [(torch.bfloat16, "resident"), (torch.float16, "resident"), (torch.float32, "float")],
    ids=str,
)
def test_devices_with_less_shared_memory(
    dtype: torch.dtype, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Codewords then do not stay in shared memory."""
    import emulation

    def check() -> None:
        operator_checks.check_float64(encode_case(32), (1, 130, 3, 13), dtype, "contiguous")

    assert {f"encode_{kind}", f"encode_backward_{kind}"} <= emulation.counts(check).keys()
    monkeypatch.setenv("STRIPCTX_SIMT_SHARED_BYTES", str(64 * 1024))
    assert {"encode_tiles", "encode_backward_tiles"} <= emulation.counts(check).keys()


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("of_grad", [1.0, 3e4], ids=str)
@pytest.mark.parametrize("of_x", [1e-4, 1.0, 1e4], ids=str)
def test_float16_of_any_magnitude(of_x: float, of_grad: float, layout: str) -> None:
    """The operands of products on tensor cores are float16, and gradients have a loss scale. The
    gradient of x is at most `of_grad`."""
    x, codewords, scale = encode_case(32).arguments((1, 64, 7, 11), torch.float32, layout)
    codewords *= torch.logspace(-6, 0, 32)[:, None]
    arguments = ((of_x * x).half(), of_x * codewords, scale / 64 / of_x**2)
    exact = tuple(a.double() for a in arguments)
    grad = noise(1, 32, 64)
    grad *= of_grad / float(operator_checks.run(plain_encode, exact, (grad,))[1].abs().max())
    values = operator_checks.run(functional.encode, arguments, (grad,))
    expected = operator_checks.run(plain_encode, exact, (grad,))
    for i, (value, want) in enumerate(zip(values, expected, strict=True)):
        bound = operator_checks.TOLERANCE[torch.float16] if i == 1 else 1e-5
        assert operator_checks.relative_error(value, want) < bound, i


@pytest.mark.skipif(not EMULATED, reason="chooses the emulated chip")
@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("shape", "codes"), [((2, 40, 9, 10), 32), ((1, 130, 7, 11), 31), ((1, 264, 5, 7), 3)], ids=str
)
def test_chips_without_products_of_warpgroups(
    shape: Shape, codes: int, dtype: torch.dtype, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but sm_90, whose products agree to the rounding of sums."""
    x, codewords, scale = encode_case(codes).arguments(shape, torch.float32, layout)
    arguments = (x.to(dtype), codewords, scale / shape[1])
    grad = noise(shape[0], codes, shape[1])
    with_warpgroups = operator_checks.run(functional.encode, arguments, (grad,))
    monkeypatch.setenv("STRIPCTX_SIMT_CAPABILITY", "80")
    values = operator_checks.run(functional.encode, arguments, (grad,))
    expected = operator_checks.run(plain_encode, tuple(a.double() for a in arguments), (grad,))
    for i, (value, other, want) in enumerate(zip(values, with_warpgroups, expected, strict=True)):
        bound = operator_checks.TOLERANCE[dtype] if i == 1 else 1e-5
        assert operator_checks.relative_error(value, want) < bound
        assert operator_checks.relative_error(other, want) < bound


# Rounding.


def noise(*size: int, offset: float = 0.0) -> Tensor:
    return (torch.randn(size, dtype=torch.float64) + offset).to(DEVICE, torch.float32)


def near(codewords: Tensor) -> Tensor:
    """Features within 0.1 of a codeword, for which an expanded square would cancel."""
    nearest = codewords[torch.randint(8, (2, 90))].mT
    return (nearest + 0.1 * noise(2, 24, 90))[..., None]


def clustered() -> tuple[Tensor, Tensor]:
    """Codewords 100 apart."""
    codewords = 100 * noise(8, 24)
    return near(codewords), codewords


def clustered_pairs() -> tuple[Tensor, Tensor]:
    """Two codewords 0.1 apart in each cluster: assignments between 0 and 1."""
    codewords = 100 * noise(8, 24)
    codewords[1::2] = codewords[::2] + 0.1 * noise(4, 24)
    return near(codewords), codewords


SPREADS: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
    "centred": lambda: (noise(2, 96, 9, 11), noise(8, 96)),
    "offset": lambda: (noise(2, 96, 9, 11, offset=1000), noise(8, 96, offset=1000)),
    "far codewords": lambda: (noise(2, 96, 9, 11, offset=1000), noise(8, 96)),
    "clustered": clustered,
    "clustered pairs": clustered_pairs,
}


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("scale", [-1.0, 0.0, 1.0])
def test_rounding_is_that_of_the_residual_form(spread: str, scale: float) -> None:
    """The error against float64 is at most four times that of the residual form in float32, or
    1e-6."""
    x, codewords = SPREADS[spread]()
    scales = scale * torch.rand(8).to(DEVICE) / codewords.size(1)
    if spread == "far codewords":
        scales /= 1000  # distances are of the order of a million
    elif spread == "clustered pairs" and scale < 0:
        scales *= 100  # distances are of the order of 0.01
    grad = noise(2, 8, codewords.size(1))
    arguments = (x, codewords, scales)
    expected = operator_checks.run(plain_encode, tuple(a.double() for a in arguments), (grad,))
    residual = operator_checks.run(plain_encode, arguments, (grad,))
    values = operator_checks.run(functional.encode, arguments, (grad,))
    for i, (value, other, want) in enumerate(zip(values, residual, expected, strict=True)):
        error, bound = (operator_checks.relative_error(v, want) for v in (value, other))
        assert error <= max(1e-6, 4 * bound), f"result {i}: {error:.1e}, residual form {bound:.1e}"


@pytest.mark.slow
def test_rounding_does_not_grow_with_the_positions() -> None:
    """Sums over all positions of a map are as accurate as over few: tensor cores truncate what does
    not fit into an accumulator, always towards zero."""
    x = noise(16, 8, 3600, 1)
    codewords, scale, grad = noise(32, 8), noise(32) / 8, noise(16, 32, 8)
    values = operator_checks.run(functional.encode, (x, codewords, scale), (grad,))
    wide = (x.double(), codewords.double(), scale.double())
    parts = []
    for n in range(16):
        leaf = (wide[0][n : n + 1], *wide[1:])
        parts.append(operator_checks.run(plain_encode, leaf, (grad[n : n + 1].double(),)))
    expected = [torch.cat([part[i] for part in parts]) for i in (0, 1)]
    expected += [torch.stack([part[i] for part in parts]).sum(0) for i in (2, 3)]
    for i, (value, want) in enumerate(zip(values, expected, strict=True)):
        assert operator_checks.relative_error(value, want) < 1e-6, f"result {i}"


def test_zero_and_extreme_scales() -> None:
    x, codewords, grad = noise(2, 6, 5, 7), noise(4, 6), noise(2, 4, 6)
    for scales in ([0, 0, 0, 0], [0, -1, 0, 2], [-1e4, 1e4, 0, 1], [-1e30, -1e30, -1, -2]):
        arguments = (x, codewords, torch.tensor(scales, dtype=torch.float32, device=DEVICE))
        values = operator_checks.run(functional.encode, arguments, (grad,))
        expected = operator_checks.run(plain_encode, tuple(a.double() for a in arguments), (grad,))
        for value, want in zip(values, expected, strict=True):
            assert value.isfinite().all()
            assert operator_checks.relative_error(value, want) < 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("codes", [4, 40])
def test_logits_whose_rounding_exceeds_the_range_of_exp(codes: int, dtype: torch.dtype) -> None:
    """Features so far from all codewords that the last place of a logit is in the thousands. The
    largest assignment then depends on rounding; the sum over all codewords does not."""
    x = (noise(2, 6, 5, 7, offset=10.0).double() * (1e5 if dtype is torch.float32 else 1e12)).to(
        dtype
    )
    arguments = (x, noise(codes, 6).to(dtype), -torch.rand(codes).to(DEVICE, dtype))
    value, *gradients = operator_checks.run(functional.encode, arguments, (noise(2, codes, 6),))
    assert all(gradient.isfinite().all() for gradient in gradients)
    expected = plain_encode(*(a.double() for a in arguments))
    assert operator_checks.relative_error(value.sum(1), expected.sum(1)) < 1e-5


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", FORMATS)
def test_half_maps_with_float32_parameters(half: torch.dtype, layout: str) -> None:
    """Sums and gradients of parameters are float32 and as exact; the gradient of x has its
    dtype."""
    x, codewords, scale = encode_case(32).arguments((2, 40, 9, 10), torch.float32, layout)
    arguments = (x.to(half), codewords, scale / 40)
    grad = noise(2, 32, 40)
    values = operator_checks.run(functional.encode, arguments, (grad,))
    expected = operator_checks.run(plain_encode, tuple(a.double() for a in arguments), (grad,))
    assert [v.dtype for v in values] == [torch.float32, half, torch.float32, torch.float32]
    for i, (value, want) in enumerate(zip(values, expected, strict=True)):
        bound = operator_checks.TOLERANCE[half] if i == 1 else 1e-5
        assert operator_checks.relative_error(value, want) < bound


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_maps_near_codewords(dtype: torch.dtype, layout: str) -> None:
    """Features close to codewords that are far from their mean, in pairs close to each other."""
    x, codewords = clustered_pairs()
    last = layout == "channels_last"
    half = x.to(dtype).contiguous(
        memory_format=torch.channels_last if last else torch.contiguous_format
    )
    arguments = (half, codewords, -100 * torch.rand(8).to(DEVICE) / codewords.size(1))
    grad = noise(2, 8, codewords.size(1))
    values = operator_checks.run(functional.encode, arguments, (grad,))
    expected = operator_checks.run(plain_encode, tuple(a.double() for a in arguments), (grad,))
    for i, (value, want) in enumerate(zip(values, expected, strict=True)):
        bound = operator_checks.TOLERANCE[dtype] if i == 1 else 1e-5
        assert operator_checks.relative_error(value, want) < bound


def test_tf32_is_used_where_it_is_allowed() -> None:
    """Only by the CUDA kernels; elsewhere the setting does not change any bit."""
    arguments = encode_case(32).arguments((1, 64, 8, 8), torch.float32)
    x, codewords, scale = (a.double() for a in arguments)
    exact = plain_encode(x, codewords, scale / 64)
    forms = [
        OPS.encode(arguments[0], arguments[1], arguments[2] / 64, allow) for allow in (False, True)
    ]
    assert operator_checks.relative_error(forms[0], exact) < 1e-6
    assert operator_checks.relative_error(forms[1], exact) < 2e-3
    assert torch.equal(*forms) != (EMULATED or DEVICE.type == "cuda")


def test_tf32_follows_torch() -> None:
    matmul = torch.backends.cuda.matmul
    seen: list[str] = []

    def backend(module: torch.fx.GraphModule, _: Any) -> Any:
        seen.append(module.code)
        return module

    arguments = ENCODE.arguments((1, 3, 2, 2), torch.float32)
    compiled = torch.compile(functional.encode, fullgraph=True, backend=backend)
    before = matmul.allow_tf32
    try:
        for allowed in (False, True):
            matmul.allow_tf32 = allowed
            assert functional.encoding._tf32_allowed() is allowed
            compiled(*arguments)
            assert f"scale, {allowed}" in seen[-1].replace("l_scale_", "scale")
    finally:
        matmul.allow_tf32 = before


# Shapes, memory, autocast.


@pytest.mark.parametrize("layout", ["contiguous", "transposed"])
def test_three_dimensional_maps(layout: str) -> None:
    """(N, D, L), as in Deep TEN, equals (N, D, L, 1), and its gradient keeps its strides."""
    x = noise(3, 128, 196)
    if layout == "transposed":
        x = x.mT.contiguous().mT
    codewords, scale, grad = noise(32, 128), noise(32) / 128, noise(3, 32, 128)
    values = operator_checks.run(functional.encode, (x, codewords, scale), (grad,))
    square = (x.unflatten(2, (14, 14)), codewords, scale)
    for a, b in zip(values, operator_checks.run(functional.encode, square, (grad,)), strict=True):
        assert torch.equal(a, b.flatten(2) if b.dim() == 4 else b)
    assert values[1].stride() == x.stride()


@pytest.mark.skipif(extension.backend() != "native", reason="measures the native CPU kernels")
@pytest.mark.skipif(DEVICE.type != "cpu", reason="measures the native CPU kernels")
@pytest.mark.parametrize("layout", FORMATS)
def test_memory(layout: str) -> None:
    """In addition to its results, at most N*L*K elements of partial sums, and a tile per thread."""
    x = operator_checks.make((1, 256, 160, 200), torch.float32, layout)  # 31 MiB
    codewords, scale, grad = noise(32, 256), noise(32) / 256, noise(1, 32, 256)
    tiles = torch.get_num_threads() * 1024 * 1024
    allowed = 4 * 32000 * 32 + tiles
    assert allowed < x.nbytes / 3
    functional.encode(x[:, :, :9], codewords, scale)
    assert peak_growth(lambda: OPS.encode(x, codewords, scale, False)) < allowed
    backward = peak_growth(lambda: OPS.encode_backward(grad, x, codewords, scale, False))
    assert backward < x.nbytes + allowed


def peak_growth(run: Callable[[], object]) -> int:
    """The maximum growth in bytes of the process's resident memory during `run`."""

    def resident(name: str) -> int:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith(name)) * 1024

    with open("/proc/self/clear_refs", "w") as peak:
        peak.write("5")
    before = resident("VmRSS")
    kept = run()
    growth = resident("VmHWM") - before
    del kept
    return growth


@pytest.mark.parametrize("shape, axis", FAR_SHAPES)
def test_offsets_past_two_to_the_31(shape: tuple[int, ...], axis: int) -> None:
    x, values = far_and_near(shape, axis)
    codewords, scale, gate = noise(3, 2), noise(3), noise(*shape[:2]).bfloat16()
    encoded = functional.encode(values, codewords, scale)
    assert torch.equal(functional.encode(x, codewords, scale), encoded)
    assert torch.equal(functional.channel_gate(x, gate), functional.channel_gate(values, gate))
    grads = [OPS.encode_backward(encoded, m, codewords, scale, False) for m in (x, values)]
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_autocast() -> None:
    """x is cast as for conv2d, parameters and sums stay float32; the gate keeps x's dtype."""
    x, codewords, scale = ENCODE.arguments((2, 5, 6, 7), torch.float32)
    leaf = x.clone().requires_grad_()
    gate = torch.randn(2, 5, device=DEVICE)
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
        encoded = functional.encode(leaf, codewords, scale)
        assert encoded.dtype == torch.float32
        assert torch.equal(
            functional.encode(x, codewords.half(), scale.half()),
            functional.encode(x, codewords.half().float(), scale.half().float()),
        )
        assert functional.encode(x.double(), codewords.double(), scale.double()).dtype == (
            torch.float64
        )
        assert functional.channel_gate(x, gate.bfloat16()).dtype == torch.float32
        assert functional.channel_gate(x.bfloat16(), gate).dtype == torch.bfloat16
    assert torch.equal(encoded, functional.encode(x.bfloat16(), codewords, scale))
    encoded.sum().backward()
    assert leaf.grad is not None and leaf.grad.dtype == torch.float32


def test_vmap_of_the_gradients() -> None:
    """The backward operator is vmapped by a loop, because its sums run over images."""
    batches = [ENCODE.arguments((2, 3, 4, 5), torch.float32) for _ in range(3)]
    grad = torch.randn(3, 2, 5, 3, device=DEVICE)
    stacked = [torch.stack(group) for group in zip(*batches, strict=True)]
    mapped = torch.vmap(lambda *a: OPS.encode_backward(*a, False))(grad, *stacked)
    for i, batch in enumerate(batches):
        looped = OPS.encode_backward(grad[i], *batch, False)
        for a, b in zip(mapped, looped, strict=True):
            torch.testing.assert_close(a[i], b)


# Refusals.


X = (2, 3, 4, 5)
ENCODED = (map_of(*X), map_of(6, 3), map_of(6))
REFUSED: list[Refusal] = [
    (
        functional.encode,
        (map_of(2, 3), *ENCODED[1:]),
        "encode: x must be 4-D (N, D, H, W), got 2-D",
    ),
    (
        functional.encode,
        (map_of(*X, dtype=torch.int32), *ENCODED[1:]),
        "x must be float64, float32, float16 or bfloat16, got int32",
    ),
    (
        functional.encode,
        (map_of(*X), map_of(6), map_of(6)),
        "codewords must be 2-D (K, D), got 1-D (6)",
    ),
    (
        functional.encode,
        (map_of(*X), map_of(6, 4), map_of(6)),
        "codewords must have shape (6, 3), got (6, 4)",
    ),
    (
        functional.encode,
        (map_of(*X), map_of(0, 3), map_of(0)),
        "codewords must be at least one, got 0",
    ),
    (
        functional.encode,
        (map_of(*X), map_of(6, 3).half(), map_of(6).half()),
        "codewords must have the dtype of x, float32, got float16",
    ),
    (
        functional.encode,
        (map_of(*X).half(), map_of(6, 3).bfloat16(), map_of(6).bfloat16()),
        "codewords must have the dtype of x, float16, got bfloat16",
    ),
    (
        functional.encode,
        (map_of(*X).half(), map_of(6, 3), map_of(6).half()),
        "scale must have the dtype of codewords, float32, got float16",
    ),
    (
        functional.encode,
        (map_of(*X), map_of(6, 3), map_of(5)),
        "scale must have shape (6), got (5)",
    ),
    (
        OPS.encode_backward,
        (map_of(2, 6, 4), *ENCODED, False),
        "grad must have shape (2, 6, 3), got (2, 6, 4)",
    ),
    (
        OPS.encode_backward,
        (map_of(2, 6, 3).half(), map_of(*X).half(), *ENCODED[1:], False),
        "grad must have the dtype of codewords, float32, got float16",
    ),
    (
        functional.channel_gate,
        (map_of(*X), map_of(2, 4)),
        "gate must have shape (2, 3), got (2, 4)",
    ),
    (
        functional.channel_gate,
        (map_of(*X), map_of(2, 3).half()),
        "gate must have the dtype of x, float32, got float16",
    ),
    (
        OPS.channel_gate_backward,
        (map_of(1, 3, 4, 5), map_of(*X), map_of(2, 3)),
        "grad must have shape (2, 3, 4, 5), got (1, 3, 4, 5)",
    ),
]


class TestEncoding(OperatorSuite):
    kernels = (ENCODE, GATE)
    spreading = (ENCODE, GATE, encode_case(33))
    refusals = REFUSED

    @staticmethod
    def samples(layout: str) -> dict[Any, tuple[Any, ...]]:
        x, codewords, scale = ENCODE.arguments((2, 5, 6, 7), torch.float32, layout)
        grad, gate = torch.randn(2, 5, 5, device=DEVICE), torch.randn(2, 5, device=DEVICE)
        return {
            OPS.encode: (x, codewords, scale, False),
            OPS.encode_backward: (grad, x, codewords, scale, True),
            OPS.channel_gate: (x, gate),
            OPS.channel_gate_backward: (x.flip(0), x, gate),
        }
