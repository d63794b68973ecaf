"""Every notebook can be found from the README and in the book."""

from __future__ import annotations

import fnmatch
import re

import pytest

from .conftest import ROOT


def missing_from_readme(readme: str, names: list[str]) -> list[str]:
    """Return the notebooks that ``readme`` does not link to."""
    return [name for name in names if f"](notebooks/{name}.ipynb)" not in readme]


def missing_from_book(pages: list[str], names: list[str]) -> list[str]:
    """Return the notebooks that no toctree of the Markdown ``pages`` names; patterns count under ``:glob:`` only."""
    entries = [entry for page in pages for entry in _toctree_entries(page)]
    return [name for name in names if not any(fnmatch.fnmatchcase(name, entry) for entry in entries)]


def _toctree_entries(page: str) -> list[str]:
    found = []
    for tree in re.findall(r"^(?:```|:::)+\s*\{toctree\}[^\n]*\n(.*?)^(?:```|:::)", page, re.DOTALL | re.MULTILINE):
        for line in tree.splitlines():
            entry = re.sub(r"^.*<(.+)>\s*$", r"\1", line.strip())
            if entry and not entry.startswith((":", "-")) and (":glob:" in tree or not re.search(r"[*?\[]", entry)):
                found.append(entry.rsplit("/", 1)[-1].removesuffix(".ipynb"))
    return found


class TestListing:
    def test_a_notebook_missing_from_the_readme_is_found(self):
        """A notebook is listed when it can be opened from there; its name in a sentence is not enough."""
        readme = "Read [the first](notebooks/00_a.ipynb), then 01_b."

        assert missing_from_readme(readme, ["00_a", "01_b"]) == ["01_b"]

    @pytest.mark.parametrize(
        ("entries", "missing"),
        [
            (":maxdepth: 1\n\nnotebooks/00_a\nThe second <notebooks/01_b.ipynb>", []),
            (":glob:\n\nnotebooks/*", []),
            ("notebooks/*", ["00_a", "01_b"]),
            ("notebooks/00_a\nnotebooks/01_bb", ["01_b"]),
        ],
    )
    def test_a_notebook_missing_from_the_book_is_found(self, entries, missing):
        """Entries, titled entries and patterns list a notebook; a pattern does so under :glob: only."""
        page = f"# Book\n\n```{{toctree}}\n{entries}\n```\n\nnotebooks/01_b is named here in vain."

        assert missing_from_book([page], ["00_a", "01_b"]) == missing

    def test_every_notebook_is_in_the_readme(self, committed):
        """Each README, in whatever language, leads to each notebook."""
        readmes = sorted(ROOT.glob("README*.md"))
        assert readmes

        texts = {path.name: path.read_text(encoding="utf-8") for path in readmes}
        assert {n: found for n, text in texts.items() if (found := missing_from_readme(text, list(committed)))} == {}

    def test_every_notebook_is_in_the_book(self, committed):
        """The site's table of contents leads to each notebook."""
        pages = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").rglob("*.md"))]
        assert pages, "docs holds no page"

        assert missing_from_book(pages, list(committed)) == []
