"""The speed model predicts the known bottlenecks of test kernels (tests/simt/kernels/planted.cu),
and its parts are correct."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest
import sass
import speed_code
import speed_model
import speed_record
import toolkit
import torch

PLANTED = toolkit.EMULATOR / "kernels" / "planted.cu"
RECORD = "benchmarks/results/model.json"
COUNT = 2**27  # elements, in untouched memory

needs_compilers = pytest.mark.skipif(
    toolkit.nvcc() is None or toolkit.cuobjdump() is None or not toolkit.include_directories(),
    reason="needs nvcc, cuobjdump and cuda_fp16.h",
)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, speed_model.Result]:
    """The result of each planted kernel, by name, for copying COUNT elements."""
    nvcc, disassembler = toolkit.nvcc(), toolkit.cuobjdump()
    assert nvcc and disassembler
    folder = tmp_path_factory.mktemp("planted")
    kernels = speed_code.compiled(PLANTED, folder, nvcc, disassembler)
    path = toolkit.compile_emulated([PLANTED], folder / "planted.so")
    library = toolkit.load(path)
    x, out = torch.empty(COUNT), torch.empty(COUNT)
    results = {}
    for name in kernels:
        arguments = (name.encode(), x.data_ptr(), out.data_ptr(), COUNT)

        def run(given: tuple[object, ...] = arguments) -> None:
            text, a, b, count = given
            pointers = map(ctypes.c_void_p, (a, b))
            library.run_planted(text, *pointers, ctypes.c_int64(count))

        launches = speed_model.trace(library, str(path), run)
        lines = [speed_model.line(launch, kernels[name]) for launch in launches]
        results[name] = speed_model.Result(
            name, (1, 1, 1, COUNT), "float32", "contiguous", 8 * COUNT, lines
        )
    return results


@pytest.mark.slow
@needs_compilers
def test_a_plain_copy_is_a_copy(planted: dict[str, speed_model.Result]) -> None:
    result = planted["planted_copy"]
    assert result.share() > 0.99 and result.binds() == "bytes"
    (one,) = result.lines
    assert one.sectors == 4 and one.conflicts == 1
    assert one.moved == 8 * COUNT
    assert 0.004 < result.instructions_a_byte < 0.02
    assert one.occupancy > 0.5 and one.in_flight > 64 * 1024  # four packs per thread


@pytest.mark.slow
@needs_compilers
def test_what_is_serial_waits_for_memory(planted: dict[str, speed_model.Result]) -> None:
    result = planted["planted_serial"]
    assert result.share() < 0.5 and result.binds() == "latency"
    assert result.longest.occupancy <= 0.5  # 32 blocks of one warp


@pytest.mark.slow
@needs_compilers
def test_colliding_banks_are_found(planted: dict[str, speed_model.Result]) -> None:
    result = planted["planted_conflicts"]
    assert result.longest.conflicts == 32
    assert result.share() < 0.5 and result.binds() == "shared memory"


@pytest.mark.slow
@needs_compilers
def test_arithmetic_is_found(planted: dict[str, speed_model.Result]) -> None:
    """200 multiply-adds per 8 bytes in each of 32 lanes, which the emulator does not count."""
    result = planted["planted_arithmetic"]
    assert 200 / (8 * 32) < result.instructions_a_byte < 240 / (8 * 32)
    assert result.binds() == "instructions"
    assert 0.2 < result.share() < 0.3  # a copy's time allows 0.2 per byte


@pytest.mark.slow
@needs_compilers
def test_a_ring_of_asynchronous_copies_hides_latency(
    planted: dict[str, speed_model.Result],
) -> None:
    """Two warps a block with four copies of 512 bytes each, but for the last three of sixteen."""
    result = planted["planted_ring"]
    (one,) = result.lines
    ring = (13 * 16 + 9 + 4 + 1) / (13 * 4 + 3 + 2 + 1)
    assert one.in_flight == pytest.approx(one.resident * 2 * ring * 512)
    assert one.moved == 8 * COUNT and one.sectors == 4 and one.conflicts == 1
    assert result.share() > 0.99 and result.binds() == "bytes"
    assert 0.004 < result.instructions_a_byte < 0.02


@pytest.mark.slow
@needs_compilers
def test_bulk_copies_hide_latency(planted: dict[str, speed_model.Result]) -> None:
    """Two warps a block with two pieces of 1 KB each, but for the last of eight."""
    (one,) = planted["planted_bulk"].lines
    ring = (7 * 4 + 1) / (7 * 2 + 1)
    assert one.in_flight == pytest.approx(one.resident * 2 * ring * 1024)
    assert one.moved == 8 * COUNT and one.sectors == 4 and one.conflicts == 1
    assert one.times["latency"] < 8 * COUNT / speed_model.H100.copied
    assert planted["planted_bulk"].share() > 0.8


@pytest.mark.slow
@needs_compilers
def test_products_of_warpgroups_are_found(planted: dict[str, speed_model.Result]) -> None:
    """3200 products of 64 x 64 x 16 by each block: 32 clocks each, and as many wavefronts of 128
    bytes of their operands."""
    (one,) = planted["planted_products"].lines
    chip = speed_model.H100
    clocks = one.blocks * 3200 * 32 / (chip.processors * chip.clock)
    assert one.times["tensor cores"] == pytest.approx(clocks, rel=0.05)  # the last wave has gaps
    assert one.times["shared memory"] == pytest.approx(clocks, rel=0.06)
    assert one.binds in ("tensor cores", "shared memory")
    assert 3200 < one.instructions / (4 * one.blocks) < 2.5 * 3200


LOOP = """
    Function : kernel
    /*0000*/                   LDC R1, c[0x0][0x28] ;
    /*0010*/               @P0 EXIT ;
    /*0020*/                   LDG.E.128.CONSTANT R4, desc[UR4][R2.64] ;
    /*0030*/                   LDG.E.128.CONSTANT R8, desc[UR4][R2.64+0x10] ;
    /*0040*/                   FADD R4, R4, R8 ;
    /*0050*/              @!P1 BRA 0x80 ;
    /*0060*/                   FADD R4, R4, R4 ;
    /*0070*/                   FADD R4, R4, R4 ;
    /*0080*/               @P2 BRA 0x20 ;
    /*0090*/                   STG.E [R2], R4 ;
    /*00a0*/                   EXIT ;
