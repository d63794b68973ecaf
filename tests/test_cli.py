"""What every command keeps: one line for a mistake, its status, data apart from talk, documents that fit a schema."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import jsonschema
import pytest
from packaging.requirements import Requirement
from pictures import write_folder
from typer.core import TyperGroup
from typer.testing import CliRunner, Result

from deploykit import ledger
from deploykit.cli import app, contract, output
from deploykit.cli.contract import Status, StopError
from deploykit.doctor import Finding
from tools import cli_reference

SCHEMAS = Path(__file__).parent / "schemas"
TIME = "2026-11-24T18:14:37.594491+00:00"
VERDICT = {
    "time": TIME, "run": "r", "what": "augment-whole-batches", "kind": "verdict", "dataset": "cifar10",
    "verdict": "holds", "value": 33.6, "low": 33.5, "high": 33.7, "unit": "x", "threshold": 10.0, "direction": "above",
    "evidence": "64 pictures", "threads": 2, "version_torch": "2",
}  # fmt: skip
ANSWER = {"time": TIME, "run": "r", "what": "augment-whole-batches", "kind": "prediction", "answer": "3x to 10x"}
COUNTED = {
    "time": TIME,
    "run": "r",
    "what": "net",
    "kind": "baseline",
    "images": 10000,
    "speedup": {"non_finite": "inf"},
}


def deploykit(*arguments: str | Path) -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


def document(name: str, result: Result) -> dict:
    """Return the document on stdout, which fits its schema."""
    found = json.loads(result.stdout)
    schema = json.loads((SCHEMAS / f"{name}.json").read_text(encoding="utf-8"))
    jsonschema.validate(found, schema, cls=jsonschema.Draft202012Validator)
    return found


def write_ledger(folder: Path, *rows: dict | str) -> None:
    """Write a file of the ledger, of rows or of text in their place."""
    folder.mkdir(exist_ok=True)
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / "run.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def examination(monkeypatch: pytest.MonkeyPatch, *findings: Finding) -> dict[str, bool]:
    """Let the doctor find this; returns what it was asked, once it has been."""
    asked: dict[str, bool] = {}

    def examine(**options: bool) -> list[Finding]:
        asked.update(options)
        return list(findings)

    monkeypatch.setattr("deploykit.doctor.examine", examine)
    return asked


@pytest.fixture
def ledger_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a ledger of three rows."""
    folder = tmp_path / "ledger"
    write_ledger(folder, VERDICT, ANSWER, COUNTED)
    monkeypatch.setenv("DEPLOYKIT_LEDGER", str(folder))
    return folder


