"""A notebook as a page of the site: its head, its banner, its verdicts, and the few things that are added to it."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import nbformat
from nbformat import NotebookNode

from make import minutes

_TITLE = re.compile(r"^# +(.+)$", re.MULTILINE)
_CLAIMS = re.compile(r"^\*\*Claims? under test:.+$", re.MULTILINE)
_VERDICT = re.compile(r"^(holds|refuted here|undecided|not measurable here): ([a-z0-9-]+): (.+)$", re.MULTILINE)


class Outcome(Protocol):
    """What the book says of a notebook's run."""

    ok: bool
    seconds: float
    kind: str
    cell: int
    source: str
    error: str
    remedy: str


@dataclass(frozen=True)
class Verdict:
    """What a notebook printed about a claim: the word, and the numbers or the reason."""

    claim: str
    word: str
    numbers: str
    page: Page


@dataclass(frozen=True)
class Page:
    """A notebook of the site.

    Attributes:
        name: of the file, without suffix.
        path: of the notebook with its outputs.
        outcome: what became of it in the run that this site shows; None for the committed one, which was not run now.
    """

    name: str
    path: Path
    outcome: Outcome | None

    @functools.cached_property
    def notebook(self) -> NotebookNode:
        """The notebook as it lies there; ``shown`` is what the site makes of it."""
        return nbformat.read(self.path, as_version=4)

    @property
    def number(self) -> str:
        """The two digits that its name begins with."""
        return self.name[:2]

    @property
    def title(self) -> str:
        """The first heading, without marks."""
        return self._first_words[0] or self.name

    @property
    def promise(self) -> str:
        """The paragraph below the first heading, on one line."""
        return self._first_words[1] or "A notebook."

    @functools.cached_property
    def _first_words(self) -> tuple[str, str]:
        text = "\n\n".join(cell.source for cell in self.notebook.cells[:2] if cell.cell_type == "markdown")
        title = _TITLE.search(text)
        if not title:
            return "", ""
        paragraphs = re.split(r"\n\s*\n", text[title.end() :].strip())
        return title[1].strip(), " ".join(paragraphs[0].split())

    @functools.cached_property
    def planned(self) -> tuple[int, int] | None:
        """Minutes in the quick and in the full budget, as its head says."""
        found = re.search(r"\*\*Minutes:\*\* (\d+) quick, (\d+) full", self.notebook.cells[0].source)
        return (int(found[1]), int(found[2])) if found else None

    @property
    def took(self) -> str:
        """How long it took in this run, or is going to take."""
        if self.outcome is None:
            return f"{self.planned[0]} min quick, {self.planned[1]} full" if self.planned else "as committed"
        words = minutes(self.outcome.seconds)
        return words if self.outcome.ok else f"{self.outcome.kind} after {words}"

    @functools.cached_property
    def banner(self) -> dict[str, str]:
        """What the notebook says of its run: machine, device, versions, dataset, budget."""
        for cell in self.notebook.cells:
            for text in _plain_outputs(cell):
                if text.startswith("machine "):
                    parts = (line.partition(" ") for line in text.splitlines())
                    return {key: value.strip() for key, _, value in parts}
        return {}

    @functools.cached_property
    def verdicts(self) -> list[tuple[int, Verdict]]:
        """The verdicts that its cells printed, each with the number of its cell."""
        return [
            (index, Verdict(match[2], match[1], match[3], self))
            for index, cell in enumerate(self.notebook.cells)
            for text in _plain_outputs(cell)
            for match in _VERDICT.finditer(text)
        ]

    def copies(self) -> list[str]:
        """The modules that its *Copy this* cells are part of."""
        return [
            cell.metadata.get("deploykit", {}).get("copies", "")
            for cell in self.notebook.cells
            if "copy-this" in cell.metadata.get("tags", [])
        ]

    def shown(self) -> NotebookNode:
        """The notebook as the site shows it: alt texts where they are read, places to link to, a bar below the title.

        The one that is offered for download is left as it is.
        """
        notebook = nbformat.from_dict(self.notebook)
        notebook.metadata.setdefault("language_info", {"name": "python", "pygments_lexer": "ipython3"})
        for cell in notebook.cells:
            _name_alternatives(cell)
        for index, verdict in reversed(self.verdicts):
            notebook.cells.insert(index, nbformat.v4.new_markdown_cell(f'<div id="verdict-{verdict.claim}"></div>'))
        if self.outcome and not self.outcome.ok:
            notebook.cells.insert(1, nbformat.v4.new_markdown_cell(_notice(self.outcome)))
        first = notebook.cells[0]
        first.source = _CLAIMS.sub(_linked_claims, first.source)
        first.source = _TITLE.sub(lambda title: f"{title[0]}\n\n{self._bar()}", first.source, count=1)
        return notebook

    def _bar(self) -> str:
        time = f"<span>{self.planned[0]} min quick, {self.planned[1]} min full</span>" if self.planned else ""
        ran = f"<span>took {minutes(self.outcome.seconds)} here</span>" if self.outcome else ""
        link = f'<a class="dk-button" href="{self.name}.ipynb" download>Download this notebook</a>'
        return f'<p class="dk-bar">{link}{time}{ran}</p>'


def _plain_outputs(cell: NotebookNode) -> list[str]:
    plain = (output.get("text") or output.get("data", {}).get("text/plain") for output in cell.get("outputs", []))
    return [text for text in plain if isinstance(text, str)]


def _linked_claims(line: re.Match[str]) -> str:
    return re.sub(r"`([a-z0-9-]+)`", r'<a href="../verdicts.html#claim-\1"><code>\1</code></a>', line[0])


def _name_alternatives(cell: NotebookNode) -> None:
    """Copy each figure's alt text from the output's metadata, where notebooks keep it, to where myst-nb looks."""
    for output in cell.get("outputs", []):
        for of_type in output.get("metadata", {}).values():
            if isinstance(of_type, dict) and of_type.get("alt"):
                cell.metadata.setdefault("mystnb", {}).setdefault("image", {})["alt"] = of_type["alt"]


def _notice(outcome: Outcome) -> str:
    where = f"in code cell {outcome.cell}" if outcome.cell else "before its first cell"
    fence = "~" * 12  # longer than any in an error
    return (
        f"{fence}~{{admonition}} This notebook did not run to its end here\n:class: error\n"
        f"It stopped {where} ({outcome.kind}). What follows is as far as it came.\n\n"
        f"{fence}text\n{outcome.error}\n{fence}\n\nRemedy: {outcome.remedy}.\n{fence}~\n"
    )