"""


def test_loops_run_as_often_as_their_loads_say() -> None:
    """Ten warps with eight iterations each, on the cheaper path."""
    code = sass.functions(LOOP)["kernel"]
    assert len(code) == 11 and code[2].kind == ("load 16", 1) and code[5].target == 0x80
    counted = {"load 16": 160.0, "store 4": 10.0}
    issued, at_once = sass.instructions(code, 10, counted)
    assert issued == pytest.approx(10 * 2 + 80 * 5 + 10 * 2, rel=1e-3)
    assert at_once == 2


def test_both_ways_of_a_branch_run_where_counts_say_so() -> None:
    code = sass.functions(LOOP.replace("FADD R4, R4, R4", "SHFL.BFLY R4, R4, R4"))["kernel"]
    issued, _ = sass.instructions(code, 10, {"load 16": 160.0, "shuffle": 160.0, "store 4": 10})
    assert issued == pytest.approx(10 * 2 + 80 * 7 + 10 * 2, rel=1e-3)


BRANCHES = """
    Function : kernel
    /*0000*/               @!P0 BRA 0x20 ;
    /*0010*/                   LDG.E R4, desc[UR4][R2.64] ;
    /*0020*/               @!P1 BRA 0x40 ;
    /*0030*/                   LDG.E R5, desc[UR4][R2.64+0x4] ;
    /*0040*/                   FADD R4, R4, R5 ;
    /*0050*/                   LDG.E R6, desc[UR4][R2.64+0x8] ;
    /*0060*/                   STG.E [R2], R6 ;
    /*0070*/                   EXIT ;
"""


def test_loads_behind_branches_are_in_flight_together() -> None:
    """Two before the first is used, then one: two thirds of the loads are one of two."""
    code = sass.functions(BRANCHES)["kernel"]
    _, at_once = sass.instructions(code, 10, {"load 4": 30.0, "store 4": 10.0})
    assert at_once == pytest.approx(5 / 3)


def test_the_cheapest_way() -> None:
    """min x + 2 y with x + y >= 4, x <= 3: the solution is 3 and 1."""
    rows = [{0: 1.0, 1: 1.0}, {0: -1.0}]
    solution = sass.cheapest(np.array([1.0, 2.0]), rows, np.array([4.0, -3.0]))
    assert solution == pytest.approx([3, 1])


@pytest.mark.parametrize(
    ("registers", "threads", "shared", "blocks"),
    [(32, 256, 0, 8), (64, 256, 0, 4), (33, 1024, 0, 1), (32, 32, 0, 32), (32, 256, 48 * 1024, 4)],
)
def test_occupancy_of_an_h100(registers: int, threads: int, shared: int, blocks: int) -> None:
    """Values from Nvidia's occupancy calculator."""
    kernel = speed_code.Kernel([], registers)
    assert speed_model.resident_blocks(kernel, threads, shared, speed_model.H100) == blocks


