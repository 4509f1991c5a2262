"""The CUDA kernels move the bytes stated in benchmarks/floors, counted by the emulator at every
load and store, and use at most 48 KB of shared memory per block."""

from __future__ import annotations

import emulation
import pytest
import torch

from benchmarks.floors import FLOORS, Launch, cuda_traffic
from benchmarks.operators import COUNTED, DTYPES, LAYOUTS, OPERATORS, Sample, call

emulation.require()

# Maps of SPNet and PSPNet with fewer channels; one that is split along both H and W; one of odd
# sizes, to which 16-byte packs do not apply; and one whose channels do not fill a tile.
SIZES = ((1, 64, 60, 60), (2, 48, 97, 97), (1, 32, 300, 301), (2, 36, 30, 44))
PAPER = (1, 512, 60, 60)  # stage 4 for a crop of 480, with all channels

# Kernels that use more than 48 KB of shared memory, which a launch has to request, and what for.
MORE_SHARED: dict[str, int] = {
    "encode_backward_tiles": 54 * 1024,  # a tile of x with D = 512, two of assignments
    # The codewords, and in backward G, for the whole life of a block. The kernels that load them
    # per tile run where they do not fit.
    "encode_resident": 192 * 1024,
    "encode_backward_resident": 225 * 1024,
    "encode_float": 196 * 1024,
    "encode_backward_float": 227 * 1024,
    # The weights of all rows and columns, float32 in two parts.
    "pyramid_fold_products": 224 * 1024,
    "pyramid_add_products": 96 * 1024,
    "pyramid_add_pixel_products": 200 * 1024,  # also the sums along H of 16 rows of 32 channels
    "pyramid_fold_pixel_products": 160 * 1024,  # also two times 16 rows of 32 bytes of each pixel
}
USUAL_SHARED = 48 * 1024

# Bytes moved over the floor at PAPER's size, where the limit is not 1.1. The reasons:
# - strip_*: each slot of a block rereads the strips, an eighth to a quarter of a map of 60 x 60,
#   from the first-level cache. A channels_last map with few channels that fits in a GPU's
#   second-level cache is reduced along each axis separately: it is read twice and, with a mask,
#   whose strips are read for each pair of lines, three times.
# - sigmoid_gate, channel_gate_*: every slot of a block reads its channels' biases or gates, from
#   the first-level cache.
# - pyramid_pool, pyramid_max_pool: partial results of bins, with so few channels.
# - pyramid_*_add_*: nine taps of 50 cells per plane are an eighth of the map, and every chunk of
#   rows of the image rereads those it needs from the second-level cache. Gradients of one
#   channels_last image are summed by many tiles, which write their partial sums of the cells they
#   share in float32.
# - encode: one image is divided into 113 blocks. In units of x in float32, forward moves 1 (the
#   floor), 2.0 for the blocks' partial sums of 64 KB, through the second-level cache, and 2.0 for
#   the codewords' 64 KB, which every block reads twice. Backward moves 2 (the floor), 2 for sums
#   and 3 for codewords and their gradients. Sums and codewords are float32 for every dtype of x,
#   which is twice as many units in bfloat16.
# - upsample_*: limited by exponentials rather than by bytes. A tile of 8 rows of pixels reads two
#   rows of logits, and two more that neighbouring tiles read too, from the second-level cache.
#   Gradients of few images are divided by classes, and every block reads its pixels' data.
MOST: dict[str | tuple[str, str], float] = {
    ("strip_pool", "channels_last"): 2.1,
    ("strip_add_relu_backward", "channels_last"): 3.5,
    ("sigmoid_gate", "channels_last"): 1.15,
    ("channel_gate", "channels_last"): 1.2,
    ("channel_gate_backward", "channels_last"): 1.2,
    ("pyramid_pool", "channels_last"): 1.2,
    ("pyramid_max_pool", "channels_last"): 1.2,
    ("pyramid_concat_backward", "channels_last"): 1.25,
    ("pyramid_add_relu_backward", "channels_last"): 1.3,
    ("pyramid_add_relu", "channels_last"): 1.15,
    "pyramid_taps_add": 1.3,
    "strip_pool_backward": 1.3,
    "strip_add_relu": 1.3,
    "strip_add_relu_backward": 1.3,
    ("encode", "float32"): 8.0,
    ("encode", "bfloat16"): 14.9,
    ("encode_backward", "float32"): 9.0,
    ("encode_backward", "bfloat16"): 16.9,
    "upsample_argmax": 2.5,
    "upsample_softmax_max": 2.25,
    "upsample_cross_entropy": 2.25,
    "upsample_cross_entropy_backward": 2.2,
    "upsample_binary_cross_entropy_backward": 1.25,
    "upsample_dice": 4.7,
    "upsample_dice_backward": 3.8,
}