class TestMistakes:
    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["trian"], "no such command 'trian'. Did you mean 'train'? See deploykit --help"),
            (["cook"], "no such command 'cook'; see deploykit --help"),
            (["ledger"], "missing command; see deploykit ledger --help"),
            (["train", "resnet20", "--schedule", "steps"], "invalid value for '--schedule': 'steps' is not one of"),
            (["train", "resnet20", "--epochs", "0"], "invalid value for '--epochs': Input should be greater than"),
            (["train", "resnet20", "--width", "4"], "no such option: --width"),
            (["train"], "missing argument 'MODEL'. Choose from: resnet8, resnet20,"),
            (["claims", "nonsense"], "there is no claim 'nonsense'; claims.toml has: augment-whole-batches"),
            (["data", "/nowhere"], "/nowhere is not a folder; a dataset is a folder with train/"),
            (["ledger", "export", "rows.txt"], "cannot export to 'rows.txt': the name must end in .csv or .parquet"),
        ],
    )
    def test_a_wrong_command_line_gets_one_line_and_status_two(
        self, arguments: list[str], words: str, ledger_folder: Path
    ) -> None:
        """The line says what is wrong and what to do; stdout stays empty."""
        result = deploykit(*arguments)

        assert (result.exit_code, result.stdout) == (Status.USAGE, "")
        assert result.stderr.startswith(f"deploykit: {words}")
        assert result.stderr.count("\n") == 1

    @pytest.mark.parametrize(
        ("error", "status", "words"),
        [
            (StopError("a; b", Status.FAILED_CHECK), 1, "a; b"),
            (ValueError("x is 3;\n it must be 4"), 2, "x is 3; it must be 4"),
            (FileNotFoundError(errno.ENOENT, "No such file or directory", "/a"), 2, "/a; check the path"),
            (PermissionError(errno.EACCES, "Permission denied", "/a"), 3, "Permission denied: /a; choose a place"),
            (OSError(errno.ENOSPC, "No space left on device"), 3, "No space left on device; free some space"),
            (OSError(errno.EACCES, "no", "/a/net.csv.deploykit-partial-1-2"), 3, "no: /a/net.csv; choose"),
            (ConnectionError("the host does not answer"), 3, "the host does not answer"),
            (ModuleNotFoundError("No module named 'timm'", name="timm"), 3, "install the package"),
            (ImportError("timm's: pip install 'deploykit[training]'"), 3, "timm's: pip install 'deploykit[training]'"),
            (MemoryError(), 3, "out of memory (MemoryError); close other programs"),
            (RuntimeError("DefaultCPUAllocator: can't allocate memory: …"), 3, "out of memory (DefaultCPUAllocator"),
            (KeyboardInterrupt(), 130, "stopped"),
        ],
    )
    def test_what_a_reader_can_mend_has_a_status_and_a_remedy(
        self, error: BaseException, status: int, words: str
    ) -> None:
        """Usage 2, the environment 3, Ctrl-C 130."""
        assert contract.status_of(error) == status
        assert words in contract.words_for(error)
        assert "\n" not in contract.words_for(error)

    @pytest.mark.parametrize(
        "error",
        [RuntimeError("shape mismatch"), TypeError("x"), ModuleNotFoundError("no", name="deploykit.nothing")],
    )
    def test_an_error_of_our_own_making_keeps_its_traceback(self, error: Exception) -> None:
        """What no reader can mend is not dressed up as their mistake."""
        assert contract.status_of(error) is None

    def test_a_file_that_may_not_be_written_is_named(
        self, ledger_folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Status 3, the path, what to do; no traceback."""

        def refuse(path: Path) -> None:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))

        monkeypatch.setattr(ledger, "export", refuse)
        result = deploykit("ledger", "export", "/root/rows.csv")

        assert result.exit_code == Status.UNABLE
        assert result.stderr == f"deploykit: Permission denied: /root/rows.csv; {contract.REMEDIES[errno.EACCES]}\n"

    def test_under_torchrun_one_process_tells_the_mistake_that_all_make(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The second process says nothing of a wrong command line; what its machine lacks it tells."""
        monkeypatch.setenv("RANK", "1")
        monkeypatch.setenv("DEPLOYKIT_LEDGER", str(tmp_path))
        mistake, trouble = deploykit("claims", "nonsense"), deploykit("ledger", "export", "rows.csv")

        assert (mistake.exit_code, mistake.stderr) == (Status.USAGE, "")
        assert (trouble.exit_code, trouble.stderr[:11]) == (Status.UNABLE, "deploykit: ")

    def test_a_folder_that_a_variable_names_is_blamed_on_the_variable(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Who set DEPLOYKIT_DATA long ago learns why their command fails."""
        monkeypatch.setenv("DEPLOYKIT_DATA", "/nowhere")
        result = deploykit("data")

        assert (result.exit_code, result.stdout) == (Status.USAGE, "")
        assert result.stderr.startswith("deploykit: DEPLOYKIT_DATA names a folder that is no dataset: /nowhere is not")

    def test_cifar10_that_may_not_be_fetched_is_the_environments_fault(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Status 3: the command line is right, the machine lacks the data."""
        monkeypatch.setenv("DEPLOYKIT_HOME", str(tmp_path))
        monkeypatch.delenv("DEPLOYKIT_DATA", raising=False)
        result = deploykit("data", "cifar10", "--no-download")

        assert result.exit_code == Status.UNABLE
        assert "allow the download, or put CIFAR-10 there" in result.stderr


class TestStreams:
    """What goes where, in a process of its own."""

    def run(self, *arguments: str, **settings: object) -> subprocess.Popen[str]:
        """Start a command."""
        command = [sys.executable, "-m", "deploykit.cli", *arguments]
        return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **settings)

    def test_a_reader_who_leaves_early_is_no_error(self, ledger_folder: Path) -> None:
        """`| head` closes the pipe: status 0, and not a word."""
        read, write = os.pipe()
        os.close(read)
        process = self.run("ledger", "show", "--json", stdout=write)
        os.close(write)
        _, stderr = process.communicate()

        assert (process.returncode, stderr) == (0, "")

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is missing: Linux has it")
    def test_a_full_disk_behind_stdout_is_told_once(self) -> None:
        """Status 3 and one line; Python adds nothing on its way out."""
        with Path("/dev/full").open("w") as full:
            process = self.run("claims", stdout=full)
            _, stderr = process.communicate()

        assert process.returncode == Status.UNABLE
        assert stderr.splitlines() == [f"deploykit: No space left on device; {contract.REMEDIES[errno.ENOSPC]}"]

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is missing: Linux has it")
    def test_a_mistake_that_cannot_be_told_keeps_its_status(self) -> None:
        """A full disk behind stderr takes the words, not the 2."""
        with Path("/dev/full").open("w") as full:
            command = [sys.executable, "-m", "deploykit.cli", "cook"]
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=full, check=False)

        assert (done.returncode, done.stdout) == (Status.USAGE, b"")

    def test_talk_does_not_reach_the_document(self, ledger_folder: Path) -> None:
        """A half-written row is spoken of on stderr, and stdout is JSON."""
        write_ledger(ledger_folder, VERDICT, '{"time": "2026')
        process = self.run("ledger", "show", "--json", stdout=subprocess.PIPE)
        stdout, stderr = process.communicate()

        assert len(json.loads(stdout)["rows"]) == 1
        assert "skipped line 2 of run.jsonl" in stderr

    def test_it_works_without_any_stdout(self) -> None:
        """A closed descriptor (`>&-`) is nobody's error."""
        command = ["sh", "-c", 'exec "$@" >&-', "sh", sys.executable, "-m", "deploykit.cli", "claims"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)

        assert (done.returncode, done.stderr) == (0, "")


