"""Build the site from executed notebooks: lays docs/, the notebooks and what this run found out together, calls Sphinx.

The site works from the file system and without a network; nothing in it is loaded from elsewhere.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import nbformat
from nbformat import NotebookNode

from make import BUILD, ROOT, minutes, say, surroundings
from tools import readme

SITE = BUILD / "cookbook"


class Outcome(Protocol):
    """What the book says of a notebook's run."""

    ok: bool
    seconds: float
    kind: str
    cell: int
    source: str
    error: str
    remedy: str


def build(outcomes: Mapping[str, Outcome], executed: Path) -> Path | None:
    """Build build/cookbook; the old site stays until the new one is whole.

    Args:
        outcomes: notebook's name without suffix -> what became of it, in the order of the pages.
        executed: folder of the executed copies; a failed notebook's may be missing.

    Returns:
        The site's first page, or None when Sphinx failed, which it has then told.
    """
    pages = BUILD / "book"
    shutil.rmtree(pages, ignore_errors=True)
    shutil.copytree(ROOT / "docs", pages)
    (pages / "notebooks").mkdir()
    (pages / "_generated").mkdir()
    entries = []
    for name, outcome in outcomes.items():
        path = executed / f"{name}.ipynb"
        notebook = nbformat.read(path if path.exists() else ROOT / "notebooks" / path.name, as_version=4)
        notebook.metadata.setdefault("language_info", {"name": "python", "pygments_lexer": "ipython3"})
        name_alternatives(notebook)
        entries.append(_entry(name, notebook, outcome))
        if not outcome.ok:
            notebook.cells.insert(1, nbformat.v4.new_markdown_cell(_notice(outcome)))
        nbformat.write(notebook, pages / "notebooks" / path.name)
    (pages / "_generated" / "notebooks.md").write_text(_table(entries), encoding="utf-8")
    (pages / "_generated" / "results.md").write_text(_results(), encoding="utf-8")
    return _sphinx(pages)


def _sphinx(pages: Path) -> Path | None:
    fresh = SITE.with_suffix(".new")
    shutil.rmtree(fresh, ignore_errors=True)
    sphinx = [sys.executable, "-m", "sphinx", "-q", "-b", "html", "-d", str(BUILD / "doctrees")]
    result = subprocess.run(
        [*sphinx, str(pages), str(fresh)],
        cwd=ROOT,
        env=surroundings(),
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        check=False,
    )
    if result.stderr.strip():
        say(result.stderr.strip())
    if result.returncode:
        return None
    shutil.rmtree(SITE, ignore_errors=True)
    fresh.rename(SITE)
    return SITE / "index.html"


def name_alternatives(notebook: NotebookNode) -> None:
    """Copy each figure's alt text from the output's metadata, where notebooks keep it, to where myst-nb looks."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            for of_type in output.get("metadata", {}).values():
                if isinstance(of_type, dict) and of_type.get("alt"):
                    cell.metadata.setdefault("mystnb", {}).setdefault("image", {})["alt"] = of_type["alt"]


def first_words(notebook: NotebookNode) -> tuple[str, str]:
    """Title and promise: the first heading of a notebook and the paragraph below it, each on one line."""
    text = "\n\n".join(cell.source for cell in notebook.cells[:2] if cell.cell_type == "markdown")
    title = re.search(r"^# +(.+)$", text, re.MULTILINE)
    if not title:
        return "", ""
    paragraphs = re.split(r"\n\s*\n", text[title.end() :].strip())
    return title[1].strip(), " ".join(paragraphs[0].split())


def _entry(name: str, notebook: NotebookNode, outcome: Outcome) -> tuple[str, str, str]:
    title, promise = first_words(notebook)
    took = minutes(outcome.seconds) if outcome.ok else f"{outcome.kind} after {minutes(outcome.seconds)}"
    return f"[{title or name}](notebooks/{name}.ipynb)", promise, took


def _table(entries: list[tuple[str, str, str]]) -> str:
    return "\n\n".join(f"{link} · {took}\n: {promise or 'A notebook.'}" for link, promise, took in entries) + "\n"


def _notice(outcome: Outcome) -> str:
    where = f"in code cell {outcome.cell}" if outcome.cell else "before its first cell"
    fence = "~" * 12  # longer than any in an error
    return (
        f"{fence}~{{admonition}} This notebook did not run to its end here\n:class: error\n"
        f"It stopped {where} ({outcome.kind}). What follows is as far as it came.\n\n"
        f"{fence}text\n{outcome.error}\n{fence}\n\nRemedy: {outcome.remedy}.\n{fence}~\n"
    )


def _results() -> str:
    """Return the table of results that README.md holds between its two marks, and nothing else from there."""
    page = ROOT / "README.md"
    _, _, rest = (page.read_text(encoding="utf-8") if page.exists() else "").partition(readme.BEGIN)
    table, end, _ = rest.partition(readme.END)
    return f"{table.strip()}\n" if end and table.strip() else "Nothing has been recorded yet.\n"
