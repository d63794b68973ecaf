"""Every notebook that readers get runs as committed, and its marked outputs come out again."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
MARK = "# NBVAL_CHECK_OUTPUT"
CELL_TIMEOUT_S = 300


def nbval(*notebooks: Path) -> tuple[bool, str]:
    """Execute the cells of notebooks and compare the marked ones; return (all passed, nbval's report)."""
    plugins = ["no:cacheprovider", "no:hypothesispytest", "no:anyio", "tests.notebooks.compare_same_data"]
    options = ["--nbval-lax", f"--nbval-cell-timeout={CELL_TIMEOUT_S}", "-rfs", "-q", "--color=no"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *(f"-p{plugin}" for plugin in plugins), *notebooks],
        cwd=ROOT, capture_output=True, text=True, timeout=1200, check=False,
    )  # fmt: skip
    return done.returncode == 0, done.stdout + done.stderr


def failed(report: str) -> list[str]:
    """Return the cells that failed, as ``name.ipynb::Cell 1``."""
    return re.findall(r"^FAILED (?:.*/)?(\w+\.ipynb::Cell \d+)", report, re.MULTILINE)


def not_compared(report: str) -> str | None:
    """Return nbval's first reason for not comparing a marked cell."""
    found = re.search(r"SKIPPED.*?: (not compared: .*)", report)
    return found.group(1) if found else None


def stored(path: Path, *cells: tuple[str, str], tags: tuple[str, ...] = ()) -> Path:
    """Write a notebook with (source, committed output) pairs; ``tags`` go to the last cell."""
    made = []
    for count, (source, text) in enumerate(cells, start=1):
        outputs = [new_output("stream", name="stdout", text=text)] if text else []
        made.append(new_code_cell(source, execution_count=count, outputs=outputs))
    made[-1].metadata["tags"] = list(tags)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    nbformat.write(new_notebook(cells=made, metadata={"kernelspec": kernel}), path)
    return path


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What nbval reports on four small notebooks, one per test below."""
    folder = tmp_path_factory.mktemp("planted")
    here = "print('dataset    shapes32: 20 images')"
    on_cifar10, on_shapes32 = (here, "dataset    cifar10: 60 images\n"), (here, "dataset    shapes32: 20 images\n")
    drifted, broken = (f"{MARK}\nprint(3)", "4\n"), (f"{MARK}\n1 / 0", "4\n")
    stored(folder / "drifted.ipynb", ("print(1)", "2\n"), drifted)
    stored(folder / "other_data.ipynb", on_cifar10, drifted, tags=("cifar10",))
    stored(folder / "broken.ipynb", on_cifar10, broken, tags=("cifar10",))
    stored(folder / "same_data.ipynb", on_shapes32, drifted, tags=("cifar10",))
    passed, said = nbval(*sorted(folder.glob("*.ipynb")))
    assert not passed
    return said


class TestMachinery:
    def test_a_marked_output_that_differs_is_found(self, report):
        """A marked cell must come out as committed; an unmarked one may differ."""
        assert [cell for cell in failed(report) if cell.startswith("drifted")] == ["drifted.ipynb::Cell 1"]

    def test_a_cell_about_cifar10_is_not_compared_on_other_data(self, report):
        """With other data than committed a tagged cell is run, and the reason for not comparing it is given."""
        assert not [cell for cell in failed(report) if cell.startswith("other_data")]
        assert not_compared(report) == (
            "not compared: it is committed for cifar10: 60 images, this run has shapes32: 20 images; "
            "set DEPLOYKIT_DATA to CIFAR-10"
        )

    def test_an_error_counts_on_any_data(self, report):
        """A tagged cell that fails is a failure, whatever it would have been compared with."""
        assert "broken.ipynb::Cell 1" in failed(report)

    def test_a_cell_about_cifar10_is_compared_on_the_same_data(self, report):
        """With the data as committed a tagged cell is compared like any other."""
        assert "same_data.ipynb::Cell 1" in failed(report)


def test_there_are_notebooks():
    """The test below has something to run."""
    assert NOTEBOOKS


@pytest.mark.usefixtures("timed", "network_log")
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed(notebook, ledgers, monkeypatch):
    """It runs to its end as committed, and the outputs of its marked cells are the committed ones."""
    monkeypatch.setenv("DEPLOYKIT_LEDGER", str(ledgers / "committed"))
    assert MARK in notebook.read_text(encoding="utf-8"), "no cell is marked, so nothing would be compared"

    passed, report = nbval(notebook)

    assert passed, report
    if reason := not_compared(report):
        pytest.skip(f"it ran, and some of its outputs were {reason}")
