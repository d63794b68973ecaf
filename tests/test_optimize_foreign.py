"""Networks that this project did not write, on pictures of three classes and odd sizes, by `deploykit optimize`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pictures import write_picture
from typer.testing import CliRunner

pytest.importorskip("onnxscript")
pytest.importorskip("nncf")

from deploykit.cli import app
from deploykit.optimize import teach

CODE = """
import torch, torchvision

def resnet18():
    torch.manual_seed(0)
    return torchvision.models.resnet18(num_classes=3)

def mobilenet():
    torch.manual_seed(0)
    return torchvision.models.mobilenet_v3_small(num_classes=3)
"""


@pytest.fixture
def pictures(tmp_path):
    """Write three classes of pictures of odd sizes."""
    for number, name in enumerate(("ash", "beech", "elm")):
        for split, count in {"train": 14, "test": 5}.items():
            for index in range(count):
                place = tmp_path / "trees" / split / name / f"{index}.png"
                write_picture(place, seed=50 * number + index, size=(40 + index, 33))
    return tmp_path / "trees"


@pytest.mark.parametrize(
    "case", [("resnet18", "OpenVINO int8", "fewer blocks"), ("mobilenet", "ONNX Runtime float32", "fewer channels")]
)
def test_a_foreign_network_is_pruned_taught_and_run(pictures, tmp_path, monkeypatch, case):
    """Blocks of one go, channels of the other, those of squeeze-and-excitation included."""
    function, form, smaller = case
    monkeypatch.setattr("deploykit.optimize.plan.MOST_TIMING_S", 1)
    for name in ("MOST_EPOCHS", "ENOUGH_STEPS", "LEAST_STEPS"):
        monkeypatch.setattr(teach, name, 1)
    Path(tmp_path / "my_model.py").write_text(CODE, encoding="utf-8")
    command = [
        "optimize",
        f"{tmp_path}/my_model.py:{function}",
        "--data",
        str(pictures),
        "--out",
        str(tmp_path / "new"),
    ]
    command += ["--budget", "30min", "--only", form, "--only", smaller, "--json"]
    done = CliRunner().invoke(app, command, catch_exceptions=False)

    assert [(row["network"], row["status"]) for row in json.loads(done.stdout)["rows"]] == [
        ("as given", "ok"), ("as given", "ok"), (smaller, "ok"),
    ]  # fmt: skip
