"""`deploykit optimize` plans, tries, chooses, reports and resumes; the reader's files stay as they are."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import jsonschema
import pytest
import safetensors.torch
import torch
from pictures import write_picture
from PIL import Image
from torch import nn
from typer.testing import CliRunner, Result

pytest.importorskip("onnxscript")
pytest.importorskip("nncf")

from deploykit.cli import app
from deploykit.cli.contract import Status
from deploykit.comparison import Ratio
from deploykit.evaluation import Accuracy
from deploykit.optimize import Optimized
from deploykit.optimize.report import Told, page, write_report
from deploykit.rows import Row
from deploykit.significance import PairedDifference

SCHEMA = json.loads((Path(__file__).parent / "schemas" / "optimize.json").read_text(encoding="utf-8"))
ONE_FORM = ("--only", "ONNX Runtime float32")
CODE = """
from torch import nn

def build():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
"""


def deploykit(*arguments: object) -> Result:
    """Run the command in this process."""
    return CliRunner().invoke(app, ["optimize", *map(str, arguments)], catch_exceptions=False)


def document(result: Result) -> dict:
    """Return the document on stdout, which fits its schema."""
    found = json.loads(result.stdout)
    jsonschema.validate(found, SCHEMA, cls=jsonschema.Draft202012Validator)
    return found


def hashes(*places: Path) -> dict[str, str]:
    """Return the content of every file."""
    files = [file for place in places for file in ([place] if place.is_file() else place.rglob("*")) if file.is_file()]
    return {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.fixture(autouse=True)
def in_a_hurry(monkeypatch):
    """Let timing be as short as it can, however slow this machine is."""
    monkeypatch.setattr("deploykit.optimize.plan.MOST_TIMING_S", 1)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Write three classes of pictures of odd sizes."""
    root = tmp_path_factory.mktemp("trees")
    for number, name in enumerate(("ash", "beech", "elm")):
        for split, count in {"train": 14, "test": 5}.items():
            for index in range(count):
                write_picture(root / split / name / f"{index}.png", seed=50 * number + index, size=(40 + index, 33))
    return root


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    """Write what a reader brings: a file with functions, and weights for one of them."""
    folder = tmp_path_factory.mktemp("mine")
    (folder / "my_model.py").write_text(CODE, encoding="utf-8")
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Identity(), nn.Identity(), nn.Linear(8, 3))
    safetensors.torch.save_file(network.state_dict(), folder / "w.safetensors")
    return folder


@pytest.fixture(scope="module")
def done(mine, pictures, tmp_path_factory):
    """Optimise a small model of the reader's; returns the outcome, its folder, and what the inputs were before."""
    out, before = tmp_path_factory.mktemp("out") / "new", hashes(mine, pictures)
    arguments = [f"{mine}/my_model.py:build", "--weights", mine / "w.safetensors", "--data", pictures, "--out", out]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("deploykit.optimize.plan.MOST_TIMING_S", 1)
        result = deploykit(*arguments, *ONE_FORM, "--max-drop", 50)
    return result, out, before


