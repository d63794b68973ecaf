"""Every solution runs in smoke mode on the embedded data, answers its own exercises, and contacts nobody."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import papermill
import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_notebook, new_output
from papermill.exceptions import PapermillExecutionError

from deploykit.exercises import RIGHT, SIGNS, exercise
from tools.notebooks import write

ROOT = Path(__file__).resolve().parents[2]
SOLUTIONS = sorted((ROOT / "notebooks" / "solutions").glob("[0-9][0-9]_*.ipynb"))
# Readers' notebooks are run with the defaults beside this; here every parameter has another value than its default.
VARIATION: dict[str, Any] = {"BUDGET": "smoke", "DATA": "shapes32", "SEED": 1, "DEVICE": "cpu"}
CELL_TIMEOUT_S = 300


def execute(notebook: Path, target: Path, parameters: dict[str, Any]) -> NotebookNode:
    """Run a notebook where it lies, with ``parameters``; its first error, with the cell, fails the test."""
    try:
        return papermill.execute_notebook(
            notebook, target, parameters=parameters, cwd=notebook.parent, kernel_name="python3",
            progress_bar=False, execution_timeout=CELL_TIMEOUT_S,
        )  # fmt: skip
    except PapermillExecutionError as error:
        pytest.fail(str(error), pytrace=False)


def unanswered(notebook: NotebookNode) -> list[str]:
    """Return what the checks of an executed solution say where they do not say that the answer is right."""
    found = []
    for index, cell in enumerate(notebook.cells):
        if cell.cell_type != "code" or not _checks(cell.source):
            continue
        said = [output.data["text/plain"] for output in cell.outputs if "text/plain" in output.get("data", {})]
        right = [line for line in said if line.startswith(f"{SIGNS[RIGHT]} Exercise")]
        if len(right) < _checks(cell.source):
            found.append(f"cell {index}: {said or 'its check says nothing; let it be the last line'}")
    return found


def _checks(source: str) -> int:
    """Count calls of ``exercise``; a cell with magics has none."""
    try:
        nodes = ast.walk(ast.parse(source))
    except SyntaxError:
        return 0
    called = (node.func for node in nodes if isinstance(node, ast.Call))
    return sum("exercise" in (getattr(function, "id", ""), getattr(function, "attr", "")) for function in called)


class TestMachinery:
    @pytest.mark.parametrize(("answer", "right"), [(2, True), (3, False), (..., False)])
    def test_a_wrong_answer_is_found(self, answer, right):
        """A check that says anything but right is found."""
        checked = exercise("1", answer, expect={"it is 2": lambda n: n == 2})
        cell = new_code_cell("exercises.exercise('1', answer, expect=EXPECTED)")
        cell.outputs = [new_output("execute_result", data={"text/plain": str(checked)})]

        assert (unanswered(new_notebook(cells=[cell])) == []) == right

    def test_a_check_that_shows_nothing_is_found(self):
        """A check that is not the last line of its cell tells the reader nothing."""
        cell = new_code_cell("exercise('1', 2, expect=EXPECTED)\nx = 1")

        assert unanswered(new_notebook(cells=[cell])) == ["cell 0: its check says nothing; let it be the last line"]

    def test_a_notebook_that_phones_home_is_found(self, tmp_path, network_log):
        """What a kernel tries to reach is in the log, and parameters reach the kernel."""
        cells = [
            new_code_cell("SEED = 0", metadata={"tags": ["parameters"]}),
            new_code_cell(
                "import socket\ntry:\n    socket.getaddrinfo('example.org', SEED)\nexcept OSError as e:\n    print(e)"
            ),
        ]
        write(new_notebook(cells=cells), tmp_path / "a.ipynb")

        execute(tmp_path / "a.ipynb", tmp_path / "b.ipynb", {"SEED": 443})

        assert network_log.read_text(encoding="utf-8") == "socket.getaddrinfo example.org\n"


def test_there_are_solutions():
    """The tests below have something to run."""
    assert SOLUTIONS


@pytest.fixture
def own_ledger(ledgers, monkeypatch):
    """Let solutions find the rows of solutions only."""
    monkeypatch.setenv("DEPLOYKIT_LEDGER", str(ledgers / "solutions"))


@pytest.mark.usefixtures("timed", "own_ledger")
@pytest.mark.parametrize("solution", SOLUTIONS, ids=lambda path: path.stem)
def test_solution(solution, tmp_path, network_log):
    """It runs to its end, its exercises are answered, and nothing is looked up on the network."""
    executed = execute(solution, tmp_path / solution.name, VARIATION)

    assert unanswered(executed) == []
    assert network_log.read_text(encoding="utf-8") == ""
