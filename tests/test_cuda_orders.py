"""The CUDA kernels give the same bits for every order of threads: a missing barrier causes a
difference between orders."""

from __future__ import annotations

import emulation
import pytest
import torch

from benchmarks.operators import COUNTED, DTYPES, LAYOUTS, OPERATORS, VARIANTS, Sample, call

emulation.require()

# Several warps per block and blocks per map; two stages; odd sizes, which leave threads idle.
SIZES = ((2, 20, 33, 40), (1, 32, 264, 135), (1, 24, 61, 70))


@pytest.mark.parametrize("name", COUNTED)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_same_bits_in_every_order(
    name: str, dtype: str, layout: str, size: tuple[int, int, int, int]
) -> None:
    if name in emulation.HEAVY and size != SIZES[2]:
        pytest.skip("slow")
    check_orders(name, dtype, layout, size)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_same_bits_in_every_order_of_variants(name: str, dtype: str, layout: str) -> None:
    check_orders(name, dtype, layout, (1, 6, 82, 140))


@pytest.mark.parametrize("dtype", DTYPES)
def test_same_bits_for_large_batches(dtype: str) -> None:
    """The warps of a block exchange their sums."""
    check_orders("strip_add_relu_backward", dtype, "channels_last", (128, 8, 7, 66))


def check_orders(name: str, dtype: str, layout: str, size: tuple[int, int, int, int]) -> None:
    arguments = (OPERATORS | VARIANTS)[name](Sample(size, DTYPES[dtype], layout))
    results = []
    for order in emulation.ORDERS:
        with emulation.order(order):
            results.append(call(name, arguments))
    for order, result in zip(emulation.ORDERS[1:], results[1:], strict=True):
        for value, expected in zip(result, results[0], strict=True):
            assert torch.equal(value, expected), f"{order} differs from {emulation.ORDERS[0]}"
