"""`deploykit benchmark` takes checkpoints, files and functions, prints one table, and refuses mistakes before work."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import jsonschema
import pytest
import safetensors.torch
import torch
from onnx import TensorProto, helper, save
from pictures import write_picture
from torch import nn
from typer.testing import CliRunner, Result

from deploykit import models
from deploykit.benchmarking import Benchmark
from deploykit.cli import app
from deploykit.cli.contract import Status
from deploykit.contestants import Row

SCHEMA = json.loads((Path(__file__).parent / "schemas" / "benchmark.json").read_text(encoding="utf-8"))
CONVERT = (
    "weights are read from safetensors: write them with safetensors.torch.save_file(model.state_dict(), "
    "'weights.safetensors')"
)
CODE = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))

def broken():
    return nn.Linear(3)

def number():
    return 3

def leave():
    raise SystemExit(0)
"""


def deploykit(*arguments: object) -> Result:
    """Run the command in this process."""
    return CliRunner().invoke(app, ["benchmark", *map(str, arguments)], catch_exceptions=False)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write three classes of pictures of odd sizes."""
    root = tmp_path_factory.mktemp("trees")
    for number, name in enumerate(("ash", "beech", "elm")):
        for split, count in {"train": 12, "test": 5}.items():
            for index in range(count):
                write_picture(root / split / name / f"{index}.png", seed=50 * number + index, size=(40 + index, 33))
    return root


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """Write a reader's file; beside it lie weights of another network, and what torch.save writes."""
    (tmp_path / "my_model.py").write_text(CODE, encoding="utf-8")
    safetensors.torch.save_file({"bias": torch.zeros(3)}, tmp_path / "other.safetensors")
    torch.save({"bias": torch.zeros(3)}, tmp_path / "saved.pth")
    return tmp_path / "my_model.py"


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Measure nothing; returns the model and the options that were to be, once there were some."""
    asked: list[object] = []

    def benchmark(model: object, dataset: object, **options: object) -> Benchmark:
        asked.extend([model, dataset, options])
        failed = [Row("ONNX Runtime", "int8", status="it took more than 300 s"), Row("OpenVINO", "int8", status="no")]
        return Benchmark(tuple(failed), 0, 12, 1, 64)

    monkeypatch.setattr("deploykit.benchmarking.benchmark", benchmark)
    return asked


class TestTable:
    def test_a_function_of_the_readers_is_executed_and_measured(self, pictures: Path, code: Path) -> None:
        """It is said on stderr that it is; the table on stdout has a line per way to run it."""
        done = deploykit(f"{code}:build", "--data", pictures, "--batch", 4, "--seconds", 0.5)

        assert f"executing {code}, and build() in it" in done.stderr
        assert done.exit_code == Status.DONE
        assert done.stdout.count("  ok\n") == 7
        assert "15 test images, 33 training images to calibrate int8" in " ".join(done.stdout.split())

    def test_the_document_and_the_file_have_the_same_rows(self, pictures: Path, tmp_path: Path) -> None:
        """--json fits its schema; --out writes a CSV with the same columns; an ONNX file has no rows of PyTorch."""
        takes = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 32, 32])
        gives = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])
        nodes = [helper.make_node("GlobalAveragePool", ["x"], ["m"]), helper.make_node("Flatten", ["m"], ["y"])]
        graph = helper.make_graph(nodes, "g", [takes], [gives])
        save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "m.onnx")
        done = deploykit(tmp_path / "m.onnx", "--data", pictures, "--seconds", 0.5, "--json", "--out", tmp_path / "new")
        found = json.loads(done.stdout)
        jsonschema.validate(found, SCHEMA, cls=jsonschema.Draft202012Validator)
        with (tmp_path / "new" / "benchmark.csv").open(encoding="utf-8") as file:
            written = list(csv.DictReader(file))

        assert [row["runtime"] for row in found["rows"]] == ["ONNX Runtime"] * 2 + ["OpenVINO"] * 3
        assert [list(row) for row in written] == [list(row) for row in found["rows"]]
        assert "quantized no layer" in found["rows"][1]["status"]

    def test_where_every_row_fails_the_check_failed(self, measured: list[object], code: Path) -> None:
        """Status 1, and each reason on a line of its own."""
        done = deploykit(f"{code}:build", "--data", "shapes32")

        assert done.exit_code == Status.FAILED_CHECK
        assert "ONNX Runtime int8  it took more than 300 s\nOpenVINO int8      no\n" in done.stdout


class TestModels:
    def test_a_name_is_the_checkpoint_for_the_data(self, measured: list[object]) -> None:
        """resnet8 is the one trained on what it is measured on; options arrive under their names."""
        deploykit("resnet8", "--data", "shapes32", "--images", 7, "--seconds", 3, "--batch", 5, "--compile")
        expected = models.load_pretrained("resnet8", "shapes32")

        assert measured[0].state_dict()["fc.weight"].equal(expected.state_dict()["fc.weight"])
        assert {**measured[2], "report": None} == {
            "batch": 5, "test_images": 7, "budget_s": 3, "compiled": True, "report": None,
        }  # fmt: skip

    def test_a_checkpoint_folder_must_tell_the_same_classes_apart(self, measured: list[object], pictures: Path) -> None:
        """Ten are none of three; nothing is measured."""
        folder = Path(__file__).parents[1] / "data" / "checkpoints" / "resnet8-shapes32"
        done = deploykit(folder, "--data", pictures)

        assert (done.exit_code, measured) == (Status.USAGE, [])
        assert "resnet8-shapes32 tells 10 classes apart and 3 are needed" in done.stderr

    def test_weights_go_into_what_the_function_returns(
        self, measured: list[object], code: Path, tmp_path: Path
    ) -> None:
        """From a safetensors file."""
        network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Identity(), nn.Identity(), nn.Linear(8, 3))
        nn.init.constant_(network[4].bias, 5)
        safetensors.torch.save_file(network.state_dict(), tmp_path / "w.safetensors")
        deploykit(f"{code}:build", "--weights", tmp_path / "w.safetensors", "--data", "shapes32")

        assert measured[0][4].bias.equal(torch.full((3,), 5.0))

    def test_images_of_a_folder_are_brought_to_a_size(self, measured: list[object], code: Path, pictures: Path) -> None:
        """That a model asks for; which, and by what they are normalised, is said on stderr."""
        done = deploykit(f"{code}:build", "--data", pictures, "--size", 48)

        assert measured[1].test.images.shape == (15, 48, 48, 3)
        assert (
            f"{pictures.name}: images cropped to their central square, scaled to 48x48 pixels (--size), and normalised "
            "by the folder's own mean and standard deviation\n"
        ) in done.stderr

    def test_of_the_courses_data_no_size_is_told(self, measured: list[object]) -> None:
        """They are as they are."""
        assert "scaled to" not in deploykit("resnet8", "--data", "shapes32").stderr


class TestMistakes:
    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["no_such.onnx"], "there is no file no_such.onnx; check the path"),
            (["no_such.py:build"], "there is no file no_such.py; check the path"),
            (["resnet8", "--weights", "w.safetensors"], "--weights is for FILE.py:FUNCTION; other models bring"),
            (["resnet21"], "no checkpoint 'resnet21-shapes32' in"),
            (["{code}:broken"], "my_model.py:broken failed with TypeError: "),
            (["{code}:leave"], "my_model.py:leave failed with SystemExit: 0"),
            (["{code}:nothing"], "my_model.py:nothing failed with AttributeError: "),
            (["{code}:number"], "my_model.py:number returned int; it has to return a torch module"),
            (
                ["{code}:build", "--weights", "{folder}/other.safetensors"],
                "other.safetensors does not hold the weights of Sequential: ",
            ),
            (["{code}:build"], "Sequential tells 3 classes apart, and the data has 10; give the data that it is for"),
            (["resnet8", "--batch", "0"], "invalid value for '--batch': "),
            (["{code}"], "my_model.py:build for build() in it"),
            (["{code}:"], "my_model.py: does not say which function returns the module; write "),
            (
                ["{folder}/other.safetensors"],
                "other.safetensors is no model; give a network of the course (resnet20), ",
            ),
            (
                ["{folder}/saved.pth"],
                f"saved.pth is a file of torch.save, and deploykit loads no pickle; {CONVERT}, and",
            ),
            (["nowhere.pt"], f"nowhere.pt is a file of torch.save, and deploykit loads no pickle; {CONVERT}, and give"),
        ],
    )
    def test_a_wrong_command_line_gets_one_line_and_status_two(
        self, code: Path, arguments: list[str], words: str
    ) -> None:
        """What is wrong and what to do, nothing on stdout."""
        done = deploykit(
            *(argument.format(code=code, folder=code.parent) for argument in arguments), "--data", "shapes32"
        )  # fmt: skip

        assert (done.exit_code, done.stdout) == (Status.USAGE, "")
        assert words in done.stderr.splitlines()[-1]

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["resnet21"], r"no checkpoint 'resnet21-cifar10' in .*; did you mean 'resnet20'\?"),
            (["resnet21", "--data", "cifar10"], r"no checkpoint 'resnet21-cifar10' in .*; did you mean 'resnet20'\?"),
            (["resnet56", "--data", "shapes32"], r"no checkpoint 'resnet56-shapes32' in .*; train it with: deploykit "),
            (["my/resnet8"], r"there is no checkpoint folder my/resnet8; check the path$"),
            (
                ["{folder}"],
                r"no config\.json in .*; a checkpoint is a folder with config\.json and model\.safetensors$",
            ),
            (["{code}:build", "--weights", "{folder}/saved.pth"], r"saved\.pth is no whole .*; " + re.escape(CONVERT)),
            (["resnet8", "--data", "{folder}"], r"train is not a folder; a dataset is a folder with train/<class>/"),
        ],
    )
    def test_a_mistyped_model_is_refused_before_data_are_fetched(
        self, code: Path, arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whatever --data is; and the reader's file is not executed either."""
        monkeypatch.delenv("DEPLOYKIT_DATA", raising=False)
        monkeypatch.setattr("deploykit.data.load_dataset", lambda *_, **__: pytest.fail("data were loaded"))
        done = deploykit(*(argument.format(code=code, folder=code.parent) for argument in arguments))

        assert (done.exit_code, done.stdout) == (Status.USAGE, "")
        assert re.search(words, done.stderr)
        assert "executing" not in done.stderr

    def test_a_folder_that_cannot_be_is_refused_before_anything_is_measured(
        self, measured: list[object], tmp_path: Path
    ) -> None:
        """Not after the minutes that it takes."""
        (tmp_path / "taken").write_text("a file")
        done = deploykit("resnet8", "--data", "shapes32", "--out", tmp_path / "taken")

        assert (done.exit_code, done.stdout) == (Status.USAGE, "")
        assert "taken" in done.stderr
        assert not measured

    def test_a_damaged_file_is_refused(self, tmp_path: Path) -> None:
        """In words, with its name, from the process that opened it."""
        (tmp_path / "cut.onnx").write_bytes(b"\x08\x0a\x3a\xff\xff")
        done = deploykit(tmp_path / "cut.onnx", "--data", "shapes32")

        assert (done.exit_code, done.stdout) == (Status.USAGE, "")
        assert "cut.onnx cannot be read; is it whole, and ONNX?" in done.stderr.splitlines()[-1]
