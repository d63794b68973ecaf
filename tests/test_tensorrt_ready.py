"""What TensorRT will make of an ONNX file, said without it: in agreement with NVIDIA's own parser, file by file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import tensorrt_files as files
import torch
from onnx import TensorProto
from small_residual import SmallResidual, images
from torch import nn

pytest.importorskip("tensorrt_rtx")
pytest.importorskip("onnxruntime")
pytest.importorskip("torch_pruning")
pytest.importorskip("torchao")

from deploykit.export import convert_precision, export_onnx
from deploykit.pruning.channels import prune_channels
from deploykit.pruning.costs import count_macs
from deploykit.pruning.planning import plan_pruning
from deploykit.quantization.onnx import quantize_onnx
from deploykit.quantization.qat import convert_qat, prepare_qat
from deploykit.runtimes import tensorrt_ready
from deploykit.runtimes.tensorrt_build import build_engine
from deploykit.runtimes.tensorrt_findings import CHANGED, REFUSED, SLOW, Finding
from deploykit.runtimes.tensorrt_library import import_tensorrt, logger
from deploykit.runtimes.tensorrt_ready import check_tensorrt_ready

HALF, DOUBLE = TensorProto.FLOAT16, TensorProto.DOUBLE
TAKEN: dict[str, Callable[[], onnx.ModelProto]] = {
    "float": files.convolution,
    "half": lambda: files.convolution(np.float16, taken=HALF, given=HALF),
    "double": lambda: files.convolution(np.float64, taken=DOUBLE, given=DOUBLE),
    "fixed batch": lambda: files.classifier(batch=4),
    "int8": files.quantized,
    "int8, one scale": lambda: files.quantized(weight_scales=1),
    "int8, scales on the input channels": lambda: files.quantized(axis=1, weight_scales=3),
    "uint8, zero point 0": lambda: files.quantized(zero_point=np.uint8(0)),
    "no zero point": lambda: files.quantized(zero_point=None),
    "int8 by an attribute": lambda: files.pair_without_zero_point(TensorProto.INT8),
    "float8 E4M3FN": lambda: files.pair_of(TensorProto.FLOAT8E4M3FN),
    "float weights with pairs": lambda: files.float_weights(axis=0, scales=4),
    "float weights with pairs, scales on the input channels": lambda: files.float_weights(axis=1, scales=3),
    "half scale": files.half_scale,
    "an operator that is brought along": files.with_function,
    "a pool between": files.pooled,
    "shortcut in int8": lambda: files.residual(on_shortcut=True, on_branch=True),
    "shortcut in float": lambda: files.residual(on_shortcut=False, on_branch=True),
}


def no_type(name: str) -> Finding:
    """Return what is said of a zero point of a type that TensorRT does not have."""
    remedy = "int8 with zero point 0, or float8 E4M3FN, are taken"
    return Finding("integers_node", f"zero is {name}, a type it does not have", remedy, REFUSED)


AGAIN = (
    "quantize the float32 network again, with quantize_onnx(..., target='tensorrt') or prepare_qat(..., symmetric=True)"
)
IN_PAIRS = f"integers are written as pairs of QuantizeLinear and DequantizeLinear around float operators: {AGAIN}"
REFUSALS: dict[str, tuple[Callable[[], onnx.ModelProto], Finding]] = {
    "uint8": (
        lambda: files.quantized(zero_point=np.uint8(128)),
        Finding("integers_node", "the zero point of uint8 is 128, not 0", AGAIN, REFUSED),
    ),
    "asymmetric": (
        lambda: files.quantized(zero_point=np.int8(3)),
        Finding("integers_node", "the zero point of int8 is 3, not 0", AGAIN, REFUSED),
    ),
    "asymmetric weights": (
        lambda: files.quantized(weight_zero_point=np.int8(3)),
        Finding("weights_node", "the zero point of int8 is 3, not 0", AGAIN, REFUSED),
    ),
    "uint8 weights": (
        lambda: files.quantized(weight_zero_point=np.uint8(0), stored_in=np.uint8),
        Finding("weights_node", "the weights are uint8", f"weights have to be int8: {AGAIN}", REFUSED),
    ),
    "int32 bias": (
        lambda: files.quantized(bias=np.int32),
        Finding("bias_node", "the bias is int32", f"leave biases in float, QuantizeBias=False: {AGAIN}", REFUSED),
    ),
    "too few scales": (
        lambda: files.quantized(weight_scales=3),
        Finding("weights_node", "there are 3 scales for the 4 channels of axis 0", AGAIN, REFUSED),
    ),
    "scale of 0": (
        lambda: files.quantized(scale=0.0),
        Finding("integers_node", "a scale is 0, negative or no number", AGAIN, REFUSED),
    ),
    "uint8 asked for": (
        lambda: files.pair_without_zero_point(TensorProto.UINT8),
        Finding("integers_node", "asks for uint8", AGAIN, REFUSED),
    ),
    "QLinearConv": (
        lambda: files.integer_operator("QLinearConv"),
        Finding("features_node", "there is no operator QLinearConv", IN_PAIRS, REFUSED),
    ),
    "ConvInteger": (
        lambda: files.integer_operator("ConvInteger"),
        Finding("integers_node", "there is no operator DynamicQuantizeLinear", IN_PAIRS, REFUSED),
    ),
    "an operator of somebody's own": (
        files.foreign_operator,
        Finding(
            "logits_node",
            "there is no operator Fancy",
            "write that part with other operators, or as a plugin",
            REFUSED,
        ),
    ),
    "half weights, float images": (
        lambda: files.convolution(np.float16),
        Finding(
            "logits_node",
            "Conv of FLOAT and FLOAT16",
            "convert the whole file, with casts at both ends: convert_precision(proto, 'float16')",
            REFUSED,
        ),
    ),
    "int16": (lambda: files.pair_of(TensorProto.INT16), no_type("int16")),
    "float8 E5M2": (lambda: files.pair_of(TensorProto.FLOAT8E5M2), no_type("float8e5m2")),
    "int8 constant in a sum": (
        files.int8_in_a_sum,
        Finding(
            "value_node",
            "Cast takes stored, which is int8",
            "a constant of this type may stand before a DequantizeLinear only",
            REFUSED,
        ),
    ),
}


def parser_takes(proto: onnx.ModelProto) -> bool:
    """Ask the real parser, and the builder: some things only the latter sees."""
    trt = import_tensorrt()
    builder = trt.Builder(logger(trt))
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    if not trt.OnnxParser(network, logger(trt)).parse(proto.SerializeToString()):
        return False
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    if network.get_input(0).shape[0] == -1:
        profile.set_shape("images", *((batch, *files.IMAGE) for batch in (1, 2, 4)))
        config.add_optimization_profile(profile)
    return builder.build_serialized_network(network, config) is not None


def severities(proto: onnx.ModelProto) -> set[str]:
    """Return which kinds of findings there are."""
    return {finding.severity for finding in check_tensorrt_ready(proto)}


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """A small residual network in evaluation mode."""
    torch.manual_seed(0)
    return SmallResidual().eval()


@pytest.fixture(scope="module")
def exported(network) -> onnx.ModelProto:
    """It as ONNX."""
    return export_onnx(network, images(2))


def pruned(network: nn.Module) -> nn.Module:
    """Return it with some channels less."""
    target = 0.7 * count_macs(network, images(1))
    return prune_channels(network, plan_pruning(network, images(1), target_macs=int(target)))


class TestAgreesWithTheParser:
    @pytest.mark.parametrize("name", TAKEN)
    def test_nothing_is_said_to_be_refused_that_is_taken(self, name):
        """What the parser takes and the builder builds has no finding of that kind."""
        assert parser_takes(TAKEN[name]())
        assert REFUSED not in severities(TAKEN[name]())

    @pytest.mark.parametrize("name", REFUSALS)
    def test_what_is_refused_is_named(self, name):
        """Node, reason and remedy, for each file that the parser refuses."""
        make, finding = REFUSALS[name]
        found = check_tensorrt_ready(make())

        assert not parser_takes(make())
        assert found[0] == finding

    @pytest.mark.parametrize("form", ["float32", "float16", "int8 for TensorRT", "int8 for x86", "pruned", "trained"])
    def test_a_network_in_each_form(self, exported, network, form):
        """A residual network in the forms of the course: only the int8 form for x86 is refused."""
        made = {
            "float32": lambda: exported,
            "float16": lambda: convert_precision(exported, "float16"),
            "int8 for TensorRT": lambda: quantize_onnx(exported, [images(8)], target="tensorrt").model,
            "int8 for x86": lambda: quantize_onnx(exported, [images(8)]).model,
            "pruned": lambda: export_onnx(pruned(network), images(2)),
            "trained": lambda: export_onnx(
                convert_qat(prepare_qat(network, images(8), symmetric=True)).model, images(2)
            ),
        }[form]()

        assert (REFUSED not in severities(made)) == parser_takes(made) == (form != "int8 for x86")

    def test_the_operators_are_the_parsers(self):
        """Each standard operator is in our list exactly if the parser says that it does not support it."""
        trt = import_tensorrt()
        builder = trt.Builder(logger(trt))
        network = builder.create_network()
        parser = trt.OnnxParser(network, logger(trt))
        standard = {schema.name for schema in onnx.defs.get_all_schemas() if not schema.domain}

        assert {
            name for name in standard if not parser.supports_operator(name)
        } == tensorrt_ready.UNSUPPORTED & standard


class TestFindings:
    def test_a_finding_reads_as_a_sentence(self):
        """Node, what is there, how bad, and the remedy."""
        finding = Finding("conv/Q", "the zero point is 3", "make it 0", REFUSED)

        assert str(finding) == "conv/Q: the zero point is 3 (refused). Remedy: make it 0."

    @pytest.mark.parametrize(
        "form",
        ["float", "half", "int8", "int8, one scale", "shortcut in int8", "a pool between", "float weights with pairs"],
    )
    def test_a_good_file_has_none(self, form):
        """Nothing to say is the best answer."""
        assert check_tensorrt_ready(TAKEN[form]()) == ()

    @pytest.mark.parametrize("form", ["uint8, zero point 0", "no zero point"])
    def test_uint8_that_is_taken_is_changed(self, form):
        """The parser reads it as int8, so that half of the range is gone; a zero point left out means uint8."""
        (found,) = check_tensorrt_ready(TAKEN[form]())

        assert found.severity == CHANGED
        assert found.what == "uint8 is read as int8: numbers above half of the range are cut off"

    def test_float64_is_changed(self):
        """There is no float64 in TensorRT; the parser narrows it."""
        (found,) = check_tensorrt_ready(TAKEN["double"]())

        assert found.what == "3 tensors are float64, which becomes float32 without a word"
        assert found.severity == CHANGED

    def test_a_fixed_batch_is_slow(self):
        """It is taken, for batches of this size."""
        assert check_tensorrt_ready(TAKEN["fixed batch"]()) == (
            Finding("images", "takes batches of 4 only", "export with a dynamic batch", SLOW),
        )

    @pytest.mark.parametrize("on_branch", [True, False])
    def test_a_shortcut_without_a_pair_is_slow(self, on_branch):
        """The addition, and the convolution that it would be part of, is computed in float."""
        (found,) = check_tensorrt_ready(files.residual(on_shortcut=False, on_branch=on_branch))

        assert found.node == "logits_node"
        assert found.what.startswith("the addition, and the convolution before it, is computed in float: no pair on")
        assert found.remedy == "put a pair on the shortcut, too"

    def test_the_branch_may_come_in_float(self):
        """The convolution's own output is added before it is rounded: a pair on the shortcut is enough."""
        assert check_tensorrt_ready(files.residual(on_shortcut=True, on_branch=False)) == ()

    def test_a_layer_without_pairs_is_slow(self, exported):
        """A layer that was skipped is found; without pairs anywhere there is nothing to compare with."""
        skipped = quantize_onnx(exported, [images(8)], target="tensorrt", skip=["conv1"]).model
        found = [finding.node for finding in check_tensorrt_ready(skipped)]

        assert found == ["conv1/Conv"]
        assert check_tensorrt_ready(exported) == ()

    @pytest.mark.parametrize("form", ["int8", "float weights with pairs"])
    def test_scales_on_the_wrong_axis_are_slow(self, form):
        """The parser takes them; the integer kernels want one for each output channel."""
        (found,) = set(check_tensorrt_ready(TAKEN[f"{form}, scales on the input channels"]()))

        assert found.what == "the scales belong to axis 1, not to the output channels (axis 0)"

    def test_the_worst_comes_first(self):
        """Whoever reads one line reads the one that matters most."""
        both = files.quantized(zero_point=np.uint8(128), batch=4)

        assert [finding.severity for finding in check_tensorrt_ready(both)] == [REFUSED, REFUSED, SLOW]


