"""The site that `make docs` builds: links, reference, search, and no external resources."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import stripctx
from stripctx import export, functional, fusion, layers, losses, mmseg, models

REPOSITORY = Path(__file__).resolve().parent.parent
PUBLIC = (stripctx, export, functional, fusion, layers, losses, mmseg, models)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocs", reason="needs requirements-docs.txt")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_reference_has_every_public_name(site: Path) -> None:
    pages = "\n".join(page.read_text() for page in (site / "reference").rglob("*.html"))
    documented = re.findall(r'<h[1-6] id="(stripctx\.[\w.]*\w)" class="doc', pages)
    names = [
        (module.__name__, name)
        for module in PUBLIC
        for name in module.__all__
        if not isinstance(getattr(module, name), ModuleType)
    ]
    assert len(names) > 45
    missing = [
        f"{module}.{name}"
        for module, name in names
        if not any(re.fullmatch(rf"({module}\.(\w+\.)*|stripctx\.){name}", d) for d in documented)
    ]
    assert not missing


def test_examples_in_the_reference_are_code(site: Path) -> None:
    """Sections unknown to the docstring parser would turn >>> into nested quotations."""
    for page in (site / "reference").rglob("*.html"):
        assert "<blockquote>" not in page.read_text(), page


def test_results_in_the_reference_are_one_text(site: Path) -> None:
    """By default each line of a section Returns would be a result of its own."""
    page = (site / "reference" / "fuse.html").read_text()
    table = page.split('id="stripctx.fuse"')[1].split("Returns:")[1].split("</table>")[0]
    assert table.count("<tr") == 2  # the head and one row


def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        loaded = re.findall(r"<(?:script|img|link|iframe)\b[^>]*", page.read_text())
        outside = [tag for tag in loaded if re.search(r'(?:src|href)="(?:https?:)?//', tag)]
        assert not [tag for tag in outside if 'rel="canonical"' not in tag], page


def test_links_work_in_local_files(site: Path) -> None:
    """A link to a folder would show a listing instead of its page."""
    for page in site.rglob("*.html"):
        targets = re.findall(r'href="(?!https?:|#)([^"#]*)', page.read_text())
        assert not [
            one for one in targets if page.name != "404.html" and (page.parent / one).is_dir()
        ]


def test_search_finds_what_the_reference_says(site: Path) -> None:
    documents = json.loads((site / "search" / "search_index.json").read_text())["docs"]
    titles = {re.sub("<[^>]*>", "", one["title"]).strip() for one in documents}
    assert {"pyramid_conv", "pspnet", "StripPooling", "fuse", "Building"} <= titles
