"""The command trains, writes checkpoints that load, goes on after a stop, and answers mistakes in one line."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from deploykit.cli import app
from deploykit.models import load_checkpoint


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
    return ["train", "8", "--dataset", str(pictures), "--out", str(out), "--batch-size", "16", *more]


class TestTrain:
    def test_it_writes_a_checkpoint_with_a_card_that_reproduces_it(self, pictures: Path, tmp_path: Path) -> None:
        """Weights load, the log has a row an epoch, the card names command and machine and no path of it."""
        options = arguments(pictures, tmp_path / "net", "--epochs", "3", "--split", "train+val")
        command = [sys.executable, "-m", "deploykit.cli", *options]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        card = (tmp_path / "net" / "README.md").read_text()

        assert load_checkpoint(tmp_path / "net").config.classes == 2
        assert "100.00% of 16 test images" in done.stdout
        assert "trained on train+val (80 images)" in card
        assert "$ deploykit train 8 --dataset pictures" in card.replace(pictures.name, "pictures")
        assert str(pictures.parent) not in card
        assert len((tmp_path / "net" / "training-log.csv").read_text().splitlines()) == 1 + 3
        assert not (tmp_path / "net" / "training-state.pt").exists()

    def test_a_killed_training_goes_on_and_ends_with_the_weights_of_an_unbroken_one(
        self, pictures: Path, tmp_path: Path
    ) -> None:
        """Kill -9 once the first state is on disk; the second run finishes from there."""
        options = ("--epochs", "6", "--precision", "fp32")
        whole = CliRunner().invoke(app, arguments(pictures, tmp_path / "whole", *options))
        command = [sys.executable, "-m", "deploykit.cli", *arguments(pictures, tmp_path / "killed", *options)]
        state = tmp_path / "killed" / "training-state.pt"
        with subprocess.Popen(command) as first:
            while not state.exists() and first.poll() is None:
                time.sleep(0.005)
            os.kill(first.pid, 9)
        again = CliRunner().invoke(app, arguments(pictures, tmp_path / "killed", *options))

        assert (whole.exit_code, first.returncode, again.exit_code) == (0, -9, 0)
        weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "killed")]
        assert weights[0] == weights[1]

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            (["--split", "test"], "split 'test'; use sgd or muon, and train or train+val"),
            (["--schedule", "steps"], "schedule 'steps' is unknown; use one of cosine, one-cycle"),
            (["--precision", "fp16"], "precision 'fp16' needs a CUDA device"),
        ],
    )
    def test_a_mistake_gets_one_line_and_status_two(
        self, pictures: Path, tmp_path: Path, wrong: list[str], message: str
    ) -> None:
        """No traceback for a user's mistake."""
        result = CliRunner().invoke(app, arguments(pictures, tmp_path / "net", *wrong))

        assert result.exit_code == 2
        assert message in result.stderr
        assert "Traceback" not in result.output

    def test_a_depth_outside_the_family_is_answered(self, pictures: Path) -> None:
        """The reader sees the depths there are."""
        result = CliRunner().invoke(app, ["train", "21", "--dataset", str(pictures)])

        assert (result.exit_code, "use 6n + 2" in result.stderr) == (2, True)


def test_data_says_what_is_in_a_folder(pictures: Path) -> None:
    """Classes, splits and a fingerprint; the folder's name is the dataset's."""
    result = CliRunner().invoke(app, ["data", str(pictures)])

    assert result.exit_code == 0
    assert "2 classes: blue, red" in result.stdout
    assert "train 72, val 8, test 16 images" in result.stdout


def test_help_needs_no_heavy_package() -> None:
    """`deploykit --help` answers at once because it imports neither torch nor pandas nor matplotlib."""
    code = (
        "import sys; sys.argv = ['deploykit', '--help']\n"
        "from deploykit.cli import app\n"
        "try: app()\n"
        "except SystemExit: print({'torch', 'pandas', 'matplotlib', 'scipy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.splitlines()[-1] == "set()"
