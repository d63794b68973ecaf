"""Every notebook is built the same way, so that a reader of one finds their way in all."""

from __future__ import annotations

import ast
import itertools
import re
import statistics
from collections.abc import Iterator

import pytest
from nbformat import NotebookNode

from tools.notebooks import solution_regions

from .cells import called, calls, first_string, tagged, tree

PARAMETERS = {"BUDGET": "quick", "DATA": "auto", "DEVICE": "auto", "SEED": 0}
OPENING = {
    "what you will learn": r"\blearn\b",
    "the prerequisites": r"\bprerequisites?\b",
    "the minutes in quick and full mode": r"(?=.*\bmin)(?=.*\bquick\b)(?=.*\bfull\b)",
    "the claims under test": r"\bclaims?\b",
}
HEADINGS = {"Copy this": r"copy this", "Exercises": r"exercise", "Verdicts": r"verdict"}
LONGEST_CELL, LARGEST_MEDIAN, LONGEST_RUN = 20, 6, 3
# A cell to be pasted is a whole recipe with its docstring; it is read as a page, not as a step.
LONGEST_COPY = 80


def anatomy_faults(notebook: NotebookNode) -> list[str]:
    """Return where a solution notebook leaves the common build."""
    parts = (_opening, _sections, _exercises, _predictions, _rhythm)
    return [fault for part in parts for fault in part(notebook)]


def _opening(notebook: NotebookNode) -> Iterator[str]:
    cells = notebook.cells
    codes = [index for index, cell in enumerate(cells) if cell.cell_type == "code"]
    head = "\n".join(cell.source for cell in itertools.takewhile(lambda cell: cell.cell_type == "markdown", cells))
    title, _, promise = head.partition("\n")
    if not title.startswith("# ") or not promise.strip() or promise.strip().startswith("#"):
        yield "it does not open with a title and a paragraph that says what is promised"
    for what, pattern in OPENING.items():
        if not re.search(pattern, head, re.IGNORECASE | re.DOTALL):
            yield f"its opening does not say {what}"
    if len(codes) < 2 or not tagged(cells[codes[0]], "parameters"):
        yield "its first code cell is not tagged `parameters`, or there is no banner after it"
        return
    if _assigned(cells[codes[0]]) != PARAMETERS:
        yield f"its parameters are {_assigned(cells[codes[0]])}, not {PARAMETERS}"
    starts = calls(cells[codes[1]], "start")
    used = {node.id for call in starts for node in ast.walk(call) if isinstance(node, ast.Name)}
    if not used >= set(PARAMETERS):
        yield "its second code cell is not a banner: start(...) given all four parameters"


def _assigned(cell: NotebookNode) -> dict[str, object]:
    found: dict[str, object] = {}
    for statement in tree(cell).body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant(value=value)):
                found[name] = value
            case _:
                found[ast.unparse(statement)] = "not a parameter"
    return found


def _headings(notebook: NotebookNode) -> list[str]:
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    return re.findall(r"^#{2,4} (.+)$", text, re.MULTILINE)


def _sections(notebook: NotebookNode) -> Iterator[str]:
    for name, pattern in HEADINGS.items():
        if not any(re.search(pattern, heading, re.IGNORECASE) for heading in _headings(notebook)):
            yield f"it has no section {name!r}"
    if not any(tagged(cell, "copy-this") for cell in notebook.cells):
        yield "no cell is tagged `copy-this`"
    if not any(list(calls(cell, "prediction_score")) for cell in notebook.cells):
        yield "it does not show the reader's prediction_score()"
    last = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"][-1:]
    if not last or not re.search(r"\bnext\b", last[0], re.IGNORECASE):
        yield "its last text cell does not say where to go next"


def _exercises(notebook: NotebookNode) -> Iterator[str]:
    cells = notebook.cells
    solved = [index for index, cell in enumerate(cells) if cell.cell_type == "code" and solution_regions(cell.source)]
    if not solved:
        yield "no cell holds a solution, so there is no exercise"
    for index, following in itertools.pairwise([*solved, len(cells)]):
        checks = [call for cell in cells[index:following] for call in calls(cell, "exercise")]
        if not checks:
            yield f"the solution in cell {index} has no exercise(...) after it that checks the answer"
        before = itertools.takewhile(lambda cell: cell.cell_type == "markdown", reversed(cells[:index]))
        hinted = any(re.search(r"<details>\s*<summary>", cell.source) for cell in before)
        if not hinted and not any(word.arg == "hint" for call in checks for word in call.keywords):
            yield f"the exercise of cell {index} has no hint (hint=, or <details><summary> in the text above it)"


