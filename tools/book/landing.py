"""What the first page shows: the one figure, the one table, the scores, the ways in and the list of notebooks."""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from html import escape
from pathlib import Path
from typing import Any

from deploykit.claims import HOLDS, NOT_MEASURABLE, REFUTED, UNDECIDED
from deploykit.text import escape_markdown
from make import ROOT
from tools import readme
from tools.book import results, verdicts
from tools.book.pages import Page

PATHS = ROOT / "docs" / "paths.toml"
POINT = "combined"  # the recorded run that makes the point
BATCH = 64  # of its speeds
POINTS_SHOWN = 2.0  # one that loses more would take the room in which all others differ


def made(pages: list[Page]) -> str:
    """Say where these pages come from."""
    if any(page.outcome for page in pages):
        return (
            "These pages were made by `make cookbook` from notebooks run on one machine, which every notebook names in "
            "its banner. What needs hours or a GPU was recorded elsewhere and says so beside each figure."
        )
    return (
        "These pages show the notebooks as they are committed; every notebook names the machine that ran it in its "
        "banner. `make cookbook` runs them all on yours and builds the same pages from that."
    )


def scores(pages: list[Page]) -> str:
    """Return how many pieces of advice came out how, as HTML."""
    counts = Counter(verdict.word for verdict in verdicts.found(pages).values())
    if not counts:
        return ""
    parts = [f"{verdicts.badge(word)} {counts[word]}" for word in (HOLDS, REFUTED, UNDECIDED, NOT_MEASURABLE)]
    return f'<p class="dk-scores">{counts.total()} pieces of advice put to the test: {" ".join(parts)}</p>'


def point(folder: Path) -> str:
    """Draw the figure of the first page and say what to see in it.

    Args:
        folder: takes the figure.

    Returns:
        The Markdown of a page beside ``folder``; nothing where nothing was recorded.
    """
    run = results.kept(POINT)
    if run is None:
        return ""
    import pandas as pd

    from deploykit import plots

    table = pd.DataFrame(list(run.rows)).set_index("form")
    table["latency_ms"] = 1000 * BATCH / table["images_per_s"]
    plot = plots.pareto(table[table["minus_resnet56_points"] > -POINTS_SHOWN])
    plot.savefig(folder / "pareto.svg", format="svg", metadata={"Date": None})
    return (
        f"{readme.headline(run)}\n\n"
        f"::::{{container}} dk-scroll\n:::{{image}} {folder.name}/pareto.svg\n:alt: {plot.alt}\n:::\n::::\n\n"
        f"Time of a batch of {BATCH} and accuracy of every form that loses less than {POINTS_SHOWN:g} points; a bubble "
        f"is as large as its file. Recorded on {escape_markdown(run.machine['cpu'])}, {run.machine['threads']} "
        f"threads, {run.date}; all of it in [the recorded results](#{results.anchor(run.name)})."
    )


def table() -> str:
    """Return the table of the first page, as README has it."""
    run = results.kept(POINT)
    return readme.combined_table(run) if run else results.NOTHING


def ways() -> list[dict[str, Any]]:
    """Return docs/paths.toml: what a reader has or wants, a sentence, and the notebooks in their order."""
    return tomllib.loads(PATHS.read_text(encoding="utf-8"))["path"]


def paths(pages: list[Page]) -> str:
    """Return a card for each way in, with its notebooks and their minutes, as HTML; a way without notebooks is none."""
    by_number = {page.number: page for page in pages}
    cards = []
    for path in ways():
        steps = [by_number[number] for number in path["notebooks"] if number in by_number]
        if not steps:
            continue
        links = "".join(f'<li><a href="notebooks/{page.name}.html">{escape(page.title)}</a></li>' for page in steps)
        time = sum(page.planned[0] for page in steps if page.planned)
        more = f'<p><a href="{path["more"]}">{escape(path["more_words"])}</a></p>' if "more" in path else ""
        cards.append(
            f'<div class="dk-card"><p class="dk-goal">{escape(path["goal"])}</p><p>{escape(path["words"])}</p>'
            f'<ul>{links}</ul>{more}<p class="dk-time">{time} min to run, more to read</p></div>'
        )
    return f'<div class="dk-cards">{"".join(cards)}</div>' if cards else "No notebook of these is in this site."


def notebooks(pages: list[Page]) -> str:
    """Return the list of notebooks: title, time, and the question it answers or else its promise."""
    questions = _questions()
    return "\n\n".join(
        f"[{escape_markdown(page.title)}](notebooks/{page.name}.ipynb) · {page.took}\n"
        f": {questions.get(page.name, page.promise)}"
        for page in pages
    )


def _questions() -> dict[str, str]:
    """Return what README's table of notebooks says that each answers."""
    path = ROOT / "README.md"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return dict(re.findall(r"^\| \[[^\]]+\]\(notebooks/(\w+)\.ipynb\) \| ([^|]+?) \|", text, re.MULTILINE))
