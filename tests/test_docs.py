"""The documentation: links, examples, tables, figures, and completeness."""

from __future__ import annotations

import doctest
import importlib
import inspect
import re
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import oracles
import pytest
import torch
import upstream_models
from torch import nn

import stripctx
from benchmarks import costs, floors, traffic
from benchmarks.operators import OPERATORS, Sample, call
from docs.draw.__main__ import FIGURES, draw
from stripctx import export, functional, fusion, layers, losses, models

REPOSITORY = Path(__file__).resolve().parent.parent
DOCS = REPOSITORY / "docs"
PAGES = [REPOSITORY / "README.md", *sorted(DOCS.rglob("*.md"))]
LAYERS = sorted((DOCS / "layers").glob("*.md"))
SVG = "{http://www.w3.org/2000/svg}"


def named(page: Path) -> str:
    return str(page.relative_to(REPOSITORY))


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_resolve(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]*)#?([^)]*)\)", page.read_text())
    for target, heading in links:
        if "://" not in target:
            path = (page.parent / target) if target else page
            assert path.exists(), f"{target} does not"
            assert not heading or heading in anchors(path), f"{target} has no heading {heading}"


def anchors(page: Path) -> list[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return [re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings]


def code_blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize(
    "page", [p for p in PAGES if code_blocks(p) and p.name != "frameworks.md"], ids=named
)
def test_examples_run(
    page: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Runs all blocks of a page in sequence, with checkpoints of random weights."""
    names: dict[str, Any] = {"network": upstream_models.PPM(8, 2, (1, 2, 3, 6)).eval()}
    names["image"] = torch.randn(1, 8, 12, 13)
    blocks = code_blocks(page)
    uses_smp = any("import segmentation_models_pytorch" in block for block in blocks)
    if uses_smp:
        oracles.whole_smp()  # skips if its encoders are not installed
    monkeypatch.setattr(torch, "load", lambda *_, **__: names["network"].state_dict())
    monkeypatch.chdir(tmp_path)
    for block in blocks:
        if "import torchao" in block or "from torchao" in block:
            pytest.importorskip("torchao")  # the last block of its page
        exec(compile(block, page.name, "exec"), names)
    if uses_smp:
        assert "decoder.fuse_stage.0: pyramid_conv" in capsys.readouterr().out


# Modules whose examples no other test runs.
DOCTESTS = (
    *(f"functional.{name}" for name in ("encoding", "height", "labels")),
    *(f"functional.{name}" for name in ("pyramid", "strip", "upsample")),
    *("layers.encoding", "fusion.report", "fusion.scope", "export"),
)


@pytest.mark.parametrize("name", DOCTESTS)
def test_examples_in_docstrings_run(name: str) -> None:
    module = importlib.import_module(f"stripctx.{name}")
    results = doctest.testmod(module, extraglobs={"torch": torch})
    assert results.attempted > 0 and results.failed == 0


@pytest.mark.parametrize("module", [export, functional, fusion, layers, losses, models])
def test_docstrings_have_all_sections(module: ModuleType) -> None:
    """Every public name has an example, except the entries of fuse's report; functions describe
    their arguments and results, modules their shapes."""
    for name in module.__all__:
        public = getattr(module, name)
        text = inspect.getdoc(public) or ""
        if name not in ("Left", "Replaced"):
            assert "Examples:" in text, name
        if isinstance(public, type) and issubclass(public, nn.Module):
            assert "Shape:" in text, name
        elif inspect.isfunction(public) and inspect.signature(public).parameters:
            assert "Args:" in text and ("Returns:" in text or "Shape:" in text), name


def test_networks_of_published_checkpoints_can_be_created() -> None:
    codes = re.findall(r"^\| .+ \| `(models\..+)` \|$", (DOCS / "networks.md").read_text(), re.M)
    assert len(codes) > 8
    with torch.device("meta"):
        for code in codes:
            assert isinstance(eval(code, {"models": models}), nn.Module)


def test_every_public_name_has_a_page() -> None:
    titles = {page.read_text().splitlines()[0] for page in PAGES}
    text = "\n".join(page.read_text() for page in PAGES)
    for name in stripctx.__all__:
        value = getattr(stripctx, name)
        if isinstance(value, type):
            assert f"# {name}" in titles, f"{name} has no page"
        elif not isinstance(value, ModuleType):
            assert f"`{name}`" in text, f"{name} is on no page"
    operators = "\n".join(page.read_text() for page in (DOCS / "operators").glob("*.md"))
    index = (DOCS / "README.md").read_text()
    for name in functional.__all__:
        assert re.search(rf"^from stripctx.functional import .*\b{name}\b", operators, re.MULTILINE)
        assert f"`{name}`" in index


def test_every_network_is_listed() -> None:
    for page in (REPOSITORY / "README.md", DOCS / "networks.md"):
        text = page.read_text()
        assert not [name for name in models.available() if f"`{name}`" not in text]


def test_the_index_names_every_page() -> None:
    index = (DOCS / "README.md").read_text()
    pages = [page for page in DOCS.rglob("*.md") if page != DOCS / "README.md"]
    assert not [p for p in pages if f"({p.relative_to(DOCS)})" not in index]


def test_every_layer_page_has_all_sections() -> None:
    assert {page.stem for page in LAYERS} == {snake(name) for name in costs.CASES}
    for page in LAYERS:
        text = page.read_text()
        for part in ("**What it is for.**", "![", "## Formula", "<!-- cost:", "## Instead of"):
            assert part in text, f"{page.name} lacks {part}"


def test_every_operator_page_has_all_sections() -> None:
    for page in (DOCS / "operators").glob("*.md"):
        text = page.read_text()
        for part in ("![", "## Formula", "## Floors", "<!-- floors:"):
            assert part in text, f"{page.name} lacks {part}"


def snake(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


def test_costs_are_up_to_date() -> None:
    assert costs.main(["--check"]) == 0


@pytest.mark.parametrize("operator", OPERATORS)
def test_counted_bytes_are_the_floor(operator: str) -> None:
    """The counted bytes of an operator in the layers' tables equal its floor."""
    make = Sample((2, 16, 12, 18), torch.float32, "contiguous", "meta")
    arguments = OPERATORS[operator](make)
    moved = traffic.moved_bytes(arguments) + traffic.moved_bytes(call(operator, arguments))
    assert moved == floors.floor(operator, make.shape).bytes


def test_plain_pytorch_is_counted() -> None:
    """A sum over a broadcast operand, by hand: 6 + 2 elements read, 6 written; views are free."""
    x, y = torch.empty(2, 3, device="meta"), torch.empty(2, 1, device="meta")
    with traffic.Counting() as counting:
        (x + y.expand(2, 3)).view(3, 2)
    assert list(counting.traffic.bytes.values()) == [4 * 14]


def test_products_of_codewords_are_counted() -> None:
    """Two products forward and five backward, of each position with each codeword."""
    x = torch.empty(2, 6, 5, 4, requires_grad=True, device="meta")
    with torch.device("meta"):
        counted = traffic.count(stripctx.EncodingLayer(6, floors.CODES), [x])
    for times, found in zip((2, 5), counted, strict=True):
        assert found.products == times * x.numel() * floors.CODES


def words(figure: Path) -> list[str]:
    return ["".join(text.itertext()) for text in ElementTree.parse(figure).iter(f"{SVG}text")]


@pytest.mark.parametrize("name", FIGURES)
def test_figures_are_drawn_and_shown(name: str, tmp_path: Path) -> None:
    """A figure is small, used on a page, and has the same words when it is redrawn."""
    figure = DOCS / "figures" / f"{name}.svg"
    assert figure.stat().st_size < 40_000
    assert any(f"figures/{name}.svg)" in page.read_text() for page in PAGES)
    assert words(figure) == words(draw(name, tmp_path))


def test_every_figure_is_shown() -> None:
    text = "\n".join(page.read_text() for page in PAGES)
    assert not [f for f in (DOCS / "figures").glob("*.svg") if f"figures/{f.name})" not in text]