every_operator = pytest.mark.parametrize("name", COUNTED)
every_dtype = pytest.mark.parametrize("dtype", DTYPES)
every_layout = pytest.mark.parametrize("layout", LAYOUTS)


def counted(name: str, sample: Sample) -> tuple[int, int, dict[str, Launch]]:
    """Bytes read, bytes written, and the launches of one call."""
    arguments = OPERATORS[name](sample)
    counts = emulation.counts(lambda: call(name, arguments))
    for kernel, count in counts.items():
        assert count["shared_bytes"] <= MORE_SHARED.get(kernel, USUAL_SHARED), kernel
    launches = {k: Launch(tuple(c["grid"]), tuple(c["block"])) for k, c in counts.items()}
    read, written = (
        sum(c[key] for c in counts.values()) for key in ("bytes_read", "bytes_written")
    )
    return read, written, launches


@every_operator
@every_dtype
@every_layout
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_traffic(name: str, dtype: str, layout: str, size: tuple[int, int, int, int]) -> None:
    emulation.skip_heavy(name, size)
    sample = Sample(size, DTYPES[dtype], layout)
    read, written, launches = counted(name, sample)
    expected = cuda_traffic(name, sample.shape, launches)
    assert read == pytest.approx(expected.read, rel=0.05)
    assert written == pytest.approx(expected.written, rel=0.05)


@every_operator
@every_dtype
@every_layout
def test_allowances_above_the_floor_are_small(name: str, dtype: str, layout: str) -> None:
    """Including CUDA_EXTRA, traffic stays within MOST at the paper's size."""
    if name in emulation.HEAVY and layout != "contiguous":
        pytest.skip("slow")
    sample = Sample(PAPER, DTYPES[dtype], layout)
    read, written, launches = counted(name, sample)
    floor = FLOORS[name](sample.shape)
    share = (read + written) / floor.bytes
    print(f"{name} {dtype} {layout}: {share:.3f} of the floor,", launches)  # pytest -s shows it
    limits = (MOST.get((name, kind)) for kind in (dtype, layout))
    assert share <= next((most for most in limits if most), MOST.get(name, 1.1))


# Batches that select the kernels for large channels_last maps, with sums split along W or H.
MANY = ((128, 8, 25, 66), (128, 8, 30, 33))


@every_dtype
@pytest.mark.parametrize("name", ["strip_pool", "strip_add_relu_backward"])
@pytest.mark.parametrize("size", MANY, ids=str)
def test_traffic_of_large_batches(name: str, dtype: str, size: tuple[int, int, int, int]) -> None:
    test_traffic(name, dtype, "channels_last", size)


@every_dtype
@every_layout
def test_sizes_split_rows_and_columns(dtype: str, layout: str) -> None:
    """SIZES and MANY split rows and columns."""
    grids = []
    for size in (*SIZES, *MANY):
        launches = counted("strip_pool", Sample(size, DTYPES[dtype], layout))[2]
        found = [(k, x.grid) for k, x in launches.items() if k.startswith("strip_reduce")]
        grids += [grid for kernel, grid in found if "small" not in kernel]
    assert any(tiles > 1 for _, tiles, _ in grids)
    assert any(chunks > 1 for _, _, chunks in grids)


def test_every_operator_has_a_floor() -> None:
    assert set(OPERATORS) <= set(FLOORS)


@pytest.mark.parametrize("name", [name for name in COUNTED if name.startswith("pyramid_")])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@every_layout
@pytest.mark.parametrize("size", [(1, 4, 97, 97), (1, 4, 128, 256)], ids=str)
def test_networks_take_no_direct_kernel(
    name: str, dtype: str, layout: str, size: tuple[int, int, int, int]
) -> None:
    """Kernels without tiles are for shapes that no network has."""
    _, _, launches = counted(name, Sample(size, DTYPES[dtype], layout))
    assert not [kernel for kernel in launches if kernel.endswith(("_directly", "_windows"))]


@pytest.mark.parametrize("name", COUNTED)
@every_layout
def test_half_types_take_the_same_kernels(name: str, layout: str) -> None:
    launches = [
        set(counted(name, Sample((1, 32, 20, 24), dtype, layout))[2])
        for dtype in (torch.bfloat16, torch.float16)
    ]
    assert launches[0] == launches[1]
