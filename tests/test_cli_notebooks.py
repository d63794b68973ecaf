"""`deploykit notebooks` lists what is in the checkout, runs one as `make cookbook` does, and begins another."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import nbformat
import psutil
import pytest
from house.test_anatomy import anatomy_faults
from house.test_typed_numbers import typed_numbers
from typer.testing import CliRunner, Result

from deploykit.cli import app
from deploykit.cli.contract import Status
from tools import cookbook, notebooks

ROOT = Path(__file__).resolve().parents[1]
SCHEMAS = Path(__file__).parent / "schemas"


def deploykit(*arguments: str) -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(app, arguments, catch_exceptions=False)


def valid(name: str, text: str) -> dict:
    """Return a document that fits its schema."""
    found = json.loads(text)
    jsonschema.validate(found, json.loads((SCHEMAS / f"{name}.json").read_text(encoding="utf-8")))
    return found


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a checkout with three notebooks: one that works, one that fails, one that sleeps."""
    shutil.copy(ROOT / "make.py", tmp_path)
    shutil.copytree(ROOT / "tools", tmp_path / "tools", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "notebooks").mkdir()
    cells = {
        "00_works": "print(BUDGET, DATA)",
        "01_fails": "raise ValueError('of all things')",
        "02_sleeps": "import os, pathlib, time\npathlib.Path('pid').write_text(f'{os.getpid()}\\n')\ntime.sleep(99)",
    }
    for name, code in cells.items():
        text = nbformat.v4.new_markdown_cell(f"# {name[:2]} · It {name[3:]}\n\n**Minutes:** 1 quick, 2.5 full.")
        parameters = nbformat.v4.new_code_cell('BUDGET, DATA = "full", "none"', metadata={"tags": ["parameters"]})
        notebook = nbformat.v4.new_notebook(cells=[text, parameters, nbformat.v4.new_code_cell(code)])
        nbformat.write(notebook, tmp_path / "notebooks" / f"{name}.ipynb")
    monkeypatch.setenv("DEPLOYKIT_HOME", str(tmp_path))
    return tmp_path


def start(*arguments: str) -> subprocess.Popen[str]:
    """Start a command in a process of its own, which Ctrl-C reaches."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        command = [sys.executable, "-m", "deploykit.cli", "notebooks", *arguments]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, handler)


class TestList:
    def test_the_courses_notebooks_are_listed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Number, title, minutes and claims, as the notebooks themselves say them."""
        monkeypatch.setenv("DEPLOYKIT_HOME", str(ROOT))
        found = valid("notebooks-list", deploykit("notebooks", "list", "--json").stdout)["notebooks"]

        assert found[0]["name"] == "00_setup_and_data"
        assert found[0]["claims"] == ["augment-whole-batches"]
        assert [entry["name"] for entry in found if not entry["minutes"]] == []

    def test_the_table_is_aligned(self, project: Path) -> None:
        """One line a notebook."""
        assert deploykit("notebooks", "list").stdout.splitlines()[:2] == [
            "no.  title      minutes  claims",
            "00   It works   1 / 2.5  augment-whole-batches",
        ]

    def test_a_damaged_notebook_is_named(self, project: Path) -> None:
        """Status 3, which file, and how to get it back."""
        (project / "notebooks" / "01_fails.ipynb").write_text("{", encoding="utf-8")
        result = deploykit("notebooks", "list")

        assert result.exit_code == Status.UNABLE
        assert "01_fails.ipynb is no notebook (JSONDecodeError" in result.stderr


