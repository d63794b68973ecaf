"""ONNX files: whole or refused, weights from their own folder only, and no notes of where they were made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from small_residual import SmallResidual, images
from torch import nn

pytest.importorskip("onnxscript")

from deploykit.export import export_onnx, load_onnx


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """A small residual network in evaluation mode."""
    torch.manual_seed(0)
    return SmallResidual().eval()


@pytest.fixture(scope="module")
def exported(model):
    """It as ONNX."""
    return export_onnx(model, images(2))


def with_outside_weights(folder: Path, location: str) -> Path:
    """Write a model of one convolution whose weights are said to lie at ``location``; return its path."""
    element, helper = onnx.TensorProto, onnx.helper
    weights = element(name="w", data_type=element.FLOAT, dims=[4, 3, 3, 3], data_location=element.EXTERNAL)
    for key, value in {"location": location, "offset": "0", "length": str(4 * 108)}.items():
        weights.external_data.add(key=key, value=value)
    shapes = {"x": ["N", 3, 8, 8], "y": ["N", 4, 6, 6]}
    given, returned = (helper.make_tensor_value_info(name, element.FLOAT, shape) for name, shape in shapes.items())
    node = helper.make_node("Conv", ["x", "w"], ["y"], kernel_shape=[3, 3])
    graph = helper.make_graph([node], "graph", [given], [returned], [weights])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    path = folder / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


@pytest.fixture
def folders(tmp_path) -> tuple[Path, Path]:
    """A folder for a model, with weights in good.bin, and a folder beside it, with weights in secret.bin."""
    inside, outside = tmp_path / "model", tmp_path / "home"
    for folder, name in ((inside, "good.bin"), (outside, "secret.bin")):
        folder.mkdir()
        (folder / name).write_bytes(np.arange(108, dtype=np.float32).tobytes())
    return inside, outside


class TestReading:
    def test_a_file_is_read_with_all_its_weights(self, folders):
        """Weights beside the model come in; the result needs no second file."""
        proto = load_onnx(with_outside_weights(folders[0], "good.bin"))
        (weights,) = proto.graph.initializer

        assert np.array_equal(onnx.numpy_helper.to_array(weights).ravel(), np.arange(108, dtype=np.float32))

    def test_a_model_in_memory_is_copied(self, exported):
        """What is done to the copy does not reach the original."""
        load_onnx(exported).graph.node[0].name = "another"

        assert exported.graph.node[0].name == "stem/Conv"


class TestRefusals:
    @pytest.mark.parametrize("location", ["../home/secret.bin", "sub/../../home/secret.bin", "absolute", "link.bin"])
    def test_weights_outside_the_models_folder(self, folders, location):
        """A path upwards, an absolute one and a link: a file from elsewhere does not read the others of its reader."""
        inside, outside = folders
        (inside / "link.bin").symlink_to(outside / "secret.bin")
        location = str(outside / "secret.bin") if location == "absolute" else location

        with pytest.raises(ValueError, match=r"the weights of .*model\.onnx lie where they may not: .*Only files in"):
            load_onnx(with_outside_weights(inside, location))

    def test_weights_that_are_missing(self, folders):
        """A model that was copied without its second file."""
        with pytest.raises(ValueError, match=r"the weights of .* lie where they may not"):
            load_onnx(with_outside_weights(folders[0], "none.bin"))

    def test_a_truncated_file_and_one_that_is_no_model(self, exported, tmp_path):
        """Both are named."""
        content = exported.SerializeToString()
        for name, wrong in {"half.onnx": content[: len(content) // 2], "text.onnx": b"no model"}.items():
            (tmp_path / name).write_bytes(wrong)
            with pytest.raises(ValueError, match=rf"{name} (cannot be read; is it whole|is against the rules)"):
                load_onnx(tmp_path / name)

    def test_a_graph_against_the_rules(self, exported):
        """A node that takes what nobody gives."""
        broken = load_onnx(exported)
        broken.graph.node[1].input[0] = "nothing"

        with pytest.raises(ValueError, match=r"the model is against the rules of ONNX: .*; export it again"):
            load_onnx(broken)

    def test_types_that_do_not_fit(self, exported):
        """A convolution of float32 images with float64 weights: only inference over the whole graph finds it."""
        broken = load_onnx(exported)
        weights = next(tensor for tensor in broken.graph.initializer if tensor.name == "stem.weight")
        weights.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weights).astype("f8"), weights.name))

        with pytest.raises(ValueError, match="the model is against the rules of ONNX"):
            load_onnx(broken)

    def test_no_file_and_no_model(self, tmp_path):
        """What was given is said."""
        with pytest.raises(FileNotFoundError, match=r"there is no file .*none\.onnx; export_onnx makes a model"):
            load_onnx(tmp_path / "none.onnx")
        with pytest.raises(TypeError, match=r"an ONNX model is a path or an onnx\.ModelProto, not int"):
            load_onnx(3)
