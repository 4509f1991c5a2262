"""Tests for every operator family on every backend. A family defines its cases:

    class TestStrip(OperatorSuite):
        kernels = (POOL, ADD_RELU, GATE)
        compositions = (STRIP_GATE,)
        refusals = [(function, arguments, words), ...]

        @staticmethod
        def samples(layout): return {operator: arguments}

A family overrides tests in its class where its behaviour differs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import operator_checks
import pytest
import torch
from operator_checks import DEVICE, DTYPES, FORMATS, LAYOUTS, ODD_LAYOUTS, SHAPES, Case, Shape
from torch import Tensor

Refusal = tuple[Callable[..., Any], tuple[Any, ...], str]

any_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
any_format = pytest.mark.parametrize("layout", FORMATS)
SMALL, ODD, PLAIN = (2, 3, 4, 5), (2, 9, 6, 11), (2, 5, 6, 7)


class OperatorSuite:
    kernels: ClassVar[tuple[Case, ...]]  # one operator each
    compositions: ClassVar[tuple[Case, ...]] = ()  # several operators, including those of libraries
    refusals: ClassVar[list[Refusal]]
    # Kernels and compositions used in slow tests; by default all of them.
    typical: ClassVar[tuple[Case, ...]] = ()
    compiled: ClassVar[tuple[Case, ...]] = ()
    # Kernels whose plain form propagates NaN and infinities like interpolation and pooling.
    spreading: ClassVar[tuple[Case, ...]] = ()
    shapes: ClassVar[tuple[Shape, ...]] = SHAPES
    large: ClassVar[Shape] = (2, 37, 30, 33)  # large enough for several threads

    @staticmethod
    def samples(layout: str) -> dict[Any, tuple[Any, ...]]:
        """Arguments for every operator of the family, including backward operators."""
        raise NotImplementedError

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        typical = self.typical or self.kernels
        groups: dict[str, Any] = {
            "kernel": self.kernels,
            "typical_kernel": typical,
            "spreading_kernel": self.spreading or typical,
            "composition": self.compositions,
            "case": (*typical, *self.compositions),
            "compiled_case": (*typical, *(self.compiled or self.compositions)),
            "shape": self.shapes,
            "refusal": self.refusals,
        }
        if "operator" in metafunc.fixturenames:  # only for tests that need it: samples runs kernels
            groups["operator"] = list(self.samples("contiguous"))
        for name in metafunc.fixturenames:
            if name in groups:
                ids = None if name == "refusal" else str
                metafunc.parametrize(name, groups[name], ids=ids)

    @any_dtype
    @any_format
    def test_against_float64(
        self, kernel: Case, shape: Shape, dtype: torch.dtype, layout: str
    ) -> None:
        operator_checks.check_float64(kernel, shape, dtype, layout)

    @pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
    @any_format
    def test_composition_against_float64(
        self, composition: Case, dtype: torch.dtype, layout: str
    ) -> None:
        for shape in (PLAIN, (1, 3, 13, 12), (1, 2, 11, 9)):
            operator_checks.check_float64(composition, shape, dtype, layout)

    @any_dtype
    @pytest.mark.parametrize("layout", ODD_LAYOUTS)
    def test_any_strides(self, typical_kernel: Case, dtype: torch.dtype, layout: str) -> None:
        operator_checks.check_float64(typical_kernel, ODD, dtype, layout)

    def test_mixed_layouts(self, typical_kernel: Case) -> None:
        operator_checks.check_mixed_layouts(typical_kernel, ODD)

    def test_keeps_the_format(self, case: Case) -> None:
        operator_checks.check_format(case, ODD, torch.float32)

    @pytest.mark.slow
    def test_gradients(self, case: Case) -> None:
        operator_checks.check_gradients(case, SMALL)

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_same_bits(self, typical_kernel: Case, layout: str) -> None:
        operator_checks.check_bits(typical_kernel, self.large, torch.float32, layout)

    @any_format
    def test_nan_and_infinity_spread(self, spreading_kernel: Case, layout: str) -> None:
        operator_checks.check_nonfinite(spreading_kernel, PLAIN, layout)

    @pytest.mark.slow
    def test_compile(self, compiled_case: Case) -> None:
        """In channels_last; test_opcheck traces both formats."""
        exact = compiled_case in self.kernels
        operator_checks.check_compile(compiled_case, PLAIN, "channels_last", exact=exact)

    @pytest.mark.slow
    def test_export(self, case: Case) -> None:
        operator_checks.check_export(case, PLAIN)

    def test_vmap(self, typical_kernel: Case) -> None:
        operator_checks.check_vmap(typical_kernel, SMALL)

    def test_forward_mode_is_refused(self, typical_kernel: Case) -> None:
        operator_checks.check_refusals_of_forward_mode(typical_kernel, SMALL)

    @pytest.mark.skipif(DEVICE.type != "cuda", reason="CUDA graphs need a GPU")
    @any_format
    def test_cuda_graph(self, case: Case, layout: str) -> None:
        operator_checks.check_cuda_graph(case, ODD, layout)

    @pytest.mark.slow
    @pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
    def test_opcheck(self, operator: Any, layout: str) -> None:
        arguments = tuple(leaf(a) for a in self.samples(layout)[operator])
        torch.library.opcheck(operator.default, arguments)

    def test_refuses(self, refusal: Refusal) -> None:
        """Kernels and fake kernels raise the same message."""
        function, arguments, words = refusal
        operator_checks.raises(ValueError, words, lambda: function(*arguments))
        operator_checks.raises(ValueError, words, lambda: function(*map(to_meta, arguments)))


def leaf(argument: Any) -> Any:
    """Returns the argument, requiring gradients if possible."""
    if isinstance(argument, list):
        return [leaf(item) for item in argument]
    if isinstance(argument, Tensor) and argument.is_floating_point():
        return argument.detach().requires_grad_()
    return argument


def to_meta(argument: Any) -> Any:
    if isinstance(argument, list):
        return [to_meta(item) for item in argument]
    return argument.to("meta") if isinstance(argument, Tensor) else argument


def map_of(*size: int, **options: Any) -> Tensor:
    """Zeros of this size, for calls that are refused."""
    return torch.zeros(size, device=DEVICE, **options)


def beyond_two_to_the_31(values: Tensor, axis: int = 0) -> Tensor:
    """The same values in a view whose element offsets exceed 2^31 along an axis of size 2; the rest
    of its storage is never touched."""
    assert values.shape[axis] == 2
    if values.dim() == 4 and axis == 3:
        return beyond_two_to_the_31(values.permute(0, 2, 3, 1), 2).permute(0, 3, 1, 2)
    far = 2**31 + 5
    inner = values.select(axis, 0).contiguous()
    storage = torch.empty(far + inner.numel(), dtype=values.dtype, device=DEVICE)
    strides = [*inner.stride()]
    strides.insert(axis, far)
    return storage.as_strided(values.shape, strides).copy_(values)


# Shapes and the axis of size 2 for it: offsets between images, within one of several images, and
# within its rows (W in front of C in memory: channels_last).
FAR_SHAPES = [((2, 2, 3, 4), 0), ((5, 2, 2, 8), 2), ((5, 2, 8, 2), 3)]


def far_and_near(shape: Sequence[int], axis: int) -> tuple[Tensor, Tensor]:
    """A bfloat16 map with offsets beyond 2^31, and a dense one of the same values and format."""
    values = torch.randn(shape, device=DEVICE).bfloat16()
    format = torch.channels_last if axis == 3 else torch.contiguous_format
    return beyond_two_to_the_31(values, axis), values.contiguous(memory_format=format)
