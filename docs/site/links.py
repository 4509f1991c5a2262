"""The site's links: a page may point at files of the repository, which the site does not hold."""

from __future__ import annotations

import re
from typing import Any

OUTSIDE = re.compile(
    r"(?<!!)\[([^\]]+)\]\((?:\.\./)+(?!figures/|README|guides|layers|operators)[^)]*\)"
)
WITHIN = (
    "README.md",
    "fuse.md",
    "networks.md",
    "speed.md",
    "train.md",
    "own_data.md",
    "build.md",
    "deploy.md",
)


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Keeps the words of such a link and drops its target."""
    depth = page.file.src_uri.count("/")

    def words(match: re.Match[str]) -> str:
        target = match[0].rpartition("(")[2].rstrip(")")
        ups = target.count("../")
        inside = ups <= depth and target.replace("../", "").partition("#")[0] in WITHIN
        return match[0] if inside else match[1]

    return OUTSIDE.sub(words, markdown)
