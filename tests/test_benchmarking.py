"""One model in all runtimes: the figures are those of the model, and a row that fails stops no other."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torchvision
from onnx import TensorProto, helper, numpy_helper
from pictures import write_picture
from small_residual import Branching, SmallResidual, images
from torch import nn

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
pytest.importorskip("nncf")
pytest.importorskip("timm")

from deploykit import artifacts
from deploykit.artifacts import load_artifact, make_artifact, read_model
from deploykit.benchmarking import Benchmark, benchmark, opened_apart
from deploykit.contestants import FLOAT_ROWS, Row, Setting, rows_of_file
from deploykit.data import Batches, Dataset, Split, load_dataset
from deploykit.evaluation import evaluate
from deploykit.export import export_onnx
from deploykit.export.from_torch import is_converted
from deploykit.models import load_pretrained
from deploykit.quantization.onnx import quantize_onnx
from deploykit.runtimes import onnxruntime
from deploykit.significance import paired_difference

WAYS = [
    ("PyTorch eager", "float32"), ("PyTorch channels_last", "float32"), ("ONNX Runtime", "float32"),
    ("ONNX Runtime", "int8"), ("OpenVINO", "float32"), ("OpenVINO", "bfloat16"), ("OpenVINO", "int8"),
]  # fmt: skip
QUICK = {"batch": 8, "calibration_images": 8, "budget_s": 0.05}


def tiny_dataset(classes: int = 4, side: int = 8) -> Dataset:
    """Draw noise in four classes, 8x8 pixels: enough where accuracy does not matter."""
    draw = torch.Generator().manual_seed(0)

    def split(name: str) -> Split:
        pixels = torch.randint(0, 256, (40, side, side, 3), dtype=torch.uint8, generator=draw)
        return Split(name, pixels, torch.arange(40) % classes)

    parts = {name: split(name) for name in ("train", "val", "test")}
    names = tuple(map(str, range(classes)))
    return Dataset("noise", names, **parts, mean=(0.5,) * 3, std=(0.25,) * 3, fingerprint="", source="drawn here")


def small() -> nn.Module:
    """Build the smallest residual network."""
    torch.manual_seed(0)
    return SmallResidual().eval()


def saved(folder: Path, *nodes: onnx.NodeProto, batch: str | int = "N", constants: tuple = ()) -> Path:
    """Write an ONNX file from images [N, 3, 8, 8] to "logits" by hand."""
    takes = helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch, 3, 8, 8])
    gives = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, "classes"])
    graph = helper.make_graph(list(nodes), "by hand", [takes], [gives], list(constants))
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("my.domain", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), folder / "by-hand.onnx")
    return folder / "by-hand.onnx"


@pytest.fixture(scope="module")
def course() -> tuple[nn.Module, Dataset, Benchmark]:
    """Measure a trained network on 300 pictures."""
    model, dataset = load_pretrained("resnet8", "shapes32"), load_dataset("shapes32")
    return model, dataset, benchmark(model, dataset, test_images=300, calibration_images=64, batch=8, budget_s=1)


class TestTrainedNetwork:
    def test_every_way_has_figures(self, course):
        """One row per runtime and precision, in order, all of them complete but for the first one's difference."""
        table = course[2].table()

        assert list(zip(table["runtime"], table["precision"], strict=True)) == WAYS
        assert set(table["status"]) == {"ok"}
        assert table.iloc[1:].notna().all(axis=None)
        assert table.iloc[0].isna().sum() == 3

    def test_the_first_row_is_the_model_as_it_is(self, course):
        """Accuracy as evaluate finds it on the same test images; compared with itself it is as fast as it is."""
        model, dataset, found = course
        expected = evaluate(model, Batches(dataset.test.take(300), dataset, batch_size=100))

        assert found.rows[0].accuracy.correct.equal(expected.correct)
        assert (found.rows[0].ratio.value, found.test_images) == (1, 300)

    def test_float32_is_the_same_model_everywhere_and_int8_nearly(self, course):
        """Of 300 images float32 may change one, bfloat16 and int8 a few."""
        differing = {
            row.name: row.difference.discordant_a + row.difference.discordant_b
            for row in course[2].rows
            if row.difference
        }

        assert max(count for name, count in differing.items() if name.endswith("float32")) <= 1
        assert max(differing.values()) <= 18

    def test_int8_is_small(self, course):
        """Its file is a good part smaller, the graph that comes with the weights included, and OpenVINO's two are."""
        sizes = {(row.runtime, row.precision): row.size_mib for row in course[2].rows}

        assert sizes["ONNX Runtime", "int8"] < sizes["ONNX Runtime", "float32"] / 3
        assert sizes["OpenVINO", "int8"] < sizes["OpenVINO", "float32"] / 2
        assert 0.29 < sizes["PyTorch eager", "float32"] < sizes["OpenVINO", "float32"]

    def test_points_lost_are_positive_where_images_are(self):
        """Of four images one fewer is 25 points lost, and the interval lies about it."""
        before, after = torch.tensor([True, True, True, False]), torch.tensor([True, True, False, False])
        figures = Row("a", "b", difference=paired_difference(before, after)).figures()

        assert figures["points_lost"] == 25
        assert figures["points_lost_low"] < 25 < figures["points_lost_high"]