class TestRun:
    def test_it_keeps_the_executed_copy(self, project: Path, tmp_path: Path) -> None:
        """Status 0, the parameters reached the notebook, the notebook is as it was, and the document fits."""
        source = project / "notebooks" / "00_works.ipynb"
        before = source.read_bytes()
        process = start("run", "0", "--budget", "smoke", "--data", "shapes32", "--out", str(tmp_path / "out"), "--json")
        stdout, stderr = process.communicate()
        found = valid("notebooks-run", stdout)

        assert (process.returncode, found["ok"], found["failure"]) == (0, True, None), stderr
        assert "smoke shapes32" in Path(found["executed"]).read_text(encoding="utf-8")
        assert Path(found["executed"]) == tmp_path / "out" / "00_works.ipynb"
        assert source.read_bytes() == before
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["00_works.ipynb"]

    @pytest.mark.parametrize(
        ("arguments", "variable", "limit"),
        [
            (("--budget", "smoke"), None, 300),
            ((), None, 300),
            (("--budget", "full"), None, 14400),
            (("--budget", "full", "--timeout", "20"), None, 20),
            (("--budget", "full"), "30", 30),
        ],
    )
    def test_a_cell_gets_the_seconds_of_its_budget(
        self,
        project: Path,
        monkeypatch: pytest.MonkeyPatch,
        arguments: tuple[str, ...],
        variable: str | None,
        limit: int,
    ) -> None:
        """Hours with the full one, where single cells train for many minutes; what is asked for wins."""
        asked: list[float] = []

        def run_notebook(source: Path, target: Path, *, timeout: float, **_: object) -> cookbook.Result:
            asked.append(timeout)
            target.with_suffix(".log").touch()
            return cookbook.Result(source.stem, ok=True, seconds=1)

        monkeypatch.delenv("DEPLOYKIT_CELL_TIMEOUT", raising=False)
        if variable:
            monkeypatch.setenv("DEPLOYKIT_CELL_TIMEOUT", variable)
        monkeypatch.setattr("deploykit.cli.notebooks._runner", lambda _: cookbook)
        monkeypatch.setattr("tools.cookbook.run_notebook", run_notebook)

        assert deploykit("notebooks", "run", "00", *arguments).exit_code == Status.DONE
        assert asked == [limit]

    def test_a_cell_that_fails_is_named_with_its_remedy(self, project: Path) -> None:
        """Status 1, and the summary of `make cookbook`; the copy is in build/runs."""
        process = start("run", "01_fails")
        stdout, _ = process.communicate()
        words = " ".join(stdout.split())

        assert process.returncode == Status.FAILED_CHECK
        assert 'where: code cell 2, which begins "raise ValueError' in words
        assert "error: ValueError: of all things remedy: open it (make lab)" in words
        assert f"the executed copy: {project / 'build' / 'runs' / '01_fails.ipynb'}" in stdout

    def test_ctrl_c_leaves_no_kernel(self, project: Path) -> None:
        """Status 130, one line, and the kernel's process ends."""
        process = start("run", "02")
        note = project / "notebooks" / "pid"
        deadline = time.monotonic() + 60
        while not (note.exists() and note.read_text(encoding="utf-8").endswith("\n")):
            assert time.monotonic() < deadline, process.stderr
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate()

        assert (process.returncode, stderr) == (Status.STOPPED, "deploykit: stopped\n")
        assert not psutil.pid_exists(int(note.read_text(encoding="utf-8")))

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (("run", "07"), "no notebook begins with '07_'; choose one of 00_works, 01_fails, 02_sleeps"),
            (("run", "0_"), "no notebook begins with '0_'"),
            (("run", "00", "--data", "nowhere"), "there is no folder"),
            (("run", "00", "--budget", "fast"), "'fast' is not one of 'quick', 'smoke', 'full'"),
        ],
    )
    def test_a_mistake_gets_status_two(self, project: Path, arguments: tuple[str, ...], words: str) -> None:
        """Nothing is started for a number, folder or budget that does not exist."""
        result = deploykit("notebooks", *arguments)

        assert (result.exit_code, result.stdout) == (Status.USAGE, "")
        assert words in result.stderr
        assert not (project / "build").exists()

    def test_the_notebook_itself_is_not_overwritten(self, project: Path) -> None:
        """--out must not be the folder of the notebooks."""
        result = deploykit("notebooks", "run", "00", "--out", str(project / "notebooks"))

        assert (result.exit_code, "give --out another folder" in result.stderr) == (Status.USAGE, True)

    def test_a_gpu_that_is_not_there_is_the_environments_fault(
        self, project: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Status 3 at once, not an error in the notebook's second cell."""
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
        result = deploykit("notebooks", "run", "00", "--device", "cuda")

        assert (result.exit_code, "torch finds no GPU here" in result.stderr) == (Status.UNABLE, True)

    def test_a_missing_package_names_the_extra(self, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Status 3 without papermill."""
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "papermill" else object())
        result = deploykit("notebooks", "run", "00")

        assert result.exit_code == Status.UNABLE
        assert result.stderr == "deploykit: running notebooks needs papermill: pip install 'deploykit[notebooks]'\n"


class TestNew:
    @pytest.fixture
    def made(self, project: Path) -> Path:
        """Begin a notebook in the small checkout and return its file."""
        (project / "notebooks" / "solutions").mkdir()
        result = deploykit("notebooks", "new", "16_my_topic", "--title", 'Topics, "mine"', "--json")

        assert (result.exit_code, result.stderr) == (Status.DONE, "")
        return Path(valid("notebooks-new", result.stdout)["file"])

    def test_it_lies_among_the_solutions_with_number_and_title(self, project: Path, made: Path) -> None:
        """Nothing of the template's marks is left, and the file is as `make notebooks` would write it."""
        assert made == project / "notebooks" / "solutions" / "16_my_topic.ipynb"
        assert notebooks.read(made).cells[0].source.startswith('# 16 · Topics, "mine"\n')
        text = made.read_text(encoding="utf-8")
        assert 'exercise(\\"16.1\\"' in text
        assert 'title=\\"16_my_topic\\"' in text
        assert not re.search(r"@[A-Z]+@", text)

    def test_it_keeps_the_rules(self, made: Path) -> None:
        """The common build, and no typed measurement: what is missing is what only its author can write."""
        notebook = notebooks.read(made)

        assert anatomy_faults(notebook) == []
        assert typed_numbers(notebook) == []
        assert "return 1 - 1 / speed" not in nbformat.writes(notebooks.generate(made))

    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("00_again", "the number 00 is taken by 00_taken.ipynb; choose another"),
            ("1_short", "'1_short' is no name of a notebook; two digits and a topic in lower case"),
            ("16_../x", "is no name of a notebook"),
            ("16_My_Topic", "is no name of a notebook"),
        ],
    )
    def test_a_wrong_name_is_refused(self, project: Path, name: str, words: str) -> None:
        """Status 2, and no file is written or overwritten."""
        (project / "notebooks" / "solutions").mkdir()
        (project / "notebooks" / "solutions" / "00_taken.ipynb").touch()
        result = deploykit("notebooks", "new", name)

        assert result.exit_code == Status.USAGE
        assert words in result.stderr
        assert [path.name for path in (project / "notebooks" / "solutions").iterdir()] == ["00_taken.ipynb"]

    def test_no_notebook_keeps_the_templates_words(self) -> None:
        """What the template asks to be written has been written, in every notebook of the course."""
        files = [ROOT / "tools" / "notebook_template.json", *sorted((ROOT / "notebooks").rglob("[0-9]*.ipynb"))]
        asked = [path.name for path in files if "*Write here*" in path.read_text(encoding="utf-8")]

        assert asked == ["notebook_template.json"]
