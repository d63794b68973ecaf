"""A model repository for Triton: its configuration against the protobuf schema, its model against the original."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from google.protobuf import text_format
from onnx import TensorProto, helper
from tritonclient.grpc import model_config_pb2 as schema

from deploykit.serving.triton import export_triton

SHAPE = (3, 4, 4)


def means(batch: int | str = "n", type_: int = TensorProto.FLOAT, size: int | str = 4) -> onnx.ModelProto:
    """Return a network whose logits are the means of the channels of its images."""
    taken = helper.make_tensor_value_info("images", type_, [batch, 3, size, size])
    given = helper.make_tensor_value_info("logits", type_, [batch, 3])
    axes = helper.make_tensor("axes", TensorProto.INT64, [2], [2, 3])
    node = helper.make_node("ReduceMean", ["images", "axes"], ["logits"], keepdims=0)
    graph = helper.make_graph([node], "means", [taken], [given], [axes])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@pytest.fixture
def artifact(tmp_path):
    """Return a function that writes ``means`` to a file, as ONNX or as OpenVINO IR."""

    def written(kind: str = ".onnx", **options):
        path = tmp_path / f"means{kind}"
        onnx.save(means(**options), path.with_suffix(".onnx"))
        if kind == ".xml":
            openvino = pytest.importorskip("openvino", reason="pip install 'deploykit[openvino]'")
            model = openvino.Core().read_model(path.with_suffix(".onnx"))
            openvino.save_model(model, path, compress_to_fp16=False)
        return path

    return written


def parsed(folder):
    """Return the config of a model's folder as Triton reads it: what the schema does not know is an error."""
    return text_format.Parse((folder / "config.pbtxt").read_text(encoding="utf-8"), schema.ModelConfig())


class TestConfig:
    def test_every_field_is_what_was_asked_for(self, artifact, tmp_path):
        """The whole configuration, written down once more as a message of the schema."""
        folder = export_triton(
            artifact(), tmp_path / "models", name="means-1", max_batch_size=8, max_queue_delay_us=500,
            max_queue_size=32, deadline_ms=1500.0, instances=2, threads=3,
        )  # fmt: skip

        policy = schema.ModelQueuePolicy(
            timeout_action="REJECT", default_timeout_microseconds=1_500_000, max_queue_size=32
        )
        zeros = schema.ModelWarmup.Input(data_type="TYPE_FP32", dims=SHAPE, zero_data=True)
        assert parsed(folder) == schema.ModelConfig(
            name="means-1",
            backend="onnxruntime",
            default_model_filename="model.onnx",
            max_batch_size=8,
            input=[schema.ModelInput(name="images", data_type="TYPE_FP32", dims=SHAPE)],
            output=[schema.ModelOutput(name="logits", data_type="TYPE_FP32", dims=[3])],
            dynamic_batching=schema.ModelDynamicBatching(max_queue_delay_microseconds=500, default_queue_policy=policy),
            instance_group=[schema.ModelInstanceGroup(count=2, kind="KIND_CPU")],
            parameters={"intra_op_thread_count": schema.ModelParameter(string_value="3")},
            model_warmup=[
                schema.ModelWarmup(name=f"batch of {size}", batch_size=size, inputs={"images": zeros})
                for size in (1, 8)
            ],
        )

    def test_openvino_has_a_backend_of_its_own(self, artifact, tmp_path):
        """Names, types and shapes come from the IR; it fills up small batches, without which it refuses them."""
        config = parsed(export_triton(artifact(".xml"), tmp_path / "models", name="means"))

        assert (config.backend, config.default_model_filename) == ("openvino", "model.xml")
        assert (config.input[0].name, config.input[0].data_type, tuple(config.input[0].dims)) == (
            "images", schema.TYPE_FP32, SHAPE,
        )  # fmt: skip
        assert (config.output[0].name, list(config.output[0].dims)) == ("logits", [3])
        parameters = {key: value.string_value for key, value in config.parameters.items()}
        assert parameters == {"INFERENCE_NUM_THREADS": "1", "ENABLE_BATCH_PADDING": "YES"}

    @pytest.mark.parametrize("kind", [".onnx", ".xml"])
    def test_a_free_size_stays_free(self, kind, artifact, tmp_path):
        """It is -1, as Triton writes it, and 1 in the request that warms the model up."""
        config = parsed(export_triton(artifact(kind, size="s"), tmp_path / "models", name="means"))

        assert list(config.input[0].dims) == [3, -1, -1]
        assert list(config.model_warmup[0].inputs["images"].dims) == [3, 1, 1]

    @pytest.mark.parametrize("kind", [".onnx", ".xml"])
    @pytest.mark.parametrize(
        ("type_", "words"),
        [
            (TensorProto.FLOAT16, "TYPE_FP16"),
            (TensorProto.DOUBLE, "TYPE_FP64"),
            (TensorProto.INT32, "TYPE_INT32"),
            (TensorProto.UINT64, "TYPE_UINT64"),
        ],
    )
    def test_types_are_tritons(self, kind, type_, words, artifact, tmp_path):
        """What ONNX and OpenVINO call a type, the schema has a word of its own for."""
        config = parsed(export_triton(artifact(kind, type_=type_), tmp_path / "models", name="means"))

        assert schema.DataType.Name(config.input[0].data_type) == words

    def test_batches_of_one_are_warmed_up_once(self, artifact, tmp_path):
        """With max_batch_size 1 there is one size to warm up."""
        config = parsed(export_triton(artifact(), tmp_path / "models", name="means", max_batch_size=1))

        assert [request.batch_size for request in config.model_warmup] == [1]


