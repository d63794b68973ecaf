"""README's results come from the recorded run, and from the newest one."""

from pathlib import Path

import pytest

from deploykit.recorded import Recorded
from tools import readme

ROOT = Path(__file__).parents[1]


def test_the_tables_in_the_readme_are_the_recorded_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """`python make.py readme` has been run since the last measurement."""
    monkeypatch.setenv("DEPLOYKIT_HOME", str(ROOT))
    text = (ROOT / "README.md").read_text(encoding="utf-8")

    assert readme.filled(text, readme.tables()) == text


def test_a_row_shows_what_was_recorded() -> None:
    """Accuracy with its interval, sizes and speeds in their units, machine and command below."""
    row = {
        "model": "net", "accuracy": 0.91234, "accuracy_low": 0.9, "accuracy_high": 0.92, "parameters": 1234,
        "macs": 40.8e6, "size_mib": 1.049, "latency_ms_batch_1": 2.345, "throughput_per_s_batch_64": 4321.0,
    }  # fmt: skip
    machine = {"cpu": "C", "threads": 2, "torch": "2"}
    table = readme.results_table(Recorded("baseline", "fp32", "2026-01-02", "python x.py", machine, {}, (row,)))

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


def test_a_readme_without_the_marks_is_refused() -> None:
    """Nothing is appended anywhere by guess."""
    with pytest.raises(ValueError, match=r"README.md must hold '<!-- results"):
        readme.filled("# title", "| a |")
