"""Pages that lie at the root of the checkout, where readers of a repository look for them, taken into the site."""

from __future__ import annotations

import re
from pathlib import Path

from make import ROOT

PAGES = {  # file at the root -> page of the site
    "SECURITY.md": "trust",
    "CONTRIBUTING.md": "contributing",
    "CHANGELOG.md": "changelog",
    "README.zh-CN.md": "zh-cn",
}
_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?![a-z]+:|#)([^)\s#]+)(#[^)\s]*)?\)")


def write(pages: Path) -> None:
    """Write a page into ``pages/about`` for each of these files that exists."""
    folder = pages / "about"
    folder.mkdir(exist_ok=True)
    for source, name in PAGES.items():
        path = ROOT / source
        if path.is_file():
            (folder / f"{name}.md").write_text(linked(path.read_text(encoding="utf-8"), pages), encoding="utf-8")


def linked(text: str, pages: Path) -> str:
    """Return Markdown of the root with its links turned to the site's pages; of others only the words are kept.

    Args:
        text: its links are relative to the root of the checkout.
        pages: what the site is made from.
    """

    def to_page(match: re.Match[str]) -> str:
        words, target, anchor = match[1], match[2].removeprefix("./"), match[3] or ""
        if target in PAGES and (ROOT / target).is_file():
            return f"[{words}](/about/{PAGES[target]}.md{anchor})"
        if target in ("README.md", "docs/index.md"):
            return f"[{words}](/index.md)"
        place = target.removeprefix("docs/")
        return f"[{words}](/{place}{anchor})" if (pages / place).is_file() else words

    return _LINK.sub(to_page, text)