class TestRun:
    def test_the_readers_files_are_only_read(self, done, mine, pictures):
        """Model, weights and pictures; and it is said that the file is executed."""
        result, _, before = done
        assert hashes(mine, pictures) == before
        assert f"executing {mine}/my_model.py, and build() in it" in result.stderr

    def test_the_text_has_the_table_and_the_way_on(self, done):
        """What was chosen, what it is worth on test, how to run it, and where the report is."""
        result, out, _ = done

        assert result.exit_code == Status.DONE
        assert re.search(r"^ONNX Runtime float32 .* chosen$", result.stdout, re.MULTILINE)
        assert "15, p = 1\n" in result.stdout
        assert f"Run it:  python {out}/winner/run.py picture.png\nReport:  {out}/report.html\n" in result.stdout

    def test_the_script_runs_without_deploykit(self, done, mine, pictures, tmp_path):
        """And gives the classes of the module with those weights, for pictures of the sizes that they have."""
        _, out, _ = done
        (tmp_path / "deploykit.py").write_text("raise ImportError")
        files = sorted(pictures.glob("test/*/0.png"))
        told = subprocess.run(
            [sys.executable, out / "winner" / "run.py", *files], capture_output=True, text=True, check=True,
            env={**os.environ, "PYTHONPATH": str(tmp_path)},
        ).stdout  # fmt: skip

        assert [line.split()[0] for line in told.splitlines()] == [str(file) for file in files]
        assert {line.split()[1] for line in told.splitlines()} <= {"ash", "beech", "elm"}

    def test_the_table_and_the_page_have_the_same_numbers(self, done):
        """Each cell of table.csv that the page shows, rounded as there."""
        _, out, _ = done
        text = (out / "report.html").read_text(encoding="utf-8")
        with (out / "table.csv").open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))

        assert [row["verdict"] for row in rows] == ["the network as it is", "chosen"]
        for row in rows:
            assert f">{float(row['accuracy']):.1%}<" in text
            assert f">{float(row['latency_ms']):.3g}<" in text
            assert f">{float(row['size_mib']):.2f}<" in text

    def test_the_same_command_again_is_quick_and_a_document(self, done, mine, pictures, monkeypatch):
        """Nothing is made again; with --json stdout is one document that fits its schema."""
        _, out, _ = done
        monkeypatch.setattr("deploykit.contestants.tried_apart", lambda *_: pytest.fail("made again"))
        again = deploykit(
            f"{mine}/my_model.py:build", "--weights", mine / "w.safetensors", "--data", pictures, "--out", out,
            *ONE_FORM, "--max-drop", 50, "--json",
        )  # fmt: skip
        found = document(again)

        assert (found["winner"], found["test"]["images"]) == ("ONNX Runtime float32", 15)
        assert found["profile"]["status"] == "ok"
        assert [row["network"] for row in found["rows"]] == ["as given", "as given"]

    def test_a_course_network_is_told_to_know_val(self, tmp_path, monkeypatch):
        """Its card says that it was trained on train and val; the note stands in page and document."""
        monkeypatch.setattr("deploykit.optimize.optimize", lambda *_, **__: outcome(tmp_path))
        found = document(deploykit("resnet8", "--data", "shapes32", "--out", tmp_path, "--json"))

        assert found["notes"][0].startswith("This network was trained on the validation images, too")
        assert "This network was trained on the validation images, too" in (tmp_path / "report.html").read_text()

    def test_stopped_it_says_how_to_go_on(self, tmp_path, monkeypatch):
        """Status 130, one line, nothing on stdout."""

        def stop(*_: object, **__: object) -> None:
            raise KeyboardInterrupt("stopped at step 7 of epoch 1; run again with training-state.pt to go on")

        monkeypatch.setattr("deploykit.optimize.optimize", stop)
        result = deploykit("resnet8", "--data", "shapes32", "--out", tmp_path)

        assert (result.exit_code, result.stdout) == (Status.STOPPED, "")
        assert result.stderr.endswith("stopped at step 7 of epoch 1; the same command goes on from there\n")

    def test_where_every_step_fails_the_check_failed(self, tmp_path, monkeypatch):
        """Status 1; the reasons are listed, and the report says that the network stays as it is."""
        monkeypatch.setattr("deploykit.optimize.optimize", lambda *_, **__: outcome(tmp_path, status="no kernel"))
        result = deploykit("resnet8", "--data", "shapes32", "--out", tmp_path)

        assert result.exit_code == Status.FAILED_CHECK
        assert "Not measured:\nOpenVINO int8  no kernel\n" in result.stdout
        assert "no step helped: the network stays as it is" in result.stdout
        assert "<strong>No step helped.</strong>" in (tmp_path / "report.html").read_text(encoding="utf-8")


