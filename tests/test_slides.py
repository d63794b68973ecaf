"""A notebook's slides: which cells become one, what stands on them, and a page that turns without a network."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from pathlib import Path

import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from playwright.sync_api import sync_playwright

from tools import notebooks, slides, workshop

ROOT = Path(__file__).resolve().parents[1]


def markdown(text: str) -> NotebookNode:
    """Return an output that shows Markdown."""
    return new_output("execute_result", data={"text/markdown": text, "text/plain": ""})


@pytest.fixture(scope="module")
def executed() -> NotebookNode:
    """Return a small notebook as a run leaves it."""
    picture = new_output("display_data", data={"image/png": "iVBORw0KGgo="}, metadata={"image/png": {"alt": "a <bar>"}})
    cells = [
        new_markdown_cell("# 99 · Threads\n\nYou will see where they stop helping.\n\n**Minutes:** 1 quick, 2 full."),
        new_code_cell("run = notebook.start()", outputs=[markdown("| machine | C |\n|:--|:--|\n| x | y |")]),
        new_markdown_cell("A word.\n\n## 1 · Do they help?\n\nLook at [98](98_x.ipynb).\n\nWho waits for $x^2$?"),
        new_code_cell('predict("a", ...)', outputs=[markdown("**How many?**\n\n- `two`\n\n*No prediction yet*")]),
        new_code_cell("measure()", outputs=[picture]),
        new_markdown_cell("**Read it.** One is short. Two is long. Three is not.\n\n**Before you run it:** and four?"),
        new_code_cell('judge("a", 1)', outputs=[markdown("**refuted here** · They help. (1x)")]),
        new_markdown_cell("## Copy this\n\nTake it."),
        new_code_cell("x < 1", metadata={"tags": ["copy-this"]}, outputs=[markdown("no")]),
        new_markdown_cell("## Exercises\n\n**99.1 · One.** First.\n\n**99.2 · Two.** Second."),
        new_code_cell("odd()", metadata={"tags": ["slide"]}, outputs=[markdown("shown all the same")]),
        new_code_cell("quiet()", outputs=[markdown("not shown")]),
        new_markdown_cell("## Where to go next\n\n[98](98_x.ipynb)."),
    ]
    return new_notebook(cells=cells)


@pytest.fixture(scope="module")
def found(executed) -> list[slides.Slide]:
    """Return its slides."""
    return list(slides.slides(executed))


def bodies(found: list[slides.Slide], kind: str) -> list[str]:
    """Return the text of the slides of a kind, without markup."""
    return [" ".join(re.sub(r"<[^>]+>", " ", slide.body).split()) for slide in found if slide.kind == kind]


def test_slides_follow_the_notebook(found) -> None:
    """In the order of its cells: promise, machine, section, prediction, figure, and so on to where to go next."""
    assert [slide.kind for slide in found] == [
        "title", "text", "section", "predict", "figure", "question", "verdict", "copy", "exercise", "exercise", "text",
        "text",
    ]  # fmt: skip


def test_a_figure_has_its_alt_text_and_two_sentences(found) -> None:
    """More is for the notebook."""
    (figure,) = [slide.body for slide in found if slide.kind == "figure"]

    assert 'alt="a &lt;bar&gt;"' in figure
    assert bodies(found, "figure") == ["One is short. Two is long."]


def test_a_prediction_shows_question_and_answers(found) -> None:
    """What is said to a single reader is left out."""
    assert bodies(found, "predict") == ["How many? two"]


def test_a_section_keeps_its_question_and_its_formula(found) -> None:
    """A heading in the middle of a cell counts, and formulas are MathML."""
    (section,) = [slide.body for slide in found if slide.kind == "section"]

    assert bodies(found, "section")[0].startswith("1 · Do they help? Who waits for")
    assert "<math" in section


def test_links_to_notebooks_lead_to_their_decks(found) -> None:
    """Decks lie beside each other."""
    assert 'href="98_x.html"' in found[-1].body


def test_code_is_shown_as_text(found) -> None:
    """Markup in code is no markup."""
    assert "<code>x &lt; 1</code>" in next(slide.body for slide in found if slide.kind == "copy")


def test_the_deck_turns_its_pages_and_loads_nothing(executed, tmp_path: Path) -> None:
    """Arrow keys, End and the address; no message in the console, no request but for the file itself."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert browser, "no Chromium: sudo apt install chromium"
    deck = tmp_path / "99_x.html"
    deck.write_text(slides.deck(executed, name="99_x"), encoding="utf-8")
    seen: list[str] = []
    with (
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"]) as b,
    ):
        page = b.new_page()
        page.on("console", lambda message: seen.append(message.text))
        page.on("request", lambda request: seen.append(request.url))
        page.goto(deck.as_uri())
        page.keyboard.press("ArrowRight")
        second = page.locator("section.now").get_attribute("id"), page.title()
        page.keyboard.press("End")
        last = page.locator("section.now").inner_text(), page.locator("#where").inner_text()
        page.goto(f"{deck.as_uri()}#s4")
        fourth = page.locator("section.now").get_attribute("class")

    assert second == ("s2", "99 · Threads")
    assert last[0].startswith("Where to go next")
    assert last[1] == "12 / 12"
    assert "predict" in fourth
    assert [entry for entry in seen if not entry.startswith(("file:", "data:"))] == []


def test_every_notebook_gives_a_whole_deck() -> None:
    """Promise, predictions, verdicts, code to copy, each exercise and each figure are found in every notebook."""
    committed = [path for path in workshop.sources() if (ROOT / "notebooks" / path.name).exists()]
    assert len(committed) > 10
    for path in committed:
        notebook = notebooks.read(ROOT / "notebooks" / path.name)
        kinds = Counter(slide.kind for slide in slides.slides(notebook))
        outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]

        assert kinds["title"] == kinds["copy"] == 1, path.name
        assert kinds["exercise"] == len(workshop.exercises(notebooks.read(path))), path.name
        assert kinds["figure"] == sum("image/png" in output.get("data", {}) for output in outputs), path.name
        assert min(kinds["predict"], kinds["verdict"], kinds["section"]) > 0, path.name
