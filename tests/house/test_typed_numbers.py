"""No measured number is typed into prose: a sentence with one is rendered by a cell, so that a new run rewrites it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from .cells import calls, tagged

NUMBER = r"(?<![\w.,/#-])[<>~≈±+−-]?\d[\d,]*(?:\.\d+)?(?:\s*(?:to|and|–|-)\s*\d[\d,]*(?:\.\d+)?)?"
UNIT = (
    r"\s?(?:(?:[mµμn]s|s|seconds?|milliseconds?|microseconds?|min|minutes?|hours?|h|fps|FPS|[KMG]i?B|[kKMG]bytes?"
    r"|(?:images?|samples?|frames?|batches|requests?|tokens?)\s?(?:/|per)\s?s(?:econd)?"
    r"|(?:percentage )?points?|percent|W|watts?|J|°C|[GTM](?:FLOPS|MACs?|FLOPs?)(?:/s)?)(?![\w-])"
    r"|%|\s?[x×](?![\w×]|\s?\d))"
)
COUNT_WORD = r"(?:two|three|four|five|six|seven|eight|nine|ten|a hundred|\d[\d,]*(?:\.\d+)?)"
COMPARATIVE = r"(?:faster|slower|smaller|larger|bigger|quicker|higher|lower|less|more|cheaper)\b"
IN_WORDS = rf"(?i:\b{COUNT_WORD} times (?:as \w+|{COMPARATIVE})|\b(?:twice|half) as \w+ as\b)"
MEASURED = re.compile(rf"{NUMBER}{UNIT}|{IN_WORDS}")
# A confidence level is chosen, not measured; "the 1990s" are no seconds.
CHOSEN = re.compile(
    r"\d+(?:\.\d+)?\s?%[\s-](?:confidence|interval|Wilson|bootstrap|CI\b)|\b(?:19|20)\d0s\b", re.IGNORECASE
)
NOT_PROSE = re.compile(
    r"```.*?```|~~~.*?~~~|`[^`\n]*`|<!--.*?-->|\$\$.*?\$\$|\$[^$\n]+\$|\]\([^)]*\)|https?://\S+|<[a-zA-Z/][^>]*>",
    re.DOTALL,
)
SOURCE = re.compile(r"\]\(|https?://|\b(?:19|20)\d\d\b")


def typed_numbers(notebook: NotebookNode) -> list[str]:
    """Return the numbers with a unit that are typed into text cells, and into what code cells say.

    A cell tagged ``literature`` may quote numbers when it names a source (a link or a year); one tagged ``definition``
    may hold numbers that are set, not measured. The minutes in the text before the first code cell are a plan.
    """
    return [f"cell {index}: {fault}" for index, fault in _faults(notebook)]


def _faults(notebook: NotebookNode) -> Iterator[tuple[int, str]]:
    opening = True
    for index, cell in enumerate(notebook.cells):
        opening = opening and cell.cell_type == "markdown"
        if tagged(cell, "definition"):
            continue
        if tagged(cell, "literature"):
            if not SOURCE.search(cell.source):
                yield index, "is tagged `literature` and names no source"
            continue
        texts = [cell.source] if cell.cell_type == "markdown" else _sentences(cell)
        for number in (found for text in texts for found in measured_numbers(text)):
            if not (opening and re.search(r"min", number)):
                yield index, f"{number!r} is typed into prose"


def measured_numbers(text: str) -> list[str]:
    """Return what reads like a measurement in Markdown ``text``, code spans, formulas and links left out."""
    prose = CHOSEN.sub(" ", NOT_PROSE.sub(" ", text))
    return [match.group().strip() for match in MEASURED.finditer(prose)]


def _sentences(cell: NotebookNode) -> list[str]:
    """Return the strings written into what a code cell shows as text; the pieces of an f-string count singly."""
    shown = [part for call in calls(cell, "say", "sentence", "Markdown", "print") for part in call.args]
    strings = (node.value for part in shown for node in ast.walk(part) if isinstance(node, ast.Constant))
    return [text for text in strings if isinstance(text, str)]


class TestScanner:
    @pytest.mark.parametrize(
        "text",
        [
            "It takes 26 ms.", "about 1.8x", "a 3.2× speed-up", "loses 0.4 % of accuracy", "45,000 images/s",
            "1.04 MiB on disk", "at 92.3%", "lost 3 points", "30 fps", "took 12 seconds", "twice as fast as before",
            "2 to 3 ms", "four times faster", "5 times smaller", "~7 µs", "900 images per second", "40.8 MMACs",
        ],
    )  # fmt: skip
    def test_a_measurement_is_found(self, text):
        """A number with a unit of time, size, rate or accuracy is a measurement."""
        assert measured_numbers(text)

    @pytest.mark.parametrize(
        "text",
        [
            "He et al. 2016, section 4.2", "## 3 · Does it help?", "the int8 model", "bf16 and float32", "ResNet-20",
            "`26 ms` is an example", "a 3x3 convolution", "3 × 3 filters", "1×1 shortcuts", "the 95 % interval",
            "95 % confidence", "$t = 26 ms$", "[a page](https://x.org/26 ms)", "10,000 test images", "batch 256", "p99",
            "10 classes", "two cores", "layer3.0.conv1", "notebook 01", "T = 4",
            "| 1 | x |", "the 1990s", "opset 17", "PyTorch 2.14",
        ],
    )  # fmt: skip
    def test_other_numbers_are_not(self, text):
        """Years, sections, names, shapes, counts, code and confidence levels are not measurements."""
        assert measured_numbers(text) == []

    def test_sentences_in_code_are_scanned_and_templates_are_not(self):
        """A number typed into a string that code shows is typed as well; one that the run puts in is not."""
        typed, rendered = (
            new_code_cell('say("It takes 26 ms.")'),
            new_code_cell('say("It takes {t:.1f} ms or {n:.1%}", t=t, n=n)'),
        )

        assert typed_numbers(new_notebook(cells=[rendered, typed])) == ["cell 1: '26 ms' is typed into prose"]

    def test_literature_needs_a_source(self):
        """A quoted number is allowed where its source stands beside it."""
        cells = [
            new_code_cell("1"),
            new_markdown_cell("The paper reports 91.25 % (He et al. 2016).", metadata={"tags": ["literature"]}),
            new_markdown_cell("The paper reports 91.25 %.", metadata={"tags": ["literature"]}),
            new_markdown_cell("Warn above 10 %.", metadata={"tags": ["definition"]}),
        ]

        assert typed_numbers(new_notebook(cells=cells)) == ["cell 2: is tagged `literature` and names no source"]

    def test_minutes_are_a_plan_only_in_the_opening(self):
        """How long a notebook takes may be said at its head, and nowhere else."""
        cells = [new_markdown_cell("Takes 2 minutes."), new_code_cell("1"), new_markdown_cell("That took 2 minutes.")]

        assert typed_numbers(new_notebook(cells=cells)) == ["cell 2: '2 minutes' is typed into prose"]


def test_no_notebook_types_a_measurement(solutions):
    """Every number of the course that was measured is rendered from the measurement."""
    found = {name: typed_numbers(notebook) for name, notebook in solutions.items()}

    assert not any(found.values()), found