class TestDryRun:
    def test_the_plan_is_printed_and_nothing_is_touched(self, mine, tmp_path, monkeypatch):
        """No data, no model, no folder; each step with its share and its reason."""
        monkeypatch.setattr("deploykit.data.load_dataset", lambda *_, **__: pytest.fail("data were loaded"))
        monkeypatch.setattr("deploykit.cli.models.module_of", lambda *_: pytest.fail("the file was executed"))
        result = deploykit(f"{mine}/my_model.py:build", "--budget", "10min", "--out", tmp_path / "new", "--dry-run")

        assert (result.exit_code, (tmp_path / "new").exists()) == (Status.DONE, False)
        assert re.search(
            r"^fewer channels +about [\d.]+ min +halve the multiply-accumulates", result.stdout, re.MULTILINE
        )
        assert "10 min in all, about." in result.stdout
        assert "Not checked: nothing was executed and no image was opened" in " ".join(result.stdout.split())

    def test_the_document_is_the_same_without_results(self, mine):
        """It fits the schema; what was not done is null."""
        found = document(deploykit(f"{mine}/my_model.py:build", "--skip", "OpenVINO int8", "--dry-run", "--json"))

        assert [step["step"] for step in found["plan"]][4:7] == ["ONNX Runtime int8", "fewer blocks", "fewer channels"]
        assert (found["rows"], found["winner"], found["test"]) == (None, None, None)
        assert found["notes"][0].startswith("Not checked: nothing was executed")

    def test_another_machines_plan_has_its_runtimes(self, mine):
        """ARM has no OpenVINO here."""
        found = document(deploykit(f"{mine}/my_model.py:build", "--target", "arm", "--dry-run", "--json"))

        assert [step["step"] for step in found["plan"]][1:3] == ["ONNX Runtime float32", "ONNX Runtime int8"]

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["resnet21"], "did you mean 'resnet20'?"),
            (["my/resnet8"], "there is no checkpoint folder my/resnet8; check the path"),
            (["{code}/my_model.py"], "my_model.py:build for build() in it"),
            (["{code}/my_model.py:build", "--weights", "{code}/w.pth"], "w.pth is no whole safetensors file ("),
            (
                ["resnet8", "--data", "{code}/nowhere"],
                "nowhere is not a folder; a dataset is a folder with train/<clas",
            ),
            (["resnet8"], "DEPLOYKIT_DATA names a folder that is no dataset: "),
            (["resnet8", "--data", "shapes32", "--out", "{code}"], " holds something else (my_model.py); give a new "),
        ],
    )
    def test_what_the_real_run_would_refuse_at_once_is_refused(self, mine, arguments, words, monkeypatch, request):
        """One line, no plan, and nothing is loaded or written for it."""
        if arguments == ["resnet8"]:
            monkeypatch.setenv("DEPLOYKIT_DATA", str(mine))
        else:
            monkeypatch.delenv("DEPLOYKIT_DATA", raising=False)
        monkeypatch.setattr("deploykit.data.load_dataset", lambda *_, **__: pytest.fail("data were loaded"))
        torch.save({}, mine / "w.pth")
        request.addfinalizer((mine / "w.pth").unlink)
        before = hashes(mine)
        result = deploykit(*(argument.format(code=mine) for argument in arguments), "--dry-run")

        assert (result.exit_code, result.stdout) == (Status.USAGE, "")
        assert words in result.stderr.splitlines()[-1]
        assert hashes(mine) == before


class TestMistakes:
    @pytest.mark.parametrize(
        ("arguments", "status", "words"),
        [
            (["no_such.py:build"], 2, "there is no file no_such.py; check the path"),
            (["net.onnx"], 2, "there is no file net.onnx"),
            (["{code}/w.onnx"], 2, "optimize takes a torch module; of an ONNX file deploykit benchmark measures all"),
            (["resnet8", "--budget", "10"], 2, "the budget is '10'; write a time above 0 with its unit: 90s, 10min"),
            (["resnet8", "--only", "prune"], 2, "there is no step 'prune'; there are 'ONNX Runtime float32', "),
            (["resnet8", "--max-drop", "-1"], 2, "invalid value for '--max-drop'"),
            (["resnet8", "--target", "arm"], 3, "arm cannot be measured on this machine, which is x86-vnni; run the"),
            (["resnet8", "--out", "{code}"], 2, " holds something else (my_model.py); give a new folder, or an ear"),
        ],
    )
    def test_a_wrong_command_line_gets_one_line(self, mine, arguments, status, words, monkeypatch):
        """What is wrong and what to do, nothing on stdout, before any work."""
        (mine / "w.onnx").touch()
        monkeypatch.setattr("deploykit.cli.optimize._processor", lambda: "x86-vnni")
        result = deploykit(*(argument.format(code=mine) for argument in arguments), "--data", "shapes32")
        (mine / "w.onnx").unlink()

        assert (result.exit_code, result.stdout) == (status, "")
        assert words in result.stderr.splitlines()[-1]

    @pytest.mark.parametrize(("target", "notes"), [("x86", 3), ("x86-vnni", 2), ("auto", 2)])
    def test_any_x86_is_measured_with_what_this_one_has(self, tmp_path, monkeypatch, target, notes):
        """And it is said what is different where the instructions are missing."""
        monkeypatch.setattr("deploykit.cli.optimize._processor", lambda: "x86-vnni")
        monkeypatch.setattr("deploykit.optimize.optimize", lambda *_, **__: outcome(tmp_path))
        found = document(
            deploykit("resnet8", "--data", "shapes32", "--target", target, "--out", tmp_path, "--json")
        )  # fmt: skip

        assert (found["target"], len(found["notes"])) == ("x86-vnni", notes)