class TestFiles:
    def test_a_truncated_file_is_an_error(self, tmp_path):
        """Half a file is no model, and no finding."""
        path = tmp_path / "half.onnx"
        content = files.classifier().SerializeToString()
        path.write_bytes(content[: len(content) // 2])

        with pytest.raises(ValueError, match=r"half\.onnx is no ONNX model, or is truncated"):
            check_tensorrt_ready(path)

    @pytest.mark.parametrize("content", [b"", b"hello world " * 10])
    def test_what_the_parser_takes_for_an_empty_model_is_an_error(self, tmp_path, content):
        """TensorRT's parser says yes to these."""
        path = tmp_path / "none.onnx"
        path.write_bytes(content)
        trt = import_tensorrt()
        builder = trt.Builder(logger(trt))
        network = builder.create_network()

        assert trt.OnnxParser(network, logger(trt)).parse_from_file(str(path))
        with pytest.raises(ValueError, match=r"none\.onnx is no ONNX model"):
            check_tensorrt_ready(path)

    def test_a_missing_file_is_said(self, tmp_path):
        """In the words of the other runtimes."""
        with pytest.raises(FileNotFoundError, match="there is no file"):
            check_tensorrt_ready(tmp_path / "nothing.onnx")

    def test_weights_beside_the_file_are_read(self, tmp_path):
        """Large models keep them there; so does torch's exporter unless told otherwise."""
        path = with_weights_in(tmp_path / "model", "model.data")

        assert check_tensorrt_ready(path) == ()
        assert not build_engine(path, tmp_path / "engine" / "model.plan", profile=(1, 2, 4)).reused

    @pytest.mark.parametrize("kind", ["../", "absolute", "link"])
    def test_weights_from_elsewhere_are_refused(self, tmp_path, kind):
        """A model must not read what it likes; TensorRT itself would follow a link."""
        path = with_weights_in(tmp_path / "model", "model.data")
        (tmp_path / "model" / "model.data").rename(tmp_path / "model.data")
        named = {"../": "../model.data", "absolute": str(tmp_path / "model.data"), "link": "model.data"}[kind]
        point_to(path, named)
        if kind == "link":
            (tmp_path / "model" / "model.data").symlink_to(tmp_path / "model.data")

        with pytest.raises(ValueError, match=r"model\.onnx takes weights from .*model\.data, outside its folder"):
            check_tensorrt_ready(path)

    def test_missing_weights_are_said(self, tmp_path):
        """Copied without its weights, a file is useless, and the message says what is missing."""
        path = with_weights_in(tmp_path / "model", "model.data")
        (tmp_path / "model" / "model.data").unlink()

        with pytest.raises(
            FileNotFoundError, match=r"model\.onnx has weights in model\.data, and there is no such file"
        ):
            check_tensorrt_ready(path)


def with_weights_in(folder: Path, name: str) -> Path:
    """Save a model whose weights lie in a file of their own."""
    folder.mkdir()
    path = folder / "model.onnx"
    onnx.save(files.classifier(), path, save_as_external_data=True, location=name, size_threshold=0)
    return path


def point_to(path: Path, location: str) -> None:
    """Let a model name another file for its weights."""
    proto = onnx.load(path, load_external_data=False)
    for stored in proto.graph.initializer:
        for entry in stored.external_data:
            if entry.key == "location":
                entry.value = location
    path.write_bytes(proto.SerializeToString())
