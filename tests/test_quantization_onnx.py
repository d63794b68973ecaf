"""Static quantization by ONNX Runtime: the integers are real, the scales are the formula's, and nothing is silent."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from small_residual import SmallResidual, images
from torch import nn

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

from deploykit.export import export_onnx
from deploykit.quantization.onnx import quantize_onnx
from deploykit.quantization.report import Quantized
from deploykit.runtimes import onnxruntime

LAYERS = ["stem", "conv1", "conv2", "fc"]
CONVOLUTIONS = 3


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """A small residual network in evaluation mode."""
    torch.manual_seed(0)
    return SmallResidual().eval()


@pytest.fixture(scope="module")
def exported(model) -> onnx.ModelProto:
    """It as ONNX."""
    return export_onnx(model, images(2))


@pytest.fixture(scope="module")
def quantized(exported) -> Quantized:
    """It in int8 for x86, calibrated on two batches of different size."""
    return quantize_onnx(exported, [images(40), images(24, seed=1)])


def stored(proto: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Return the arrays in a model by name."""
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}


def error(proto: onnx.ModelProto, model: nn.Module) -> float:
    """Compare with the float model on other images: root mean square of the difference over that of the logits."""
    with torch.no_grad():
        exact, found = model(images(64, seed=2)), onnxruntime.load(proto)(images(64, seed=2))
    return float((found - exact).square().mean().sqrt() / exact.square().mean().sqrt())


class TestIntegers:
    def test_every_layer_is_in_the_report(self, quantized):
        """int8 weights and uint8 activations under the names that the layers have in torch."""
        assert [layer.name for layer in quantized.layers] == LAYERS
        assert {(layer.weights, layer.inputs) for layer in quantized.layers} == {("int8", "uint8")}
        assert [layer.parameters for layer in quantized.layers] == [216, 576, 576, 32]

    def test_the_file_holds_int8_weights_and_no_float_ones(self, quantized):
        """Four int8 tensors of the sizes of the weights; all float32 in it are scales."""
        tensors = quantized.model.graph.initializer
        integers = [np.prod(t.dims) for t in tensors if t.data_type == TensorProto.INT8 and len(t.dims) > 1]
        floats = [t.name for t in tensors if t.data_type == TensorProto.FLOAT and "scale" not in t.name]

        assert sorted(integers) == [32, 216, 576, 576]
        assert floats == []

    def test_integer_kernels_run(self, quantized):
        """The runtime's own profile counts one QLinearConv for each convolution, the Add and the Gemm as well."""
        census = onnxruntime.kernels(onnxruntime.load(quantized.model), images(4)).set_index("operator")["count"]

        assert census["QLinearConv"] == CONVOLUTIONS
        assert census["QLinearAdd"] == census["QGemm"] == 1
        assert "Conv" not in census

    def test_the_logits_stay_near(self, quantized, model):
        """8 bits leave an error of a few percent, and not none."""
        assert 1e-4 < error(quantized.model, model) < 0.05

    def test_no_notes_are_left(self, quantized):
        """Neither the exporter's nor the quantizer's, and no machine path."""
        assert b".py" not in quantized.model.SerializeToString()
        assert not quantized.model.metadata_props
        assert not quantized.model.graph.value_info

    def test_the_source_is_not_changed(self, exported):
        """The same model can be quantized again."""
        before = exported.SerializeToString()
        quantize_onnx(exported, [images(4)])

        assert exported.SerializeToString() == before


class TestScales:
    def test_weights_per_channel_by_hand(self, exported, quantized):
        """Scale: the largest magnitude of a channel over 127; weight: rounded multiples of it; zero point 0."""
        weight, arrays = stored(exported)["stem.weight"].astype(np.float64), stored(quantized.model)
        scale = np.abs(weight).max(axis=(1, 2, 3)) / 127

        np.testing.assert_allclose(arrays["stem.weight_scale"], scale, rtol=1e-6)
        np.testing.assert_array_equal(arrays["stem.weight_quantized"], np.round(weight / scale[:, None, None, None]))

    def test_images_by_hand(self, quantized):
        """Scale: the range of all calibration images over 255; zero point: where 0 falls in it."""
        seen, arrays = torch.cat([images(40), images(24, seed=1)]).double(), stored(quantized.model)
        scale = float(seen.max() - seen.min()) / 255

        assert arrays["images_scale"] == pytest.approx(scale, rel=1e-6)
        assert arrays["images_zero_point"] == round(-float(seen.min()) / scale)

    def test_seven_bit_weights(self, exported):
        """reduce_range halves the weights' integers, so that two products fit into 16 bits."""
        arrays = stored(quantize_onnx(exported, [images(8)], reduce_range=True).model)

        assert np.abs(arrays["stem.weight_quantized"]).max() <= 64

    def test_methods_choose_other_ranges(self, exported, model):
        """Entropy and a low percentile cut outliers off: a smaller scale of the images; each leaves a usable model."""
        scales = {}
        for method in ("minmax", "entropy", "percentile"):
            result = quantize_onnx(exported, [images(64)], method=method, percentile=99)
            scales[method] = float(stored(result.model)["images_scale"])
            assert error(result.model, model) < 0.25

        assert scales["percentile"] < scales["minmax"]
        assert scales["entropy"] <= scales["minmax"]

    def test_nothing_is_printed(self, exported, capsys, caplog):
        """Calibration keeps its numbers of bins to itself, and its advice that does not fit here."""
        quantize_onnx(exported, [images(8)], method="percentile")

        assert capsys.readouterr() == ("", "")
        assert caplog.messages == []


