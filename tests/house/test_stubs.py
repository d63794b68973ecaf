"""Readers' notebooks are the solutions with blanks, cell by cell."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from tools.notebooks import generate, normalised, read, write

from .conftest import ROOT


def drift(solution: Path, stub: NotebookNode) -> list[str]:
    """Return where ``stub`` is not what ``solution`` generates: cell types, ids, sources and tags."""
    expected = generate(solution).cells
    if [cell.id for cell in expected] != [cell.id for cell in stub.cells]:
        return ["the cells are others, or in another order"]
    return [
        f"cell {index} (id {ours.id}) differs"
        for index, (ours, theirs) in enumerate(zip(expected, normalised(stub).cells, strict=True))
        if (ours.cell_type, ours.source, ours.metadata) != (theirs.cell_type, theirs.source, theirs.metadata)
    ]


def stub_source(tmp_path: Path, source: str) -> str:
    """Return the source that readers get for a cell with ``source``."""
    write(new_notebook(cells=[new_code_cell(source)]), tmp_path / "07_x.ipynb")
    return generate(tmp_path / "07_x.ipynb").cells[0].source


class TestGenerate:
    def test_an_assignment_leaves_its_name(self, tmp_path):
        """The cells after a blanked assignment find the name, with nothing in it."""
        source = "a = 1\n### BEGIN SOLUTION\nhelp_me = a + 1\nanswer = help_me\n### END SOLUTION\nprint(answer)"

        assert stub_source(tmp_path, source) == "a = 1\n# YOUR CODE HERE\nanswer = ...\nprint(answer)"

    def test_two_names_stay_two(self, tmp_path):
        """Unpacking still finds two values."""
        source = "### BEGIN SOLUTION\nlow, high = f()\n### END SOLUTION"

        assert stub_source(tmp_path, source) == "# YOUR CODE HERE\nlow, high = ..., ..."

    def test_a_function_body_keeps_its_indentation(self, tmp_path):
        """The stub of a function returns the ellipsis, which its check reads as not answered yet."""
        source = "def f(x):\n    ### BEGIN SOLUTION\n    y = x\n\n    return y\n    ### END SOLUTION"

        stub = stub_source(tmp_path, source)

        assert stub == "def f(x):\n    # YOUR CODE HERE\n    return ..."
        compile(stub, "stub", "exec")

    def test_cell_ids_and_tags_are_kept_and_the_rest_goes(self, tmp_path):
        """Ids and tags survive; editor state, timings, Python version and outputs do not."""
        cell = new_code_cell("1", id="mine", metadata={"tags": ["t"], "collapsed": True, "execution": {"a": "b"}})
        solution = new_notebook(cells=[cell], metadata={"language_info": {"name": "python", "version": "3.11.7"}})
        nbformat.write(solution, tmp_path / "07_x.ipynb")

        notebook = generate(tmp_path / "07_x.ipynb")

        assert (notebook.cells[0].id, notebook.cells[0].metadata) == ("mine", {"tags": ["t"]})
        assert notebook.metadata.language_info == {"name": "python"}

    @pytest.mark.parametrize(
        ("source", "message"),
        [
            ("### BEGIN SOLUTION\nx = 1", "a solution is begun and not ended; add '### END SOLUTION'"),
            ("x = 1\n### END SOLUTION", "a solution ends that was not begun (line 2)"),
            ("### BEGIN SOLUTION\n### BEGIN SOLUTION", "a solution begins inside another (line 2)"),
            ("## begin solution\nx = 1", "line 1 reads '## begin solution'; the markers are '### BEGIN SOLUTION'"),
            ("### BEGIN SOLUTION\nif x:\n### END SOLUTION\n    y", "the solution is not Python by itself"),
            ("### BEGIN SOLUTION\n# nothing\n### END SOLUTION", "the solution is empty"),
        ],
    )
    def test_a_wrong_marker_names_notebook_and_cell(self, tmp_path, source, message):
        """No solution is published by a typing error, and the message leads to it."""
        with pytest.raises(ValueError, match=r"07_x\.ipynb, cell 0") as caught:
            stub_source(tmp_path, source)

        assert message in str(caught.value)

    def test_a_marker_in_a_text_cell_is_an_error(self, tmp_path):
        """A solution written as text would not be blanked, so it is refused."""
        write(new_notebook(cells=[new_markdown_cell("### BEGIN SOLUTION\n42")]), tmp_path / "07_x.ipynb")

        with pytest.raises(ValueError, match="a solution marker works in code cells only"):
            generate(tmp_path / "07_x.ipynb")

    def test_equal_notebooks_are_equal_files(self, tmp_path, miniature):
        """Writing, reading and writing again changes no byte."""
        write(miniature, tmp_path / "a.ipynb")
        write(read(tmp_path / "a.ipynb"), tmp_path / "b.ipynb")

        assert (tmp_path / "a.ipynb").read_bytes() == (tmp_path / "b.ipynb").read_bytes()


class TestDrift:
    def test_the_generated_stub_has_none(self, tmp_path, miniature):
        """What is generated agrees with its source, and no solution is left in it."""
        write(miniature, tmp_path / "99_x.ipynb")
        stub = generate(tmp_path / "99_x.ipynb")

        assert drift(tmp_path / "99_x.ipynb", stub) == []
        assert "2 * 32" not in nbformat.writes(stub)

    def test_an_edited_stub_is_found(self, tmp_path, miniature):
        """A sentence corrected in the stub only is a difference."""
        write(miniature, tmp_path / "99_x.ipynb")
        stub = generate(tmp_path / "99_x.ipynb")
        stub.cells[3].source += "!"

        assert drift(tmp_path / "99_x.ipynb", stub) == [f"cell 3 (id {stub.cells[3].id}) differs"]

    def test_every_notebook_is_what_its_solution_generates(self, solutions, committed):
        """Each solution has its stub, each stub its solution, and they agree."""
        assert list(solutions) == list(committed)
        found = {name: drift(ROOT / "notebooks/solutions" / f"{name}.ipynb", stub) for name, stub in committed.items()}

        assert not any(found.values()), f"run `python make.py notebooks`: {found}"