class TestDocuments:
    """Each command's --json fits tests/schemas; training's and a notebook's have tests of their own."""

    def test_every_command_has_a_document_with_a_schema(self) -> None:
        """None lacks --json, and no schema is left over."""
        leaves = {"-".join(path): c for path, c in cli_reference.commands() if not isinstance(c, TyperGroup)}

        assert len(leaves) == 13
        assert {path.stem for path in SCHEMAS.glob("*.json")} == set(leaves)
        assert [n for n, c in leaves.items() if not any("--json" in p.opts for p in c.params)] == []

    def test_a_schema_refuses_what_it_does_not_name(self) -> None:
        """A document with one key more or less does not pass."""
        schema = json.loads((SCHEMAS / "predictions.json").read_text(encoding="utf-8"))
        for wrong in ({"right": 1, "scored": []}, {"right": 1, "scored": [], "waiting": [], "more": 1}):
            with pytest.raises(jsonschema.ValidationError):
                jsonschema.validate(wrong, schema)

    @pytest.mark.parametrize(("status", "code"), [("limited", Status.DONE), ("missing", Status.FAILED_CHECK)])
    def test_doctor(self, monkeypatch: pytest.MonkeyPatch, status: str, code: Status) -> None:
        """The findings are there whether or not the machine is healthy; the status says which."""
        asked = examination(monkeypatch, Finding("GPU", status, "none", "no TensorRT", "borrow one"))
        result = deploykit("doctor", "--workshop", "--offline", "--json")
        found = document("doctor", result)

        assert (result.exit_code, found["healthy"]) == (code, code == Status.DONE)
        assert asked == {"workshop": True, "online": False}
        assert found["findings"][0]["mend"] == "borrow one"

    def test_data(self, tmp_path: Path) -> None:
        """Name, classes and counts of a folder."""
        found = document("data", deploykit("data", write_folder(tmp_path / "pets"), "--json"))

        assert (found["name"], found["classes"]) == ("pets", ["cat", "dog"])
        assert found["images"] == {"train": 36, "val": 4, "test": 10}

    def test_claims_with_their_verdicts(self, ledger_folder: Path) -> None:
        """A claim that was measured has its newest verdict, another null; an open end of an answer is null."""
        found = document("claims", deploykit("claims", "--verdicts", "--json"))["claims"]
        by_id = {claim["id"]: claim for claim in found}

        assert by_id["augment-whole-batches"]["verdict"]["value"] == 33.6
        assert by_id["establish-a-baseline-first"]["verdict"] is None
        assert by_id["augment-whole-batches"]["options"][0] == {"answer": "less than 3x", "above": None, "up_to": 3.0}

    def test_one_claim(self) -> None:
        """The same form with one entry; without --verdicts none is looked up."""
        (claim,) = document("claims", deploykit("claims", "augment-whole-batches", "--json"))["claims"]

        assert claim["notebook"] == "00"
        assert "verdict" not in claim

    def test_predictions(self, ledger_folder: Path) -> None:
        """33.6x was measured, 3x to 10x was the guess: not right."""
        found = document("predictions", deploykit("predictions", "--json"))

        assert found["right"] == 0
        assert found["scored"][0] | {"words": ""} == {
            "claim": "augment-whole-batches", "words": "", "answer": "3x to 10x", "measured": "33.60x", "right": False,
        }  # fmt: skip

    def test_rows_of_the_ledger(self, ledger_folder: Path) -> None:
        """A row has its own columns only, a count stays whole, infinity is written as the ledger writes it."""
        (row,) = document("ledger-show", deploykit("ledger", "show", "--last", "1", "--json"))["rows"]

        assert row == COUNTED
        assert isinstance(row["images"], int)

    def test_an_export(self, ledger_folder: Path, tmp_path: Path) -> None:
        """Says where and how many."""
        found = document("ledger-export", deploykit("ledger", "export", tmp_path / "rows.csv", "--json"))

        assert found == {"file": str(tmp_path / "rows.csv"), "rows": 3}
        assert len((tmp_path / "rows.csv").read_text(encoding="utf-8").splitlines()) == 1 + 3


