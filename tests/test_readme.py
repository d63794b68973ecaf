"""README's results come from the recorded run, and from the newest one."""

from pathlib import Path

import pytest

from deploykit.recorded import Recorded, recorded
from tools import readme

ROOT = Path(__file__).parents[1]


def test_the_table_in_the_readme_is_the_recorded_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """`python make.py readme` has been run since the last measurement."""
    monkeypatch.setenv("DEPLOYKIT_HOME", str(ROOT))
    text = (ROOT / "README.md").read_text(encoding="utf-8")

    assert readme.filled(text, readme.results_table(recorded("baseline"))) == text


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


def test_a_readme_without_the_marks_is_refused() -> None:
    """Nothing is appended anywhere by guess."""
    with pytest.raises(ValueError, match=r"README.md must hold '<!-- results"):
        readme.filled("# title", "| a |")