class TestTargets:
    def test_tensorrt_gets_zero_points_of_zero_and_float_biases(self, exported, model):
        """As its parser demands: int8 everywhere, symmetric, no int32."""
        proto = quantize_onnx(exported, [images(32)], target="tensorrt").model
        points = [array for name, array in stored(proto).items() if "zero_point" in name]

        assert {array.dtype for array in points} == {np.dtype(np.int8)}
        assert not any(array.any() for array in points)
        assert TensorProto.INT32 not in {tensor.data_type for tensor in proto.graph.initializer}
        assert error(proto, model) < 0.05

    def test_arm_gets_signed_activations(self, exported, model):
        """int8 with any zero point."""
        result = quantize_onnx(exported, [images(32)], target="arm")

        assert {layer.inputs for layer in result.layers} == {"int8"}
        assert error(result.model, model) < 0.05


class TestSkip:
    def test_a_skipped_layer_stays_float(self, exported):
        """Its weights are the float ones, the report says why, and all others are integers."""
        result = quantize_onnx(exported, [images(8)], skip=["conv1"])

        assert [layer.name for layer in result.left] == ["conv1"]
        assert result.left[0].why == "skipped on request"
        np.testing.assert_array_equal(stored(result.model)["conv1.weight"], stored(exported)["conv1.weight"])

    def test_an_unknown_name(self, exported):
        """Names near it are listed."""
        with pytest.raises(ValueError, match="skip names 'conv3', and the model has no such layer; near it: conv"):
            quantize_onnx(exported, [images(8)], skip=["conv3"])

    def test_all_layers(self, exported):
        """A technique that touched nothing does not return quietly."""
        with pytest.raises(ValueError, match="quantized no layer"):
            quantize_onnx(exported, [images(8)], skip=LAYERS)


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"target": "riscv"}, "there is no target 'riscv'; choose one of 'x86', 'tensorrt', 'arm'"),
            ({"method": "mean"}, "there is no method 'mean'; choose one of 'minmax', 'entropy', 'percentile'"),
            ({"method": "percentile", "percentile": 0.9999}, "percentile is 0.9999; give more than 50 and at most 100"),
        ],
    )
    def test_unknown_choices(self, exported, options, message):
        """Said before any work, with what there is."""
        with pytest.raises(ValueError, match=message):
            quantize_onnx(exported, [images(8)], **options)

    def test_too_many_images_for_memory(self, exported):
        """Entropy and percentile hold all activations: 513 images are one too many."""
        with pytest.raises(
            ValueError, match="entropy keeps the activations of all images in memory, and 513 are given"
        ):
            quantize_onnx(exported, [images(513)], method="entropy")

    def test_a_quantized_model(self, quantized):
        """Twice is once too often."""
        with pytest.raises(ValueError, match=r"the ONNX model is quantized already \((De)?[Qq]uantizeLinear\)"):
            quantize_onnx(quantized.model, [images(8)])

    def test_images_of_another_size(self, exported):
        """The shape that the model takes is said."""
        with pytest.raises(ValueError, match=r"have shape \[8, 3, 4, 4\]; the model takes \[any, 3, 8, 8\]"):
            quantize_onnx(exported, [images(8)[..., :4, :4]])

    def test_files(self, exported, tmp_path):
        """A missing and a truncated one, each by name."""
        half = tmp_path / "half.onnx"
        half.write_bytes(exported.SerializeToString()[:3000])
        with pytest.raises(ValueError, match=r"half\.onnx is no ONNX model, or is truncated"):
            quantize_onnx(half, [images(8)])
        with pytest.raises(FileNotFoundError, match=r"there is no file .*none\.onnx"):
            quantize_onnx(tmp_path / "none.onnx", [images(8)])
