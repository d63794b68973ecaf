"""README's results come from the recorded run, and from the newest one."""

import re
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

from deploykit.claims import find_claim
from deploykit.recorded import Recorded
from tools import readme
from tools.book.pages import Page, Verdict

ROOT = Path(__file__).parents[1]


def test_the_tables_in_the_readme_are_the_recorded_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """`python make.py readme` has been run since the last measurement and the last run of the notebooks."""
    monkeypatch.setenv("DEPLOYKIT_HOME", str(ROOT))
    text = (ROOT / "README.md").read_text(encoding="utf-8")

    assert readme.filled(text, readme.blocks()) == text


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md"])
def test_minutes_are_those_of_the_notebooks(name: str) -> None:
    """Of both budgets, as the opening of each notebook has them."""
    rows = re.findall(
        r"\((notebooks/\d\d_\w+\.ipynb)\).*\| (\d+) / (\d+) \|$", (ROOT / name).read_text("utf-8"), re.MULTILINE
    )
    openings = {path: nbformat.read(ROOT / path, as_version=4).cells[0].source for path, *_ in rows}

    assert len(rows) == len(list((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")))
    assert [f"{quick} quick, {full} full" for _, quick, full in rows] == [
        re.search(r"\d+ quick, \d+ full", opening)[0] for opening in openings.values()
    ]


def test_a_row_shows_what_was_recorded() -> None:
    """Accuracy with its interval, sizes and speeds in their units, machine and command below."""
    row = {
        "model": "net", "accuracy": 0.91234, "accuracy_low": 0.9, "accuracy_high": 0.92, "parameters": 1234,
        "macs": 40.8e6, "size_mib": 1.049, "latency_ms_batch_1": 2.345, "throughput_per_s_batch_64": 4321.0,
    }  # fmt: skip
    machine = {"cpu": "C", "threads": 2, "torch": "2"}
    table = readme.networks_table(Recorded("baseline", "fp32", "2026-01-02", "python x.py", machine, {}, (row,)))

    assert "| net | **91.23%** (90.00% to 92.00%) | 1,234 | 40.8 M | 1.05 MiB | 2.3 ms | 4,321 images/s |" in table
    assert "C, 2 threads, torch 2, 2026-01-02: `python x.py`." in table


def test_a_combination_stands_beside_its_baseline() -> None:
    """Points with their interval, both ratios and the file."""
    row = {
        "form": "small, int8", "accuracy": 0.9191, "minus_resnet56_points": -0.63, "low_points": -1.147,
        "high_points": -0.112, "x_eager": 21.204, "x_openvino_float32": 13.61, "size_kib": 256.3,
    }  # fmt: skip
    machine = {"cpu": "C", "threads": 2}
    table = readme.combined_table(Recorded("combined", "all", "2026-01-02", "python x.py", machine, {}, (row,)))

    assert "| small, int8 | 91.91% | -0.63 (-1.15 to -0.11) | 21.2x | 13.6x | 256 KiB |" in table
    assert table.endswith("all; C, 2 threads, 2026-01-02:\n`python x.py`.")


def test_the_headline_is_the_fastest_that_loses_less_than_a_point() -> None:
    """Not the fastest of all, and the interval of what is lost has its ends the other way round."""
    found = {"whole": (0.0, 1.0), "slow": (-0.1, 2.0), "fast": (-0.6, 21.77), "poor": (-1.1, 40.0)}
    rows = [
        {
            "form": name, "minus_resnet56_points": points, "x_eager": fast, "times_smaller": 3.0,
            "low_points": points - 1, "high_points": points + 0.5, "x_openvino_float32": fast / 1.6,
        }
        for name, (points, fast) in found.items()
    ]  # fmt: skip
    told = readme.headline(Recorded("combined", "", "2026-01-02", "", {}, {}, tuple(rows)))

    assert told == (
        "**22x the images per second, a file 3x smaller, and 0.6 points of accuracy less** (0.1 to 1.6): what was "
        "whole is now fast. Over the same network in OpenVINO's float32 it is 14x."
    )


def test_advice_is_shown_with_its_verdict_and_all_of_it_counted(tmp_path: Path) -> None:
    """Words of the claim, numbers of the notebook, a link to it; counts of all verdicts below."""
    banner = new_output("display_data", {"text/plain": "machine   a CPU\ndevice    CPU"})
    notebook = new_notebook(cells=[new_code_cell("run", outputs=[banner])])
    nbformat.write(notebook, tmp_path / "06_x.ipynb")
    page = Page("06_x", tmp_path / "06_x.ipynb", None)
    known = {name: Verdict(name, "holds", "it is 2x", page) for name in readme.SHOWN}
    known |= {"other": Verdict("other", "undecided", "who knows", page)}
    table = readme.advice_table(known)

    counts = f"holds {len(readme.SHOWN)}, refuted here 0, undecided 1, not measurable here 0"
    words = find_claim("static-loses-little").words

    assert f"| {words} | **holds** | it is 2x | [06](notebooks/06_x.ipynb) |" in table
    assert f"| it is 2x. But {find_claim('a-runtime-beats-the-framework').but} |" in table
    assert f"{len(known)} pieces of advice on one machine (a CPU): {counts}." in table
    assert table.count("who knows") == 0


@pytest.mark.parametrize(
    "text",
    [
        "# title",
        "<!-- a:begin, generated by `python make.py readme` -->\n-\n<!-- a:end -->\n" * 2,
        "<!-- b:begin, generated by `python make.py readme` -->\n-\n<!-- b:end -->\n",
    ],
)
def test_a_readme_without_the_marks_is_refused(text: str) -> None:
    """Nothing is appended anywhere by guess, and nothing old is left."""
    with pytest.raises(ValueError, match="a README must hold the marks of a once each, and no others"):
        readme.filled(text, {"a": "| a |"})


def test_what_stands_between_the_marks_is_replaced() -> None:
    """And nothing else."""
    mark = "<!-- a:begin, generated by `python make.py readme` -->\n{}\n<!-- a:end -->\nafter\n"

    assert readme.filled(mark.format("old\nand older"), {"a": r"new \\1"}) == mark.format(r"new \\1")