def test_the_table_says_what_binds_the_longest_launch() -> None:
    """Two launches after torch's copy of half the bytes: 10 + 20 + 30 us, and 2 us between them."""
    times = {"bytes": 1e3, "instructions": 2e4, "shared memory": 5.0, "latency": 9.0}
    lines = [
        speed_model.Line("a", 264, 4, 0.5, 2048, 3e6, 1e6, 4, 1, {**times, "instructions": 1e4}),
        speed_model.Line("b", 132, 4, 0.5, 2048, 6e6, 1e6, 4, 2, times),
    ]
    shape = (1, 2, 3, 4)
    result = speed_model.Result("op", shape, "float32", "contiguous", 18 * 10**7, lines, 9 * 10**7)
    assert result.time() == pytest.approx(62_000) and result.launches == 3
    assert speed_model.row(result)[4:] == [
        *("b", "0.10", "1.0", "50%", "2", "4.0", "2.0", "3", "97%", "bytes")
    ]
    text = speed_model.table([result]).splitlines()
    assert text[0].split()[:2] == ["operator", "shape"] and text[1].split()[1] == "1x2x3x4"


def test_a_kernel_that_has_become_slower_is_named() -> None:
    """If the slowdown exceeds differences between compilers; kernels without a record pass."""
    before = [["op", "1x2", "float32", "contiguous", "90%"], ["op", "2x2", "float32", "c", "50%"]]
    now = [[*before[0][:4], "87%"], [*before[1][:4], "48%"], ["new", "1x2", "float32", "c", "1%"]]
    assert speed_record.fallen(before, now, 4) == [
        "op 1x2 float32 contiguous: 87% of a copy, 90% on record"
    ]


def test_the_record_keeps_other_operators_and_knows_its_code(tmp_path: Path) -> None:
    source = toolkit.SOURCES / "cuda" / "reduce.cu"
    path, order = tmp_path / "model.json", ["a", "b"]
    for operator in ("b", "a", "b"):
        speed_record.write(path, ["operator"], [[operator]], {operator: [source]}, order)
    found = speed_record.read(path)
    assert found["rows"] == [["a"], ["b"]] and list(found["code"]) == order
    assert speed_record.changed(found) == []
    found["code"]["a"]["csrc/cuda/reduce.cu"] = "another"
    assert speed_record.changed(found) == ["a"]


def test_comments_are_no_code(tmp_path: Path) -> None:
    source = tmp_path / "kernel.cu"
    source.write_text("int x;  // one\n")
    before = toolkit.code_of(source)
    source.write_text("int  x;\n\n// another\n")
    assert toolkit.code_of(source) == before
    source.write_text("int y;\n")
    assert toolkit.code_of(source) != before


@needs_compilers
def test_no_kernel_is_slower_than_on_record(tmp_path: Path) -> None:
    """Models only kernels that changed since the record was made: none if it is up to date."""
    recorded = speed_record.read()
    if not recorded["rows"]:
        pytest.skip("nothing is on record: python tests/speed_model.py --json " + RECORD)
    if operators := speed_record.changed(recorded):
        found = tmp_path / "model.json"
        limits = ["--batch", "16", "--dtype", "bfloat16", "--json", str(found)]
        assert speed_model.main([*operators, *limits]) == 0
        column = speed_model.HEAD.index("of copy")
        assert not speed_record.fallen(recorded["rows"], speed_record.read(found)["rows"], column)


def test_without_nvcc_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(toolkit, "nvcc", lambda: None)
    assert speed_model.main([]) == 77
    assert "needs nvcc" in capsys.readouterr().err


def test_kernels_of_one_name_are_told_apart_by_family() -> None:
    compiler = speed_code.Compiler("", "")
    for source in toolkit.SOURCES.glob("*/*.cu"):
        compiler.kernels[source] = {"same": speed_code.Kernel([], 0, 0)}
    for family in ("strip", "encoding"):
        assert compiler.find("same", family)[0].parent.name == family
