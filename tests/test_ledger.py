"""The ledger keeps every whole row of every process."""

import csv
import json
import math
import subprocess
import sys

import numpy as np
import pytest

from deploykit import ledger


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty ledger, and nothing said yet."""
    monkeypatch.setenv("DEPLOYKIT_LEDGER", str(tmp_path / "ledger"))
    ledger._say_once.cache_clear()
    monkeypatch.setattr(ledger, "_context", {})
    return tmp_path / "ledger"


def test_a_row_is_flat_and_says_when_where_and_with_what():
    """A row carries its numbers, and time (UTC), run, machine and versions without being asked."""
    ledger.record("resnet20", kind="baseline", dataset="cifar10", split="test", accuracy=np.float32(0.5), images=10)

    row = ledger.rows().iloc[0]
    assert (row["what"], row["kind"], row["dataset"], row["split"]) == ("resnet20", "baseline", "cifar10", "test")
    assert (row["accuracy"], row["images"]) == (0.5, 10)
    assert row["time"].endswith("+00:00")
    assert all(row[column] for column in ("run", "cpu", "threads", "version_torch", "version_deploykit"))


def test_a_half_written_last_line_is_skipped_and_named_once(folder, capsys):
    """A killed process costs its unfinished row only; the file and line are said once, also when read again."""
    ledger.record("whole", kind="baseline")
    (folder / "killed.jsonl").write_text('{"time": "2026-01-01", "what": "old"}\n{"time": "2026-01-02", "wh')

    assert list(ledger.rows()["what"]) == ["old", "whole"]
    ledger.rows()
    expected = "ledger: skipped line 2 of killed.jsonl, which is not a whole row (half-written?)\n"
    assert capsys.readouterr().err == expected


def test_a_row_after_a_cut_one_starts_on_its_own_line(folder, capsys):
    """After a full disk cut a row short, the next row of the same process is whole."""
    ledger.record("first", kind="baseline")
    path = next(folder.glob("*.jsonl"))
    path.write_text(path.read_text() + '{"what": "cu')
    ledger.record("next", kind="baseline")

    assert list(ledger.rows()["what"]) == ["first", "next"]
    assert "skipped line 2" in capsys.readouterr().err


def test_two_processes_writing_at_once_lose_nothing(folder):
    """Each process has its own file; all rows of both are there, sorted by time."""
    code = "from deploykit import ledger\nfor i in range(50): ledger.record('p', kind='k', number=i)"
    processes = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]

    table = ledger.rows()
    assert len(list(folder.glob("*.jsonl"))) == 2
    assert sorted(table["number"]) == sorted([*range(50), *range(50)])
    assert table["time"].is_monotonic_increasing


def test_numbers_that_are_not_finite_are_kept_and_lines_stay_json(folder, tmp_path):
    """NaN is not the same as not measured: it survives reading, and the export tells the two apart."""
    ledger.record("a", kind="k", loss=math.nan, best=-math.inf)
    ledger.record("b", kind="k")

    json.loads(next(folder.glob("*.jsonl")).read_text().splitlines()[0], parse_constant=pytest.fail)
    assert ledger.rows()["best"][0] == -math.inf
    with ledger.export(tmp_path / "all.csv").open() as file:
        first, second = csv.DictReader(file)
    assert (first["loss"], first["best"], second["loss"]) == ("NaN", "-Infinity", "")


def test_what_is_not_flat_or_not_the_callers_is_refused(folder):
    """A list and a column that the ledger fills in are errors, and nothing is written."""
    with pytest.raises(ValueError, match=r"^latency_ms is a list; a ledger row is flat: record single numbers"):
        ledger.record("a", kind="k", latency_ms=[1.0, 2.0])
    with pytest.raises(ValueError, match=r"^the ledger fills in cpu itself; give your numbers other column names$"):
        ledger.record("a", kind="k", cpu="mine")
    assert ledger.rows().empty


def test_a_folder_that_cannot_be_written_is_replaced_with_a_word(tmp_path, monkeypatch, capsys):
    """Rows then go to the cache folder, which is said once, and are read from there."""
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("DEPLOYKIT_LEDGER", str(tmp_path / "file" / "ledger"))
    monkeypatch.setenv("DEPLOYKIT_CACHE", str(tmp_path / "cache"))
    ledger.record("kept", kind="k")
    ledger.record("kept too", kind="k")

    assert list(ledger.rows()["what"]) == ["kept", "kept too"]
    assert capsys.readouterr().err.count("cannot be written; rows go to") == 1


def test_a_short_write_is_an_error_that_counts_the_bytes(monkeypatch):
    """A full disk does not pass for a written row."""
    monkeypatch.setattr(ledger.os, "write", lambda descriptor, data: 7)

    with pytest.raises(OSError, match=r"^only 7 of \d+ bytes of a ledger row fitted into .*: is the disk full\?$"):
        ledger.record("a", kind="k")


def test_export_names_what_is_missing(tmp_path, monkeypatch):
    """An unknown suffix, an empty ledger and a missing pyarrow each say what to do."""
    with pytest.raises(ValueError, match=r"^cannot export to 'all\.xlsx': the name must end in \.csv or \.parquet$"):
        ledger.export(tmp_path / "all.xlsx")
    with pytest.raises(ValueError, match=r"^the ledger is empty: run a notebook first"):
        ledger.export(tmp_path / "all.csv")
    ledger.record("a", kind="k")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ModuleNotFoundError, match=r'^Parquet needs pyarrow: pip install "deploykit\[parquet\]"'):
        ledger.export(tmp_path / "all.parquet")
    assert not list(tmp_path.glob("all*"))


def test_parquet_keeps_null_and_nan_apart(tmp_path):
    """A column of texts and numbers becomes text; a missing value is null and NaN is NaN."""
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is missing (extra: parquet)")
    ledger.record("a", kind="k", loss=math.nan, mixed="x")
    ledger.record("b", kind="k", mixed=1)

    table = parquet.read_table(ledger.export(tmp_path / "all.parquet"))
    loss = table["loss"].to_pylist()
    assert math.isnan(loss[0])
    assert loss[1] is None
    assert table["mixed"].to_pylist() == ["x", "1"]


def test_the_notebooks_context_is_in_every_row():
    """What the notebook set is added to later rows, and a row can say otherwise."""
    ledger.set_context(dataset="shapes32", budget="smoke")
    ledger.record("a", kind="k")
    ledger.record("b", kind="k", dataset="cifar10")

    assert list(ledger.rows()["dataset"]) == ["shapes32", "cifar10"]
    assert list(ledger.rows()["budget"]) == ["smoke", "smoke"]


def test_names_are_text_in_the_table():
    """A model called like an HTML tag is shown, not rendered."""
    ledger.record("<img src=x onerror=alert(1)>", kind="k")

    assert "<img" not in ledger.rows()._repr_html_()
