"""Committed outputs come from one clean run on CIFAR-10 and tell nothing about the machine but what the banner says."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell, new_output

from tools.notebooks import LARGEST_BYTES, WIDGET_VIEW, hygiene_faults, scrub, write

from .cells import calls
from .conftest import ROOT

SHORTEST_ALT = 15


def alt_text_faults(notebook: NotebookNode) -> list[str]:
    """Return the pictures that a reader who cannot see them learns nothing from, and those from the network."""
    return [f"cell {index}: {fault}" for index, cell in enumerate(notebook.cells) for fault in _picture_faults(cell)]


def _picture_faults(cell: NotebookNode) -> Iterator[str]:
    for output in cell.get("outputs", []):
        for kind in (kind for kind in output.get("data", {}) if kind.startswith("image/")):
            alt = output.metadata.get(kind, {}).get("alt", "")
            if len(alt) < SHORTEST_ALT:
                yield f"{kind} has the alt text {alt!r}"
        yield from _html_faults(output.get("data", {}).get("text/html", ""))
    if cell.cell_type == "markdown":
        yield from (f"{link} has no alt text" for link in re.findall(r"!\[\s*\]\([^)]*\)", cell.source))
        yield from (f"{link} is on the network" for link in re.findall(r"!\[[^\]]*\]\((https?:[^)]*)\)", cell.source))
        yield from _html_faults(cell.source)


def _html_faults(html: str) -> Iterator[str]:
    for picture in re.findall(r"<img\b[^>]*>", html):
        if not re.search(r"""\balt=["'][^"']+["']""", picture):
            yield f"{picture[:60]} has no alt text"
        if re.search(r"""\bsrc=["'](https?:)?//""", picture):
            yield f"{picture[:60]} is on the network"


def ran_on_cifar10(notebook: NotebookNode) -> bool:
    """Say whether the banner of an executed notebook names CIFAR-10 as the data in use."""
    banners = [cell for cell in notebook.cells if list(calls(cell, "start"))]
    said = "".join(_text(output) for cell in banners for output in cell.outputs)
    return bool(re.search(r"cifar-?10\b", said, re.IGNORECASE)) and "shapes32" not in said


def _text(output: NotebookNode) -> str:
    shown = [text for kind, text in output.get("data", {}).items() if kind.startswith("text/")]
    return "".join([output.get("text", ""), *shown])


def stream(text: str, name: str = "stdout") -> NotebookNode:
    """Return what a cell prints."""
    return new_output("stream", name=name, text=text)


