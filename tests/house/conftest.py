"""The collections that are checked, none of which may be empty, and a small notebook that keeps every rule."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from tools.notebooks import read

ROOT = Path(__file__).resolve().parents[2]
BANNER = """from deploykit import notebook
run = notebook.start(budget=BUDGET, data=DATA, device=DEVICE, seed=SEED)"""


def _notebooks(folder: Path) -> dict[str, NotebookNode]:
    found = {path.stem: read(path) for path in sorted(folder.glob("[0-9][0-9]_*.ipynb"))}
    assert found, f"no notebook in {folder.relative_to(ROOT)}: there is nothing to check"
    return found


@pytest.fixture(scope="session")
def solutions() -> dict[str, NotebookNode]:
    """Every solution notebook by stem."""
    return _notebooks(ROOT / "notebooks" / "solutions")


@pytest.fixture(scope="session")
def committed() -> dict[str, NotebookNode]:
    """Every executed notebook that readers get, by stem."""
    return _notebooks(ROOT / "notebooks")


@pytest.fixture
def miniature() -> NotebookNode:
    """A solution notebook that keeps every rule, for planting faults in."""
    text, code = new_markdown_cell, new_code_cell
    cells = [
        text(
            "# 99 · Threads\n\nMore threads are not always faster, and you will see where they stop helping.\n\n"
            "**You will learn** to choose them. **Prerequisites:** notebook 01. **Minutes:** 1 quick, 5 full.\n\n"
            "**Claims under test:** `more-threads-are-faster`."
        ),
        code('BUDGET = "quick"\nDATA = "auto"\nDEVICE = "auto"\nSEED = 0', metadata={"tags": ["parameters"]}),
        code(BANNER),
        text("## 1 · Do threads help?\n\n**Before you run it:** which bar is shorter?"),
        code('predict("more-threads-are-faster", "yes")'),
        text("Now measure both."),
        code("trial = compare(one, two)"),
        text("**Read it.** The bars agree.\n\n## Copy this"),
        code("def double(x):\n    return 2 * x", metadata={"tags": ["copy-this"], "deploykit": {"copies": "tests"}}),
        text("## Exercises\n\nHow many images is that?\n\n<details><summary>Hint</summary>Multiply.</details>"),
        code("### BEGIN SOLUTION\nanswer = 2 * 32\n### END SOLUTION"),
        code('exercise("99.1", answer, expect={"it is two batches": lambda n: n == 64})'),
        text("## Verdicts"),
        code('judge("more-threads-are-faster", 1.2, evidence="trial")'),
        code("prediction_score()"),
        text("## Where to go next\n\nNotebook 02."),
    ]
    return new_notebook(cells=cells)


@pytest.fixture
def executed(miniature: NotebookNode) -> NotebookNode:
    """The miniature with the outputs of a clean run."""
    for count, cell in enumerate((cell for cell in miniature.cells if cell.cell_type == "code"), start=1):
        cell.execution_count = count
    miniature.cells[2].outputs = [new_output("stream", name="stdout", text="dataset: CIFAR-10, 45,000 images\n")]
    miniature.cells[6].outputs = [
        new_output(
            "display_data",
            data={"image/png": "iVBORw0KGgo=", "text/plain": "<Figure size 640x480>"},
            metadata={"image/png": {"alt": "Two bars of equal length, in milliseconds"}},
        )
    ]
    return nbformat.from_dict(miniature)
