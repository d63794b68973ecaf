"""A notebook's slides in one HTML file: what it asks, what it shows and what to read from it, nothing else.

Which cells become slides follows from how every notebook is built (tests/house/test_anatomy.py), so notebooks need not
know of slides; a cell tagged ``slide`` becomes one whatever it holds.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from markdown_it import MarkdownIt
from mdit_py_plugins.dollarmath import dollarmath_plugin
from nbformat import NotebookNode

TEMPLATE = Path(__file__).with_name("slides.html")
HEADING = re.compile(r"^##+ +(.+)$", re.MULTILINE)
# Sections that are slides by what is in them: code, exercises, tables.
SHOWN_BY_THEIR_CELLS = re.compile(r"Copy this|Exercises|Verdicts|The advice.*|Your intuition")
LAST = "Where to go next"
QUESTION = re.compile(r"\*\*Before you run (?:it|the next cell):\*\*\s*.+")
EXERCISE = re.compile(r"^\*\*\d\d\.\d · ", re.MULTILINE)
READ = re.compile(r"\A\*\*Read it\.\*\*\s*")
SENTENCE = re.compile(r"(?<=[.?!]) (?=[A-Z*`\"(])")
VERDICT = re.compile(r"\A\*\*(?:holds|refuted here|undecided|not measurable here)\*\*")
PREDICTS = re.compile(r"^predict\(", re.MULTILINE)
SENTENCES_TO_READ = 2
TABLES = {"notebook.start(": "Measured on", "verdicts()": "Verdicts"}  # what a cell calls -> title of its first output
PICTURE = "image/png"


@dataclass(frozen=True)
class Slide:
    """One page of a deck: ``kind`` names its look, ``body`` is HTML."""

    kind: str
    body: str


def deck(notebook: NotebookNode, *, name: str) -> str:
    """Return the deck of an executed notebook as one HTML page that loads nothing.

    Args:
        notebook: with the outputs of a run.
        name: the notebook's name without suffix; the deck is called the same.
    """
    found = list(slides(notebook))
    title = re.search(r"^# +(.+)$", notebook.cells[0].source, re.MULTILINE)
    template = jinja2.Template(TEMPLATE.read_text(encoding="utf-8"), autoescape=True)
    return template.render(title=title[1] if title else name, name=name, slides=found)


def slides(notebook: NotebookNode) -> Iterator[Slide]:
    """Yield the slides of an executed notebook in order."""
    for index, cell in enumerate(notebook.cells):
        if cell.cell_type == "markdown":
            yield from _of_text(cell, first=index == 0)
        else:
            after = notebook.cells[index + 1] if index + 1 < len(notebook.cells) else None
            yield from _of_code(cell, after)


def _of_text(cell: NotebookNode, *, first: bool) -> Iterator[Slide]:
    text = cell.source
    if first:
        yield Slide("title", to_html("\n\n".join(_paragraphs(text)[:2])))
    elif "slide" in _tags(cell):
        yield Slide("text", to_html(text))
        return
    for part in re.split(r"^(?=##+ )", text, flags=re.MULTILINE):
        yield from _of_section(part)


def _of_section(text: str) -> Iterator[Slide]:
    """Yield the slides of a piece of text that may begin with a heading and holds no other."""
    heading = HEADING.match(text)
    name = heading[1].strip() if heading else ""
    if name == LAST:
        yield Slide("text", to_html(text))
    elif name and not SHOWN_BY_THEIR_CELLS.fullmatch(name):
        asked = [part for part in _paragraphs(text)[1:] if part.endswith("?") and not QUESTION.search(part)]
        yield Slide("section", to_html("\n\n".join([f"## {name}", *asked[-1:]])))
    if question := QUESTION.search(text):
        yield Slide("question", to_html(question[0]))
    for start in EXERCISE.finditer(text):
        end = EXERCISE.search(text, start.end())
        yield Slide("exercise", to_html(text[start.start() : end.start() if end else len(text)]))


def _of_code(cell: NotebookNode, after: NotebookNode | None) -> Iterator[Slide]:
    tags = _tags(cell)
    if "copy-this" in tags:
        yield Slide("copy", f"<h2>Copy this</h2><pre><code>{html.escape(cell.source)}</code></pre>")
        return
    for begin, title in TABLES.items():
        if begin in cell.source:
            yield from (Slide("text", f"<h2>{title}</h2>{_shown(output)}") for output in cell.outputs[:1])
            return
    for output in cell.outputs:
        text = output.get("data", {}).get("text/markdown", "")
        if PICTURE in output.get("data", {}):
            yield Slide("figure", _picture(output) + _to_read(after))
        elif PREDICTS.search(cell.source) and text.startswith("**"):
            yield Slide("predict", to_html(text.split("\n\n*No prediction yet", 1)[0]))
        elif VERDICT.match(text):
            yield Slide("verdict", to_html(text.replace("** · ", "**\n\n", 1)))
        elif "slide" in tags:
            yield Slide("text", _shown(output))


def _tags(cell: NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def _paragraphs(text: str) -> list[str]:
    return [part for part in re.split(r"\n\s*\n", text.strip()) if part]


def _to_read(after: NotebookNode | None) -> str:
    """Return the first sentences of the text below a figure that says what to read from it."""
    if after is None or after.cell_type != "markdown" or not READ.match(after.source):
        return ""
    first = READ.sub("", _paragraphs(after.source)[0])
    return to_html(" ".join(SENTENCE.split(first)[:SENTENCES_TO_READ]))


def _picture(output: NotebookNode) -> str:
    alt = output.get("metadata", {}).get(PICTURE, {}).get("alt", "")
    content = output.data[PICTURE].replace("\n", "")
    return f'<img src="data:{PICTURE};base64,{content}" alt="{html.escape(alt)}">'


def _shown(output: NotebookNode) -> str:
    data = output.get("data", {})
    if "text/html" in data:
        return f'<div class="table">{data["text/html"]}</div>'
    if "text/markdown" in data:
        return to_html(data["text/markdown"])
    return f"<pre>{html.escape(output.get('text', '') or data.get('text/plain', ''))}</pre>"


def to_html(markdown: str) -> str:
    """Return Markdown as HTML, formulas as MathML, links to notebooks as links to their decks."""
    return _renderer().render(re.sub(r"\((\d\d_\w+)\.ipynb\)", r"(\1.html)", markdown))


@cache
def _renderer() -> MarkdownIt:
    def math(latex: str, options: dict[str, Any]) -> str:
        try:
            return tex2mathml(latex.strip(), as_block=bool(options.get("display_mode")))
        except MathError:  # docutils knows less of LaTeX than the book's authors use; the source can be read too
            return f"<code>{html.escape(latex)}</code>"

    renderer = MarkdownIt("commonmark").enable("table")
    return renderer.use(dollarmath_plugin, renderer=math, allow_digits=False, double_inline=True)