def outcome(folder: Path, *, status: str = "ok", classes: int = 10) -> Optimized:
    """Return what was found: int8 lost two images of two hundred and is four times as fast, or failed."""
    from deploykit.measurement import Conditions, Measurement
    from deploykit.optimize import plan_optimization

    right = torch.arange(200) % 10 > 0
    worse = right & (torch.arange(200) > 12)
    conditions = Conditions.here(batch=1, threads=1, device="cpu", warmup_calls=5)
    times = [Measurement("", (ms, ms, ms), conditions) for ms in (4.0, 1.0)]
    base = Row("PyTorch eager", "float32", accuracy=Accuracy(right, "val"), latency=times[0], size_mib=2.0)
    base.ratio = Ratio(1.0, 1.0, 1.0)
    other = Row("OpenVINO", "int8", status)
    if status == "ok":
        other = Row(
            "OpenVINO", "int8", accuracy=Accuracy(worse, "val"), latency=times[1], size_mib=0.5,
            difference=PairedDifference(-0.01, (-0.02, 0.0), 2, 0, 0.5, 200), ratio=Ratio(4.0, 3.9, 4.2),
        )  # fmt: skip
    after = Accuracy(worse if status == "ok" else right, "test")
    winner = other if status == "ok" else base
    return Optimized(
        plan_optimization(), (base, other), winner, Accuracy(right, "test"), after, 1.0, 1, classes,
        folder if winner is other else None, {},
    )  # fmt: skip


class Addresses(HTMLParser):
    """Collect what a page would fetch, and its pictures' alt texts."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.alts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what a tag refers to."""
        self.found += [value or "" for name, value in attrs if name in {"src", "href", "srcset", "action", "data"}]
        self.alts += [value or "" for name, value in attrs if tag == "img" and name == "alt"]


class TestPage:
    def test_nothing_is_fetched_and_the_picture_is_described(self, tmp_path):
        """The only address is the picture itself, as data; no style or script asks for more."""
        text = write_report(outcome(tmp_path), tmp_path, Told("m", "d", "c")).read_text(encoding="utf-8")
        parser = Addresses()
        parser.feed(text)

        assert [address[:22] for address in parser.found] == ["data:image/png;base64,"]
        assert parser.alts[0].endswith("Chosen: OpenVINO int8.")
        assert not re.search(r"https?:|url\(|@import|<script", text)

    def test_a_doubtful_choice_says_so(self, tmp_path):
        """One point is allowed, and the interval reaches two."""
        text = page(outcome(tmp_path), Told("m", "d", "c"), "alt", b"")

        assert "200 validation images are too few to be sure of the limit" in text
        assert "<strong>4.0x</strong> as fast (3.9 to 4.2)" in text

    def test_chance_is_told(self, tmp_path):
        """Nine of ten images right is more than chance among ten classes; among one, it would not be."""
        good, poor = (page(outcome(tmp_path, classes=n), Told("m", "d", "c"), "alt", b"") for n in (10, 1))

        assert "which may be chance: look at its weights" not in good
        assert "which may be chance: look at its weights, and whether it takes images normalised" in poor

    def test_names_are_text(self, tmp_path):
        """Of the model, the data and the command, which a reader may have from anywhere."""
        evil = "<img src=x onerror=alert(1)>"
        text = page(outcome(tmp_path), Told(evil, evil, evil, [evil]), evil, b"")

        assert evil not in text
        assert text.count("&lt;img src=x") == 6

    def test_a_picture_that_is_opened_is_a_png(self, tmp_path):
        """Beside the page, for a slide."""
        write_report(outcome(tmp_path), tmp_path, Told("m", "d", "c"))

        assert Image.open(tmp_path / "pareto.png").format == "PNG"