class TestRepository:
    def test_it_holds_a_version_of_the_model_and_nothing_else(self, artifact, tmp_path):
        """<name>/config.pbtxt and <name>/1/model.onnx, which computes what the file did."""
        path = artifact()
        images = np.random.default_rng(0).normal(size=(2, *SHAPE)).astype(np.float32)

        folder = export_triton(path, tmp_path / "models", name="means")

        files = sorted(str(file.relative_to(tmp_path / "models")) for file in (tmp_path / "models").rglob("*.*"))
        assert files == ["means/1/model.onnx", "means/config.pbtxt"]
        session = onnxruntime.InferenceSession(folder / "1" / "model.onnx")
        assert session.run(["logits"], {"images": images})[0] == pytest.approx(images.mean((2, 3)), abs=1e-6)

    def test_openvino_keeps_its_weights_beside_it(self, artifact, tmp_path):
        """The .xml and the .bin are copied."""
        path = artifact(".xml")

        version = export_triton(path, tmp_path / "models", name="means") / "1"

        assert (version / "model.xml").read_bytes() == path.read_bytes()
        assert (version / "model.bin").read_bytes() == path.with_suffix(".bin").read_bytes()

    def test_a_second_model_moves_in(self, artifact, tmp_path):
        """A repository holds several models."""
        path = artifact()
        for name in ("one", "two"):
            export_triton(path, tmp_path / "models", name=name)

        assert sorted(entry.name for entry in (tmp_path / "models").iterdir()) == ["one", "two"]


class TestRefusals:
    @pytest.mark.parametrize("name", ["a/b", "..", "", ".hidden", "a b", "é"])
    def test_a_name_that_is_no_folder(self, name, artifact, tmp_path):
        """A name cannot lead out of the repository."""
        with pytest.raises(ValueError, match=r"use letters, digits, '-', '_' and '\.', a letter or digit first"):
            export_triton(artifact(), tmp_path / "models", name=name)

        assert not (tmp_path / "models").exists()

    @pytest.mark.parametrize("kind", [".onnx", ".xml"])
    def test_a_fixed_batch(self, kind, artifact, tmp_path):
        """Triton makes batches of 1 to max_batch_size."""
        path = artifact(kind, batch=2)

        with pytest.raises(ValueError, match=rf"images of means{kind} has the shape \[2, 3, 4, 4\].*free batch size"):
            export_triton(path, tmp_path / "models", name="means")
        assert not (tmp_path / "models").exists()

    def test_a_type_that_triton_does_not_know(self, artifact, tmp_path):
        """Complex numbers, say."""
        complex_ = helper.make_tensor_value_info("images", TensorProto.COMPLEX64, ["n", 3])
        same = helper.make_node("Identity", ["images"], ["logits"])
        given = helper.make_tensor_value_info("logits", TensorProto.COMPLEX64, ["n", 3])
        model = helper.make_model(helper.make_graph([same], "c", [complex_], [given]))
        onnx.save(model, tmp_path / "c.onnx")

        with pytest.raises(ValueError, match=r"images of c.onnx has a type that Triton does not know"):
            export_triton(tmp_path / "c.onnx", tmp_path / "models", name="c")

    @pytest.mark.parametrize("kind", [".onnx", ".xml"])
    def test_no_file(self, kind, tmp_path):
        """The path is named."""
        with pytest.raises(FileNotFoundError, match=f"there is no file .*none{kind}"):
            export_triton(tmp_path / f"none{kind}", tmp_path / "models", name="none")

    def test_openvino_without_weights(self, artifact, tmp_path):
        """The .bin belongs to it."""
        path = artifact(".xml")
        path.with_suffix(".bin").unlink()

        with pytest.raises(FileNotFoundError, match=r"means\.bin; an OpenVINO model is an \.xml and a \.bin"):
            export_triton(path, tmp_path / "models", name="means")

    @pytest.mark.parametrize("kind", [".onnx", ".xml"])
    def test_a_damaged_file(self, kind, artifact, tmp_path):
        """It is read before anything is written."""
        path = artifact(kind)
        path.write_bytes(path.read_bytes()[:40])

        with pytest.raises(ValueError, match="is it whole"):
            export_triton(path, tmp_path / "models", name="means")

    def test_another_kind_of_file(self, tmp_path):
        """Only the two formats that a backend on the CPU reads."""
        with pytest.raises(ValueError, match=r"m\.pt ends in neither \.onnx nor \.xml"):
            export_triton(tmp_path / "m.pt", tmp_path / "models", name="m")

    def test_a_model_that_is_there(self, artifact, tmp_path):
        """A model that may be served right now is not overwritten."""
        export_triton(artifact(), tmp_path / "models", name="means")

        with pytest.raises(FileExistsError, match="remove it, or choose another name"):
            export_triton(artifact(), tmp_path / "models", name="means")

    @pytest.mark.parametrize(
        ("wrong", "words"),
        [
            ({"max_batch_size": 0}, "max_batch_size is 0; give at least 1"),
            ({"max_queue_delay_us": -1}, "max_queue_delay_us is -1; give at least 0"),
            ({"max_queue_size": 0}, "max_queue_size is 0; give at least 1"),
            ({"deadline_ms": 0.5}, "deadline_ms is 0.5; give at least 1"),
            ({"instances": 0}, "instances is 0; give at least 1"),
            ({"threads": 0}, "threads is 0; give at least 1"),
        ],
    )
    def test_a_number_out_of_its_range(self, wrong, words, artifact, tmp_path):
        """In Triton 0 would mean: no limit, no batching, as many as it likes."""
        with pytest.raises(ValueError, match=words):
            export_triton(artifact(), tmp_path / "models", name="means", **wrong)
