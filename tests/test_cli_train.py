"""`deploykit train` writes checkpoints that load, goes on after a stop, and refuses mistakes before any work."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args, get_type_hints

import jsonschema
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from deploykit import models, notebook, training
from deploykit.cli import app, notebooks
from deploykit.cli import train as command
from deploykit.cli.contract import Status
from deploykit.optimizers import SCHEDULES

SCHEMA = Path(__file__).parent / "schemas" / "train.json"
PROGRAM = [sys.executable, "-m", "deploykit.cli"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 2 classes x (40 + 8) coloured squares."""
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for split, count in (("train", 40), ("test", 8)):
        for label, name in enumerate(("blue", "red")):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                image = generator.integers(0, 90, (32, 32, 3), dtype=np.uint8)
                image[..., 2 - 2 * label] += 150
                Image.fromarray(image).save(folder / split / name / f"{number}.png")
    return folder


def arguments(pictures: Path, out: Path, *more: str) -> list[str]:
    """Return a short training's command line."""
    return ["train", "resnet8", "--dataset", str(pictures), f"--out={out}", "--batch-size", "16", *more]


def train(pictures: Path, out: Path, *more: str) -> Result:
    """Train in this process."""
    return CliRunner().invoke(app, arguments(pictures, out, *more), catch_exceptions=False)


def stop(process: subprocess.Popen, state: Path, number: int) -> None:
    """Send a signal once the first state is on disk."""
    while not state.exists() and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(number)


class TestCheckpoint:
    def test_it_comes_with_a_card_that_reproduces_it(self, pictures: Path, tmp_path: Path) -> None:
        """Weights load, the log has a row an epoch, the card names command and machine and no path of it."""
        done = train(pictures, tmp_path / "net", "--epochs", "3", "--split", "train+val", "--precision", "fp32")
        card = (tmp_path / "net" / "README.md").read_text(encoding="utf-8")

        assert models.load_checkpoint(tmp_path / "net").config.classes == 2
        assert "100.00% of 16 test images" in done.stdout
        assert "trained on train+val (80 images)" in card
        assert f"$ deploykit train resnet8 --dataset {pictures.name} --out=net --batch-size 16 --epochs 3" in card
        assert "precision fp32" in card
        assert str(tmp_path) not in card
        assert len((tmp_path / "net" / "training-log.csv").read_text(encoding="utf-8").splitlines()) == 1 + 3
        assert not (tmp_path / "net" / "training-state.pt").exists()

    def test_its_document_says_what_the_card_says(self, pictures: Path, tmp_path: Path) -> None:
        """--json is one document that fits the schema; "auto" is resolved, and the card's command has no --json."""
        found = json.loads(train(pictures, tmp_path / "net", "--epochs", "1", "--json").stdout)
        jsonschema.validate(found, json.loads(SCHEMA.read_text(encoding="utf-8")))

        assert (found["judged_on"], found["judged_images"], found["trained_images"]) == ("val", 8, 72)
        assert found["recipe"]["precision"] in {"fp32", "bf16"}
        assert found["recipe"]["momentum"] == 0.9
        assert "--json" not in (tmp_path / "net" / "README.md").read_text(encoding="utf-8")

    def test_two_processes_write_one(self, pictures: Path, tmp_path: Path) -> None:
        """Under torchrun rank 0 alone prints and writes, and the card names both processes and how to start them."""
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        options = arguments(pictures, tmp_path / "net", "--epochs", "1")
        done = subprocess.run([*torchrun, "-m", "deploykit.cli", *options], capture_output=True, text=True, check=True)
        card = (tmp_path / "net" / "README.md").read_text(encoding="utf-8")

        assert done.stdout.count("written to") == 1
        assert "processes 2" in card
        assert "$ torchrun --nproc-per-node 2 -m deploykit.cli train resnet8" in card

    def test_a_trained_network_is_replaced_only_when_told_to(self, pictures: Path, tmp_path: Path) -> None:
        """Without --force the folder stays as it is; --force is no part of the command that the card names."""
        kept = tmp_path / "net" / "model.safetensors"
        kept.parent.mkdir()
        kept.write_bytes(b"weeks of work")
        refused = train(pictures, tmp_path / "net", "--epochs", "1")
        before = kept.read_bytes()
        forced = train(pictures, tmp_path / "net", "--epochs", "1", "--force")

        assert (refused.exit_code, before) == (Status.USAGE, b"weeks of work")
        assert "net holds a trained network; choose another --out, or replace it with --force" in refused.stderr
        assert forced.exit_code == Status.DONE
        assert "--force" not in (tmp_path / "net" / "README.md").read_text(encoding="utf-8")