class TestArtifacts:
    def test_int8_computes_with_integers(self, tmp_path):
        """The file that the child writes is loaded with integer convolutions."""
        onnx.save(export_onnx(small(), images(2)), tmp_path / "model.onnx")
        np.save(tmp_path / "images.npy", images(16).numpy())
        places = {"artifact": str(tmp_path / "int8.onnx"), "calibration": str(tmp_path / "images.npy")}
        classes = make_artifact("ONNX Runtime", "int8", str(tmp_path / "model.onnx"), batches=[1, 3], **places)
        census = onnxruntime.kernels(load_artifact("ONNX Runtime", "int8", tmp_path / "int8.onnx"), images(3))

        assert classes == 4
        assert census.set_index("operator").loc["QLinearConv", "count"] == 3

    @pytest.mark.parametrize(
        ("os", "features", "expected"),
        [
            ("Linux, x86_64", ["avx512_vnni"], (TensorProto.UINT8, 127)),
            ("Linux, x86_64", ["avx2"], (TensorProto.UINT8, 64)),
            ("Linux, aarch64", ["asimddp"], (TensorProto.INT8, 127)),
        ],
    )
    def test_int8_suits_the_processor(self, tmp_path, monkeypatch, os, features, expected):
        """Weights of 7 bits where products of 8 overflow in pairs; signed activations on Arm."""
        monkeypatch.setattr(artifacts, "machine", lambda: {"gpu": None, "os": os, "features": features})
        onnx.save(export_onnx(small(), images(2)), tmp_path / "model.onnx")
        np.save(tmp_path / "images.npy", images(16).numpy())
        places = {"artifact": str(tmp_path / "int8.onnx"), "calibration": str(tmp_path / "images.npy")}
        make_artifact("ONNX Runtime", "int8", str(tmp_path / "model.onnx"), batches=[1], **places)
        stored = {one.name: one for one in onnx.load(tmp_path / "int8.onnx").graph.initializer}
        weights = [numpy_helper.to_array(one) for one in stored.values() if len(one.dims) == 4]

        largest = max(int(np.abs(weight.astype(int)).max()) for weight in weights)

        assert (stored["images_zero_point"].data_type, largest) == expected

    @pytest.mark.parametrize(
        ("node", "words"),
        [
            (helper.make_node("Foo", ["images"], ["logits"]), "No Op registered for Foo"),
            (
                helper.make_node("Foo", ["images"], ["logits"], domain="my.domain"),
                "no runtime here knows: my.domain.Foo",
            ),
        ],
    )
    def test_an_unknown_operator_is_named(self, tmp_path, node, words):
        """One that ONNX lacks, and one of a domain that is nobody's here."""
        with pytest.raises(ValueError, match=words):
            read_model(str(saved(tmp_path, node)), str(tmp_path / "whole.onnx"))

    def test_an_unknown_operator_in_a_branch_is_named(self, tmp_path):
        """Graphs lie within nodes, too."""
        inner = helper.make_node("Hidden", ["images"], ["y"], domain="my.domain")
        body = helper.make_graph([inner], "body", [], [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])
        yes = helper.make_tensor("yes", TensorProto.BOOL, [], [True])
        node = helper.make_node("If", ["yes"], ["logits"], then_branch=body, else_branch=body)
        with pytest.raises(ValueError, match=r"knows: my\.domain\.Hidden$"):
            read_model(str(saved(tmp_path, node, constants=(yes,))), str(tmp_path / "whole.onnx"))