def _predictions(notebook: NotebookNode) -> Iterator[str]:
    predicted: set[str | None] = set()
    for index, cell in enumerate(notebook.cells):
        for call in calls(cell, "predict", "judge"):
            claim = first_string(call)
            if called(call) == "predict":
                predicted.add(claim)
            elif claim not in predicted:
                yield f"cell {index} judges {claim!r}, which the reader was not asked to predict before"
    if not predicted:
        yield "it asks for no prediction"


def _rhythm(notebook: NotebookNode) -> Iterator[str]:
    lengths, in_a_row = [], 0
    for index, cell in enumerate(notebook.cells):
        in_a_row = in_a_row + 1 if cell.cell_type == "code" else 0
        if in_a_row == LONGEST_RUN + 1:
            yield f"cell {index} is the {in_a_row}th code cell in a row without a word between"
        if cell.cell_type != "code":
            continue
        lines = sum(bool(line.strip()) for line in cell.source.splitlines())
        longest = LONGEST_COPY if tagged(cell, "copy-this") else LONGEST_CELL
        if lines > longest:
            yield f"cell {index} has {lines} lines of code; at most {longest}"
        if not tagged(cell, "copy-this"):
            lengths.append(lines)
    if lengths and statistics.median(lengths) > LARGEST_MEDIAN:
        yield f"the median code cell has {statistics.median(lengths):g} lines; at most {LARGEST_MEDIAN}"


class TestAnatomy:
    def test_the_miniature_has_no_fault(self, miniature):
        """A notebook that keeps every rule is not blamed."""
        assert anatomy_faults(miniature) == []

    @pytest.mark.parametrize(
        ("cell", "was", "becomes", "fault"),
        [
            (0, "# 99 · Threads\n\nMore", "More", "it does not open with a title"),
            (0, "**Prerequisites:** notebook 01.", "", "its opening does not say the prerequisites"),
            (0, ", 5 full", "", "its opening does not say the minutes in quick and full mode"),
            (1, "SEED = 0", "SEED = 1", "its parameters are"),
            (1, "SEED = 0", "SEED = 0\nEPOCHS = 3", "its parameters are"),
            (2, ", seed=SEED", "", "its second code cell is not a banner"),
            (4, "predict", "print", "it asks for no prediction"),
            (4, "more-threads", "fewer-threads", "cell 13 judges 'more-threads-are-faster'"),
            (7, "## Copy this", "", "it has no section 'Copy this'"),
            (9, "<summary>", "", "the exercise of cell 10 has no hint"),
            (10, "### ", "# no ", "no cell holds a solution"),
            (11, "exercise", "print", "the solution in cell 10 has no exercise(...)"),
            (12, "## Verdicts", "## End", "it has no section 'Verdicts'"),
            (14, "prediction_score()", "1", "it does not show the reader's prediction_score()"),
            (15, "next", "then", "its last text cell does not say where to go next"),
            (6, "trial", "x = 1\n" * 21 + "trial", "cell 6 has 22 lines of code; at most 20"),
        ],
    )
    def test_a_planted_fault_is_found(self, miniature, cell, was, becomes, fault):
        """Each rule finds the notebook that breaks it."""
        assert was in miniature.cells[cell].source
        miniature.cells[cell].source = miniature.cells[cell].source.replace(was, becomes)

        assert [found for found in anatomy_faults(miniature) if found.startswith(fault)], anatomy_faults(miniature)

    def test_four_code_cells_in_a_row_are_found(self, miniature):
        """Code without a word between is found where it becomes too much."""
        miniature.cells[8:8] = [miniature.cells[6]] * 3

        assert anatomy_faults(miniature) == ["cell 11 is the 4th code cell in a row without a word between"]

    def test_long_cells_all_over_are_found(self, miniature):
        """Cells that each keep the limit still make a notebook of long cells."""
        for index in (2, 4, 6, 11, 13):
            miniature.cells[index].source += "\nx = 1" * 9

        assert anatomy_faults(miniature) == ["the median code cell has 10 lines; at most 6"]

    def test_every_notebook_is_built_this_way(self, solutions):
        """No notebook of the course leaves the common build."""
        found = {name: anatomy_faults(notebook) for name, notebook in solutions.items()}

        assert not any(found.values()), found
