"""`make canary`: what is resolved anew, how errors are grouped, and what is recorded; nothing is installed here."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

import make
from tools import canary


def outcome(name: str, error: str = "", *, kind: str = "error") -> dict[str, object]:
    """Return what became of a notebook: an error unless there is none."""
    return {"name": name, "ok": not error, "kind": kind if error else "ok", "error": error, "source": "x = 1"}


def test_everything_is_resolved_but_what_needs_a_gpu() -> None:
    """The package and each extra, once, without the extras for GPUs, with what builds the checkout."""
    project = {
        "name": "our-own",
        "dependencies": ["torch>=2.11", "numpy>=2"],
        "optional-dependencies": {
            "onnx": ["onnx>=1.20", "numpy>=2"],
            "gpu": ["pycuda"],
            "rtx": ["tensorrt-rtx-cu13"],
            "all": ["our_own[onnx]"],
        },
    }

    assert canary.requirements(project) == ["numpy>=2", "onnx>=1.20", "setuptools>=80", "torch>=2.11"]


def test_names_are_those_of_the_lock() -> None:
    """Version, extra and marker are cut off, and the form is the normal one."""
    assert canary.names(["ray[serve]>=2.50", "Torch_Pruning>=1.6", "x; python_version < '3.12'"]) == [
        "ray", "torch-pruning", "x",
    ]  # fmt: skip


def test_what_moved_is_told_from_what_did_not() -> None:
    """A package is listed with both versions, if the lock has it for this Python and another one is there now."""
    locked = (
        "torch==2.14.1 \\\n    --hash=sha256:0\nnumpy==2.4.6 ; python_version >= '3' \\\n    --hash=sha256:0\n"
        "numpy==9.9 ; python_version < '3'\nonly-locked==1"
    )
    installed = {"torch": "2.15.0", "numpy": "2.4.6", "new": "1.0"}

    assert canary.moved(locked, installed, ["torch", "numpy", "new", "only-locked"]) == {"torch": "2.14.1 -> 2.15.0"}


def test_errors_that_differ_in_numbers_and_names_are_one() -> None:
    """What ran comes first, then the commonest error, shown as its first notebook said it."""
    rows = canary.grouped([
        outcome("00_a", "TypeError: 'f' takes 3"),
        outcome("01_b"),
        outcome("02_c", "ImportError: no g"),
        outcome("03_d", "ImportError: no g"),
        outcome("04_e", "TypeError: 'h' takes 4"),
        outcome("05_f", "ImportError: no g", kind="time-out"),
        outcome("06_g", "ImportError: no g"),
    ])  # fmt: skip

    assert [(row["outcome"], row["which"], row["error"]) for row in rows] == [
        ("ok", "01", ""),
        ("error", "02, 03, 06", "ImportError: no g"),
        ("error", "00, 04", "TypeError: 'f' takes 3"),
        ("time-out", "05", "ImportError: no g"),
    ]


@pytest.fixture
def three(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let there be three solutions, the second of which fails, and nothing to install; return the project."""
    folder = tmp_path / "notebooks" / "solutions"
    folder.mkdir(parents=True)
    for name in ("00_a", "01_b", "02_c"):
        (folder / f"{name}.ipynb").touch()

    def run(source: Path, *_: object, **__: object) -> SimpleNamespace:
        error = "ValueError: 7" if source.stem == "01_b" else ""
        return SimpleNamespace(**outcome(source.stem, error), seconds=1.0)

    monkeypatch.setattr(canary, "ROOT", tmp_path)
    monkeypatch.setattr(canary, "HOME", tmp_path / "canary")
    monkeypatch.setattr(canary, "changes", lambda: [{"outcome": "not as locked", "package": "torch"}])
    monkeypatch.setattr("tools.cookbook.run_notebook", run)
    monkeypatch.setenv("DEPLOYKIT_HOME", str(tmp_path))
    monkeypatch.setenv("DEPLOYKIT_LEDGER", "")  # it sets its own, which must not outlive the test
    return tmp_path


def test_a_run_of_all_is_recorded(three: Path) -> None:
    """Groups and what moved, with date, machine and versions; status 1, since one failed."""
    status = canary.try_notebooks([], three / "rows.json")
    recorded = json.loads((three / "data" / "results" / "canary.json").read_text(encoding="utf-8"))

    assert status == 1
    assert [row["outcome"] for row in recorded["rows"]] == ["ok", "error", "not as locked"]
    assert recorded["command"] == "python make.py canary"
    assert recorded["rows"][:2] == json.loads((three / "rows.json").read_text(encoding="utf-8"))


def test_a_part_is_not(three: Path) -> None:
    """Some notebooks say nothing about all: their outcome is shown only."""
    assert canary.try_notebooks(["00"], three / "rows.json") == 0
    assert not (three / "data").exists()


def test_a_number_that_does_not_exist_is_refused(three: Path) -> None:
    """A misspelt number does not pass for a success."""
    with pytest.raises(make.StopError, match="there is no notebook 77"):
        canary.try_notebooks(["77"], three / "rows.json")


@pytest.mark.skipif(os.name == "nt", reason="the stand-in for pip is a shell script")
def test_what_pip_says_last_is_the_error(three: Path) -> None:
    """A conflict is one line; all of pip's words stay in the log as long as the environment."""
    python = canary.HOME / "python"
    python.parent.mkdir()
    python.write_text("#!/bin/sh\necho Collecting\necho warning >&2\necho 'ERROR: a conflicts with b' >&2\nexit 1\n")
    python.chmod(0o755)

    assert canary.install(python, ["a", "b"]) == "ERROR: a conflicts with b"
    assert (canary.HOME / "pip.log").read_text(encoding="utf-8") == "Collecting\n"


def test_what_cannot_be_installed_is_an_outcome(
    three: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is reported like a broken notebook, with status 1, and the environment is thrown away."""
    monkeypatch.setattr(canary, "install", lambda *_: "ERROR: a conflicts with b")
    monkeypatch.setattr(canary, "_project", lambda: {"name": "x", "dependencies": [], "optional-dependencies": {}})
    monkeypatch.setattr(make, "BUILD", three / "build")

    assert canary.main([]) == 1
    assert capsys.readouterr().out.endswith("could not be installed: 1 (all)  ERROR: a conflicts with b\n")
    assert not canary.HOME.exists()