class TestFilesFromElsewhere:
    def test_weights_outside_the_folder_are_refused(self, tmp_path):
        """A file that came from somewhere reads no other file of the reader."""
        (tmp_path / "model").mkdir()
        path = saved(tmp_path / "model", helper.make_node("Add", ["images", "w"], ["logits"]))
        proto = onnx.load(path)
        weight = helper.make_tensor("w", TensorProto.FLOAT, [1], [0.0])
        weight.ClearField("float_data")
        weight.data_location = TensorProto.EXTERNAL
        weight.external_data.add(key="location", value="../secret")
        proto.graph.initializer.append(weight)
        path.write_bytes(proto.SerializeToString())
        (tmp_path / "secret").write_bytes(b"1234")
        with pytest.raises(ValueError, match="lie where they may not"):
            opened_apart(path, tmp_path / "whole.onnx")

    def test_a_file_that_asks_for_all_memory_is_a_status(self, tmp_path):
        """4 TiB of zeros: no runtime has a figure, and this process lives."""
        shape = helper.make_tensor("shape", TensorProto.INT64, [1], [2**40])
        nodes = [
            helper.make_node("ReduceMean", ["images"], ["small"], keepdims=1),
            helper.make_node("ConstantOfShape", ["shape"], ["zeros"]),
            helper.make_node("ReduceSum", ["zeros"], ["zero"], keepdims=0),
            helper.make_node("Add", ["small", "zero"], ["sum"]),
            helper.make_node("Flatten", ["sum"], ["logits"]),
        ]
        found = benchmark(saved(tmp_path, *nodes, constants=(shape,)), tiny_dataset(), **QUICK)

        assert [row.ok for row in found.rows] == [False] * 5
        assert all(row.status for row in found.rows)

    def test_one_batch_size_is_kept_to(self, tmp_path):
        """A file for batches of 8 is measured at 8, on whole batches; asked for another it says so."""
        flat = helper.make_node("GlobalAveragePool", ["images"], ["means"])
        path = saved(tmp_path, flat, helper.make_node("Flatten", ["means"], ["logits"]), batch=8)
        found = benchmark(path, tiny_dataset(classes=3), test_images=30, **QUICK)

        assert (found.latency_batch, found.batch, found.test_images) == (8, 8, 24)
        assert found.rows[0].latency == found.rows[0].throughput
        with pytest.raises(ValueError, match="takes batches of 8 only, and the batch is 4; give that number"):
            benchmark(path, tiny_dataset(classes=3), batch=4)

    def test_what_is_quantized_is_taken_as_it_is(self, tmp_path, monkeypatch):
        """Its rows have no precision of ours, and both runtimes take it."""
        onnx.save(quantize_onnx(export_onnx(small(), images(2)), [images(16)]).model, tmp_path / "int8.onnx")
        asked = []
        monkeypatch.setattr("deploykit.benchmarking.rows_of_file", lambda kinds, setting: asked.extend(kinds) or [])
        benchmark(tmp_path / "int8.onnx", tiny_dataset(), **QUICK)
        np.save(tmp_path / "images.npy", images(16).numpy())
        classes = make_artifact(
            *asked[1], str(tmp_path / "int8.onnx"), artifact=str(tmp_path / "a.xml"),
            calibration=str(tmp_path / "images.npy"), batches=[2],
        )  # fmt: skip

        assert asked == [("ONNX Runtime", "as given"), ("OpenVINO", "as given")]
        assert classes == 4