class TestStops:
    def test_a_killed_training_ends_with_the_weights_of_an_unbroken_one(self, pictures: Path, tmp_path: Path) -> None:
        """Kill -9, and then Ctrl-C, once a state is on disk; the same command finishes from there."""
        options = ("--epochs", "6", "--precision", "fp32")
        whole = train(pictures, tmp_path / "whole", *options)
        state = tmp_path / "broken" / "training-state.pt"
        started = [*PROGRAM, *arguments(pictures, tmp_path / "broken", *options)]
        with subprocess.Popen(started) as first:
            stop(first, state, signal.SIGKILL)
        again = train(pictures, tmp_path / "broken", *options)

        assert (whole.exit_code, first.returncode, again.exit_code) == (0, -9, 0)
        weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "broken")]
        assert weights[0] == weights[1]

    def test_ctrl_c_gets_one_line(self, pictures: Path, tmp_path: Path) -> None:
        """Status 130; the line says at which step and how to go on; the state is kept."""
        state = tmp_path / "net" / "training-state.pt"
        started = [*PROGRAM, *arguments(pictures, tmp_path / "net", "--epochs", "2000")]
        # A background job of a shell, such as a CI run may be, ignores Ctrl-C and passes that on to what it starts.
        handler = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            process = subprocess.Popen(started, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        finally:
            signal.signal(signal.SIGINT, handler)
        stop(process, state, signal.SIGINT)
        stdout, stderr = process.communicate()

        assert (process.returncode, stdout) == (Status.STOPPED, "")
        assert stderr.startswith("deploykit: stopped at step ")
        assert stderr.endswith("; the same command goes on from there\n")
        assert state.exists()

    def test_a_training_that_diverges_has_failed(self, pictures: Path, tmp_path: Path) -> None:
        """Status 1, and what to change."""
        result = train(pictures, tmp_path / "net", "--epochs", "50", "--peak-lr", "1e30", "--warmup", "0")

        assert (result.exit_code, result.stdout) == (Status.FAILED_CHECK, "")
        assert "deploykit: the loss is " in result.stderr
        assert "lower the learning rate" in result.stderr


class TestMistakes:
    @pytest.mark.parametrize(
        ("wrong", "status", "message"),
        [
            (["--split", "test"], Status.USAGE, "'test' is not one of 'train', 'train+val'"),
            (["--optimizer", "adam"], Status.USAGE, "'adam' is not one of 'sgd', 'adamw', 'muon'"),
            (["--warmup", "1"], Status.USAGE, "--warmup is 1.0; it is a share of the training, below 1"),
            (
                ["--ema-decay", "1"],
                Status.USAGE,
                "--ema-decay is 1: the average would stay at the weights of the start",
            ),
            (["--precision", "fp16"], Status.UNABLE, "precision fp16 needs a GPU"),
        ],
    )
    def test_they_are_refused_before_any_work(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: list[str], status: Status, message: str
    ) -> None:
        """No image is loaded and no folder made for an option that cannot be meant."""
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
        result = train(Path("/nowhere"), tmp_path / "net", *wrong)

        assert (result.exit_code, result.stdout, (tmp_path / "net").exists()) == (status, "", False)
        assert message in result.stderr

    def test_a_batch_larger_than_the_data_is_refused(self, pictures: Path, tmp_path: Path) -> None:
        """The line names the option, the split and what it has."""
        result = train(pictures, tmp_path / "net", "--batch-size", "73")

        assert (result.exit_code, (tmp_path / "net").exists()) == (Status.USAGE, False)
        assert "--batch-size is 73, and train has 72 images; choose at most that" in result.stderr

    def test_a_folder_that_cannot_be_written_is_found_before_training(
        self, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Not after the hours that a training takes."""
        (tmp_path / "net").write_text("a file")
        monkeypatch.setattr(training, "fit", None)
        result = train(pictures, tmp_path / "net")

        assert result.exit_code == Status.USAGE
        assert result.stderr == f"deploykit: File exists: {tmp_path / 'net'}; choose another name\n"

    def test_muon_without_its_package_names_the_extra(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """Status 3, and what to install, before any work."""
        monkeypatch.setitem(sys.modules, "timm.optim", None)
        result = train(Path("/nowhere"), tmp_path / "net", "--optimizer", "muon")

        assert result.exit_code == Status.UNABLE
        assert "pip install 'deploykit[training]'" in result.stderr


def choices(function: object, name: str) -> set[str]:
    """Return what an option's annotation lets one choose from."""
    return set(get_args(get_type_hints(function)[name]))


def test_the_choices_of_the_help_are_those_of_the_library() -> None:
    """--help lists them without importing torch, so they are written twice; here they meet."""
    assert choices(command.train, "model") == set(models.ARCHITECTURES)
    assert choices(command.train, "optimizer") == set(training.OPTIMIZERS)
    assert choices(command.train, "schedule") == set(SCHEDULES)
    assert choices(command.train, "precision") == {"auto", *training.DTYPES}
    assert choices(notebooks.run, "budget") == set(notebook.BUDGETS)
    assert choices(notebooks.run, "device") == set(notebook.DEVICES)


@pytest.mark.parametrize(
    ("given", "shown"),
    [("--out=/home/me/net", "--out=net"), ("/home/me/pictures", "pictures"), ("--lr=0.1", "--lr=0.1"), ("a/b", "a/b")],
)
def test_no_path_of_this_machine_reaches_the_card(given: str, shown: str) -> None:
    """An absolute path is cut to its last part, also behind an equals sign."""
    assert command._portable(given) == shown