class TestHygiene:
    def test_a_clean_run_has_no_fault(self, tmp_path, executed):
        """Outputs of a clean run are not blamed."""
        write(executed, tmp_path / "99_x.ipynb")

        assert hygiene_faults(tmp_path / "99_x.ipynb") == []

    @pytest.mark.parametrize(
        ("output", "fault"),
        [
            (new_output("error", ename="ValueError", evalue="no", traceback=[]), "error output ValueError: no"),
            (stream("UserWarning: beta", "stderr"), "text on stderr: 'UserWarning: beta'"),
            (stream("saved /home/ada/x.pt"), "machine path '/home/ada/x.pt' in output"),
            (stream("saved (/tmp/abc/x.pt)"), "machine path '/tmp/abc/x.pt' in output"),
            (stream(r"C:\Users\ada\x.pt"), "machine path 'C:\\\\Users\\\\' in output"),
            (stream("1\r2"), "remains of a progress bar in output"),
            (stream(" 40%|████      | 2/5"), "remains of a progress bar in output"),
            (new_output("display_data", data={WIDGET_VIEW: {}, "text/plain": ""}), "a widget without another form"),
            (new_output("display_data", data={"text/html": "<b a='/root/x'>"}), "machine path '/root/x' in text/html"),
        ],
    )
    def test_a_planted_fault_is_found(self, tmp_path, executed, output, fault):
        """Errors, warnings, paths and remains of progress are found, with the cell."""
        executed.cells[4].outputs = [output]
        write(executed, tmp_path / "99_x.ipynb")

        (found,) = hygiene_faults(tmp_path / "99_x.ipynb")

        assert found.startswith(f"cell 4 (id {executed.cells[4].id}): {fault}")

    def test_relative_paths_and_addresses_are_no_machine_path(self, tmp_path, executed):
        """What is the same on every machine may be shown."""
        executed.cells[4].outputs = [stream("data/checkpoints/x build/tmp/y https://host.org/home/page 1/root")]
        write(executed, tmp_path / "99_x.ipynb")

        assert hygiene_faults(tmp_path / "99_x.ipynb") == []

    def test_the_users_name_is_found(self, tmp_path, executed, monkeypatch):
        """A login name in an output is found."""
        monkeypatch.setattr("getpass.getuser", lambda: "lovelace")
        executed.cells[4].outputs = [stream("owner: lovelace")]
        write(executed, tmp_path / "99_x.ipynb")

        assert "user or host name 'lovelace' in output" in hygiene_faults(tmp_path / "99_x.ipynb")[0]

    def test_cells_run_out_of_order_are_found(self, tmp_path, executed):
        """Counts that are not 1 to n come from a run that nobody can repeat."""
        executed.cells[4].execution_count = 17
        write(executed, tmp_path / "99_x.ipynb")

        assert hygiene_faults(tmp_path / "99_x.ipynb")[0].startswith("execution counts are [1, 2, 17,")

    def test_a_huge_file_is_found(self, tmp_path, executed):
        """Notebooks stay small enough to open and to review."""
        executed.cells[4].outputs = [stream("x" * LARGEST_BYTES)]
        write(executed, tmp_path / "99_x.ipynb")

        assert hygiene_faults(tmp_path / "99_x.ipynb") == ["the file is larger than 3,000,000 bytes"]

    def test_scrub_takes_progress_and_leaves_warnings(self, executed):
        """Bars go, text and widget alike; what a warning says stays to be found, and real outputs stay."""
        widget = new_output("display_data", data={WIDGET_VIEW: {"model_id": "1"}, "text/plain": "HBox()"})
        bar = "\r 40%|████      | 2/5 [00:01<00:02,  1.5it/s]\nUserWarning: beta\n"
        executed.cells[4].outputs = [widget, stream(bar, "stderr"), stream("\r100%|█| 5/5", "stderr"), stream("done")]

        assert scrub(executed).cells[4].outputs == [stream("UserWarning: beta\n", "stderr"), stream("done")]

    def test_every_committed_notebook_is_clean(self, committed):
        """Nothing is committed that one clean run would not show."""
        found = {name: hygiene_faults(ROOT / "notebooks" / f"{name}.ipynb") for name in committed}

        assert not any(found.values()), found

    def test_every_solution_is_without_outputs(self, solutions):
        """A solution is source: outputs belong to the notebook made from it."""
        codes = [cell for notebook in solutions.values() for cell in notebook.cells if cell.cell_type == "code"]

        assert codes
        assert not [cell.id for cell in codes if cell.outputs or cell.execution_count]


class TestPictures:
    def test_a_described_picture_has_no_fault(self, executed):
        """A figure with a sentence about it is not blamed."""
        assert alt_text_faults(executed) == []

    def test_a_figure_without_alt_text_is_found(self, executed):
        """A figure shown past plots.show() is found."""
        executed.cells[6].outputs[0].metadata = {}

        assert alt_text_faults(executed) == ["cell 6: image/png has the alt text ''"]

    def test_pictures_in_text_need_alt_text_and_come_with_the_notebook(self, executed):
        """Markdown and HTML pictures are held to the same rule, and none is fetched."""
        executed.cells.append(new_markdown_cell('![](a.png) ![a](https://x.org/b.png) <img src="//x.org/c.png">'))

        assert len(alt_text_faults(executed)) == 4

    def test_every_picture_is_described(self, committed):
        """There are pictures, and each has its alt text."""
        outputs = [output for nb in committed.values() for cell in nb.cells for output in cell.get("outputs", [])]
        assert any("image/png" in output.get("data", {}) for output in outputs)

        found = {name: alt_text_faults(notebook) for name, notebook in committed.items()}
        assert not any(found.values()), found


class TestDataset:
    def test_a_run_on_the_stand_in_is_found(self, executed):
        """A banner that names shapes32 gives the run away."""
        assert ran_on_cifar10(executed)

        executed.cells[2].outputs = [stream("dataset: shapes32 (CIFAR-10 could not be downloaded)")]
        assert not ran_on_cifar10(executed)

    def test_every_committed_notebook_ran_on_cifar10(self, committed):
        """Outputs that readers see come from the real images."""
        assert [name for name, notebook in committed.items() if not ran_on_cifar10(notebook)] == []