class TestFailingRows:
    def test_what_cannot_be_exported_still_runs_in_pytorch(self):
        """The module is named, in each row that needs an export."""
        found = benchmark(Branching(), tiny_dataset(), **QUICK)

        assert [row.ok for row in found.rows] == [True, True, *[False] * 5]
        assert found.rows[-1].status.startswith("gate (Gate) cannot be exported to ONNX: ")

    def test_a_runtime_that_crashes_costs_its_rows(self, tmp_path, monkeypatch):
        """A package of OpenVINO's name that ends its process: ONNX Runtime's rows have what runs them."""
        (tmp_path / "openvino.py").write_text("import os\nos._exit(9)")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        setting = Setting(tmp_path, images(8), (1, 4), 4, print)
        onnx.save(export_onnx(small(), images(2)), setting.model)
        rows = list(rows_of_file(FLOAT_ROWS, setting))

        assert [row.ok and row.predictor is not None for row in rows] == [True] * 2 + [False] * 3
        assert {row.status for row in rows[2:]} == {"it ended the process that tried it (exit status 9)"}

    def test_a_runtime_that_is_missing_is_named_with_its_extra(self, tmp_path, monkeypatch):
        """The words of the status say what to install."""
        monkeypatch.setitem(sys.modules, "openvino", None)
        np.save(tmp_path / "images.npy", images(2).numpy())
        with pytest.raises(ImportError, match=re.escape("pip install 'deploykit[openvino]'")):
            make_artifact(
                "OpenVINO", "float32", "model.onnx", artifact="a.xml", calibration=f"{tmp_path}/images.npy", batches=[]
            )

    def test_compiled_packages_are_two_more_rows(self, monkeypatch):
        """Inductor is given the model, and the graph with integers; where it fails the row says so."""
        given = []

        def save(model: nn.Module, path: Path, **_: object) -> None:
            given.append(model)
            if not is_converted(model):
                raise ValueError("no C++ compiler;\ninstall one")
            path.write_bytes(bytes(2**20))

        monkeypatch.setattr("deploykit.contestants.inductor.save", save)
        monkeypatch.setattr("deploykit.contestants.inductor.load", lambda _: given[-1])
        monkeypatch.setattr("deploykit.contestants.rows_of_file", lambda *_: [])
        float32, int8 = benchmark(small(), tiny_dataset(), compiled=True, **QUICK).rows[-2:]

        assert (float32.name, float32.status) == ("Inductor float32", "no C++ compiler; install one")
        assert (int8.name, int8.status, int8.size_mib) == ("Inductor int8", "ok", 1)

    def test_a_budget_too_small_costs_the_times_only(self, monkeypatch):
        """What was found before is handed back, and what to do is said."""
        monkeypatch.setattr("deploykit.contestants.rows_of_file", lambda *_: [])
        monkeypatch.setattr("deploykit.measure.OVERRUN", 0)
        found = benchmark(small(), tiny_dataset(), **{**QUICK, "budget_s": 1e-9})

        assert found.untimed.startswith("batches of 1: ")
        assert "give budget_s=" in found.untimed
        assert [(row.latency, row.accuracy.images) for row in found.rows] == [(None, 40)] * 2


class TestMistakes:
    @pytest.mark.parametrize(
        ("changed", "words"),
        [
            ({"batch": 0}, "batch is 0; give at least 1"),
            ({"test_images": 0}, "test_images is 0"),
            ({"model": "/no/such.onnx"}, "there is no file /no/such.onnx"),
            ({"model": 3}, "benchmark takes a torch.nn.Module or the path of an ONNX file, not int"),
            ({"model": nn.Flatten()}, "Flatten tells 192 classes apart, and the data has 4"),
            ({"model": nn.Linear(3, 4)}, "it cannot compute images of shape"),
            ({"model": nn.Identity()}, "logits must be"),
        ],
    )
    def test_bad_input_is_refused(self, changed, words):
        """With what was given and what is needed."""
        with pytest.raises((ValueError, TypeError, FileNotFoundError), match=words):
            benchmark(**{"model": small(), "dataset": tiny_dataset(), **QUICK, **changed})


def vit() -> nn.Module:
    """Build a short ViT of timm's for 32x32 pixels."""
    import timm

    options = {"img_size": 32, "patch_size": 8, "depth": 2, "class_token": False, "global_pool": "avg"}
    return timm.create_model("vit_tiny_patch16_224", num_classes=3, **options)


@pytest.fixture(scope="module")
def odd_folder(tmp_path_factory) -> Dataset:
    """Write three classes of pictures of odd sizes."""
    root = tmp_path_factory.mktemp("odd")
    for number, name in enumerate(("ash", "beech", "elm")):
        for split, count in {"train": 20, "test": 8}.items():
            for index in range(count):
                size = (21 + 13 * number + index, 57 - 9 * number)
                write_picture(root / split / name / f"{index}.png", seed=100 * number + index, size=size)
    return load_dataset(root)


@pytest.mark.parametrize(
    "build",
    [
        lambda: torchvision.models.resnet18(num_classes=3),
        lambda: torchvision.models.mobilenet_v3_small(num_classes=3),
        vit,
    ],
    ids=["resnet18", "mobilenet_v3_small", "vit"],
)
def test_models_and_pictures_that_this_project_did_not_write(build, odd_folder):
    """Every way to run them works, and float32 is the same model in each."""
    torch.manual_seed(0)
    found = benchmark(build(), odd_folder, **QUICK)

    assert [row.status for row in found.rows] == ["ok"] * 7
    assert found.test_images == 24
    assert all(row.difference.difference == 0 for row in found.rows[1:] if row.precision == "float32")