class TestText:
    def test_doctor(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """What is well takes a line; what is not says what it costs and how to mend it."""
        examination(
            monkeypatch,
            Finding("Python", "ok", "3.11.7"),
            Finding("GPU", "missing", "none", "no TensorRT", "borrow one"),
        )

        assert deploykit("doctor").stdout.splitlines() == [
            "ok       Python  3.11.7",
            "missing  GPU     none",
            "         cost: no TensorRT",
            "         mend: borrow one",
            "",
            "not ready, see what is missing: 1 ok, 1 missing",
        ]

    def test_what_the_doctor_says_at_length_hangs_behind_its_label(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A line that is too long goes on below its own beginning."""
        monkeypatch.setenv("COLUMNS", "40")
        examination(monkeypatch, Finding("GPU", "limited", "none", "steps show what was recorded elsewhere"))

        assert deploykit("doctor").stdout.splitlines() == [
            "limited  GPU  none",
            "         cost: steps show what was",
            "               recorded elsewhere",
            "",
            "ready for the course: 1 limited",
        ]

    def test_data(self, tmp_path: Path) -> None:
        """Classes, splits and a fingerprint; a name that would steer the terminal is made harmless."""
        result = deploykit("data", write_folder(tmp_path / "pets", classes=("cat", "dog\x1b[2J")))

        assert result.exit_code == 0
        assert "classes      2: cat, dog�[2J" in result.stdout
        assert "images       36 train, 4 val, 10 test; 32x32 pixels" in result.stdout

    def test_claims(self, ledger_folder: Path) -> None:
        """A table that fits 80 columns, with the verdict in numbers where there is one."""
        listed, judged = deploykit("claims").stdout, deploykit("claims", "--verdicts").stdout

        assert re.search(r"^augment-whole-batches +00 +Augment whole batches at once", listed, re.MULTILINE)
        assert re.search(r"^augment-whole-batches +holds +the throughput of whole", judged, re.MULTILINE)
        assert re.search(r"^establish-a-baseline-first +not measured yet$", judged, re.MULTILINE)
        assert max(map(len, f"{listed}{judged}".splitlines())) <= 80

    def test_one_claim(self, ledger_folder: Path) -> None:
        """Source, threshold, question and verdict."""
        text = " ".join(deploykit("claims", "augment-whole-batches", "--verdicts").stdout.split())

        assert "holds if the throughput of whole batches over that of one image at a time is above 10x" in text
        assert "answers less than 3x | 3x to 10x | 10x to 30x | more than 30x" in text
        assert "verdict holds: the throughput of whole batches" in text

    def test_predictions_name_where_intuition_failed(self, ledger_folder: Path) -> None:
        """The score first, then the failures."""
        lines = deploykit("predictions").stdout.splitlines()

        assert lines[0] == "0 of 1 predictions right"
        assert lines[2:5] == [
            "Where intuition failed:",
            "claim                  you said   measured",
            "augment-whole-batches  3x to 10x  33.60x",
        ]

    def test_the_ledger(self, ledger_folder: Path) -> None:
        """Time, kind, dataset and what, the numbers below; machine and versions are left out."""
        text = deploykit("ledger", "show", "--kind", "verdict").stdout

        assert "2026-11-24 18:14  verdict  cifar10  augment-whole-batches\n" in text
        assert "value 33.6; low 33.5" in text
        assert "version_torch" not in text

    def test_what_is_not_shown_of_the_ledger_is_said(self, ledger_folder: Path) -> None:
        """More rows than asked for, and a kind that does not exist, are talk; neither is an error."""
        part, none = deploykit("ledger", "show", "--last", "1"), deploykit("ledger", "show", "--kind", "verdicts")

        assert part.stderr == "the last 1 of 3 rows; --last 3 shows all\n"
        assert none.stderr == "there is no row of kind 'verdicts'; there are baseline, prediction, verdict\n"
        assert (part.exit_code, none.exit_code, none.stdout) == (0, 0, "")

    def test_an_empty_ledger_says_how_to_fill_it(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Nothing to show is no error; nothing to export is one."""
        monkeypatch.setenv("DEPLOYKIT_LEDGER", str(tmp_path / "new"))
        shown, exported = deploykit("ledger", "show"), deploykit("ledger", "export", tmp_path / "rows.csv")

        assert (shown.exit_code, shown.stdout) == (Status.DONE, "")
        assert shown.stderr == "the ledger is empty: run a notebook, each step of it leaves a row\n"
        assert (exported.exit_code, (tmp_path / "rows.csv").exists()) == (Status.UNABLE, False)

    def test_an_export_replaces_nothing_unasked(self, ledger_folder: Path, tmp_path: Path) -> None:
        """A file that exists stays as it is without --force."""
        target = tmp_path / "rows.csv"
        target.write_text("mine")
        refused = deploykit("ledger", "export", target)
        kept = target.read_text()
        forced = deploykit("ledger", "export", target, "--force")

        assert (refused.exit_code, kept) == (Status.USAGE, "mine")
        assert "replace it with --force" in refused.stderr
        assert (forced.exit_code, forced.stdout) == (0, f"3 rows written to {target}\n")

    @pytest.mark.parametrize("broken", [{"value": "much"}, {"value": None, "low": None}, {"low": 99.0}])
    @pytest.mark.parametrize("command", [("predictions",), ("claims", "--verdicts")])
    def test_a_ledger_that_was_edited_is_named(self, ledger_folder: Path, command: Sequence[str], broken: dict) -> None:
        """A verdict without its numbers is passed over, or a line says where to look; it is no traceback."""
        write_ledger(ledger_folder, {**VERDICT, **broken}, ANSWER)
        result = deploykit(*command)

        assert result.exit_code in (Status.DONE, Status.UNABLE)
        assert "Traceback" not in result.output

    def test_tables_wrap_their_last_column(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Columns are as wide as their widest cell; what does not fit goes on below itself."""
        monkeypatch.setenv("COLUMNS", "40")

        assert output.table([("a", "one two three four five six seven eight"), ("bbb", 2)]).splitlines() == [
            "a    one two three four five six seven",
            "     eight",
            "bbb  2",
        ]


class TestStart:
    def test_help_needs_no_heavy_package(self) -> None:
        """`deploykit --help` answers at once because it imports nothing that takes time."""
        code = (
            "import sys; sys.argv = ['deploykit', '--help']\n"
            "from deploykit.cli import app\n"
            "try: app()\n"
            "except SystemExit: print({'torch', 'pandas', 'matplotlib', 'scipy', 'numpy', 'rich'} & set(sys.modules))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

        assert done.stdout.splitlines()[-1] == "set()"

    def test_claims_need_no_torch(self) -> None:
        """Neither does the list of claims."""
        code = (
            "import sys; sys.argv = ['deploykit', 'claims', '--json']\n"
            "from deploykit.cli import app\n"
            "try: app()\n"
            "except SystemExit: sys.stderr.write(str({'torch', 'pandas'} & set(sys.modules)))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

        assert done.stderr == "set()"

    @pytest.mark.parametrize("command", ["--help", "claims", "notebooks list", "predictions", "data shapes32"])
    def test_no_extra_is_needed(self, command: str, tmp_path: Path) -> None:
        """With the core's packages alone a command works, and says of an extra where it needs one."""
        extras = {
            Requirement(line).name for line in metadata.requires("deploykit") or () if Requirement(line).marker
        } - {"deploykit"}  # fmt: skip  # an extra that contains another names the package itself
        modules = [name for name, owners in metadata.packages_distributions().items() if extras & set(owners)]
        code = "import sys; sys.modules.update(dict.fromkeys({}))\nfrom deploykit.cli import app\napp({})"
        done = subprocess.run(
            [sys.executable, "-c", code.format(modules, command.split())],
            env={**os.environ, "DEPLOYKIT_CACHE": str(tmp_path)}, capture_output=True, text=True, check=False,
        )  # fmt: skip

        assert {"papermill", "timm", "pyarrow"} <= set(modules)
        assert (done.returncode, bool(done.stdout)) == (0, True), done.stderr

    def test_alone_it_shows_its_help(self) -> None:
        """No command is no mistake: the help, on stdout."""
        assert deploykit().stdout == deploykit("--help").stdout
        assert deploykit().exit_code == 0

    def test_it_says_its_version(self) -> None:
        """`--version` is one line."""
        import deploykit as package

        assert deploykit("--version").stdout == f"deploykit {package.__version__}\n"

    def test_without_a_checkout_there_is_no_notebook(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Status 3, and where notebooks are."""
        monkeypatch.setenv("DEPLOYKIT_HOME", str(tmp_path))
        for command in (("notebooks", "list"), ("notebooks", "run", "00")):
            result = deploykit(*command)

            assert result.exit_code == Status.UNABLE
            assert "come with a checkout of the repository" in result.stderr
