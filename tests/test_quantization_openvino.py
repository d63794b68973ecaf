"""Static quantization for OpenVINO by NNCF: the integers are real, layers can be left out, and nothing is silent."""

from __future__ import annotations

import io
import subprocess
import sys

import pytest
import torch
from small_residual import SmallResidual, images
from torch import nn

pytest.importorskip("onnxscript")
pytest.importorskip("openvino")
pytest.importorskip("nncf")

from deploykit.export import export_onnx
from deploykit.models.row_lstm import RowLSTM, RowLSTMConfig
from deploykit.quantization.openvino import quantize_openvino
from deploykit.quantization.report import Quantized
from deploykit.runtimes import openvino

LAYERS = ["stem", "conv1", "conv2", "fc"]


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """A small residual network in evaluation mode."""
    torch.manual_seed(0)
    return SmallResidual().eval()


@pytest.fixture(scope="module")
def exported(model):
    """It as ONNX."""
    return export_onnx(model, images(2))


@pytest.fixture(scope="module")
def quantized(exported) -> Quantized:
    """It in int8, calibrated on 64 images."""
    return quantize_openvino(exported, [images(40), images(24, seed=1)])


def error(quantized: Quantized, model: nn.Module) -> float:
    """Compare with the float model on other images: root mean square of the difference over that of the logits."""
    with torch.no_grad():
        exact, found = model(images(64, seed=2)), openvino.load(quantized.model)(images(64, seed=2))
    return float((found - exact).square().mean().sqrt() / exact.square().mean().sqrt())


def constants(model) -> list[tuple[float, ...]]:
    """Return the float constants of a few numbers: biases, scales and ends of ranges."""
    found = [op for op in model.get_ops() if op.get_type_name() == "Constant" and op.get_element_type().is_real()]
    return sorted(tuple(op.data.ravel().tolist()) for op in found if op.data.size <= 32)


class TestCalibration:
    def test_a_range_reaches_to_the_extremes(self, model, exported):
        """One image of larger values among many sets the scale of the images, as a mean over images would not."""
        calm, loud = images(31) / 10, images(1, seed=1) * 3
        quantized = quantize_openvino(exported, [calm, loud])

        (first,) = [
            op for op in quantized.model.get_ops()
            if op.get_type_name() == "FakeQuantize" and op.input_value(0).get_node().get_type_name() == "Parameter"
        ]  # fmt: skip
        low, high = (float(first.input_value(port).get_node().data.ravel()[0]) for port in (1, 2))
        assert max(-low, high) == pytest.approx(float(loud.abs().max()), rel=0.02)

    def test_biases_are_corrected_on_request_only(self, exported, quantized):
        """By itself no bias is moved."""
        corrected = quantize_openvino(exported, [images(40), images(24, seed=1)], correct_biases=True)

        assert constants(corrected.model) != constants(quantized.model)


class TestIntegers:
    def test_every_layer_is_in_the_report(self, quantized):
        """int8 weights and integer activations under the names that the layers have in torch."""
        assert [layer.name for layer in quantized.layers] == LAYERS
        assert {layer.weights for layer in quantized.layers} == {"int8"}
        assert [layer.inputs for layer in quantized.layers] == ["int8", "uint8", "uint8", "uint8"]
        assert [layer.parameters for layer in quantized.layers] == [216, 576, 576, 32]

    def test_integer_kernels_run(self, quantized):
        """OpenVINO's own account: each convolution and the linear layer take 8-bit integers."""
        census = openvino.kernels(openvino.load(quantized.model), images(4))
        layers = census[census["operator"].isin(["Convolution", "FullyConnected"])]

        assert layers["count"].sum() == len(LAYERS)
        assert set(layers["precision"]) <= {"uint8", "int8"}

    def test_the_logits_stay_near(self, quantized, model):
        """8 bits leave an error of a few percent, and not none."""
        assert 1e-4 < error(quantized, model) < 0.06

    def test_a_file_is_taken_as_well(self, exported, model, tmp_path):
        """It leads to the same layers and near logits."""
        exported_file = tmp_path / "model.onnx"
        exported_file.write_bytes(exported.SerializeToString())
        result = quantize_openvino(exported_file, [images(32)])

        assert [layer.name for layer in result.changed] == LAYERS
        assert error(result, model) < 0.06

    def test_an_openvino_model_is_not_changed(self, exported):
        """It is copied: afterwards there is no quantizer in it."""
        source = openvino.import_openvino().convert_model(io.BytesIO(exported.SerializeToString()))
        quantize_openvino(source, [images(8)])

        assert "FakeQuantize" not in {operation.get_type_name() for operation in source.get_ops()}

    def test_nothing_is_printed(self, exported, capfd):
        """No progress bar, no remark."""
        quantize_openvino(exported, [images(8)])

        assert capfd.readouterr() == ("", "")


class TestSkip:
    def test_a_skipped_layer_stays_float(self, exported):
        """The report says so, and so does the runtime: one convolution computes in float32."""
        result = quantize_openvino(exported, [images(16)], skip=["conv1"])
        census = openvino.kernels(openvino.load(result.model), images(4))
        floats = census[(census["operator"] == "Convolution") & (census["precision"] == "float32")]

        assert [(layer.name, layer.why) for layer in result.left] == [("conv1", "skipped on request")]
        assert floats["count"].sum() == 1

    def test_an_unknown_name(self, exported):
        """Names near it are listed."""
        with pytest.raises(ValueError, match="skip names 'conv3', and the model has no such layer; near it: conv"):
            quantize_openvino(exported, [images(8)], skip=["conv3"])

    def test_all_layers(self, exported):
        """A technique that touched nothing does not return quietly."""
        with pytest.raises(ValueError, match=r"OpenVINO \(NNCF\) quantized no layer"):
            quantize_openvino(exported, [images(8)], skip=LAYERS)


class TestRecurrentLayers:
    def test_they_stay_float_and_the_report_says_so(self):
        """As NNCF quantizes an LSTM the logits are lost; the linear layer after it is quantized, and they stay near."""
        torch.manual_seed(0)
        model, batch = RowLSTM(RowLSTMConfig(hidden=16)).eval(), torch.randn(16, 3, 32, 32)
        result = quantize_openvino(export_onnx(model, batch), [batch])
        with torch.no_grad():
            exact = model(batch)

        assert [layer.kind for layer in result.left] == ["LSTMSequence", "LSTMSequence"]
        assert [layer.name for layer in result.changed] == ["fc"]
        assert float((openvino.load(result.model)(batch) - exact).norm() / exact.norm()) < 0.05


class TestRefusals:
    def test_a_quantized_model(self, quantized):
        """Twice is once too often."""
        with pytest.raises(ValueError, match="the model is quantized already; quantize_openvino takes the float32"):
            quantize_openvino(quantized.model, [images(8)])

    def test_images_of_another_size(self, exported):
        """The shape that the model takes is said."""
        with pytest.raises(ValueError, match=r"have shape \[8, 3, 4, 4\]; the model takes \[\?,3,8,8\]"):
            quantize_openvino(exported, [images(8)[..., :4, :4]])

    def test_other_kinds_of_models(self, tmp_path):
        """A number, a missing file and a file that is no model."""
        (tmp_path / "text.onnx").write_text("no model")
        with pytest.raises(TypeError, match="takes a path, an ONNX or OpenVINO model, not int; export_onnx"):
            quantize_openvino(3, [images(8)])
        with pytest.raises(FileNotFoundError, match=r"there is no file .*none\.onnx"):
            quantize_openvino(tmp_path / "none.onnx", [images(8)])
        with pytest.raises(ValueError, match="OpenVINO cannot read the model; is it whole"):
            quantize_openvino(tmp_path / "text.onnx", [images(8)])


class TestSignals:
    @pytest.mark.parametrize("first", ["quantize", "load"])
    def test_ctrl_c_still_interrupts(self, exported, tmp_path, first):
        """Models that come and go leave no signal stack behind that is gone: Python's handler is reached."""
        (tmp_path / "model.onnx").write_bytes(exported.SerializeToString())
        code = f"""
import gc, os, signal, torch
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell ignores Ctrl-C
from deploykit.quantization.openvino import quantize_openvino
from deploykit.runtimes import openvino
images, path = torch.randn(8, 3, 8, 8), r"{tmp_path / "model.onnx"}"
work = {{
    "load": lambda: openvino.kernels(openvino.load(path), images),
    "quantize": lambda: openvino.kernels(openvino.load(quantize_openvino(path, [images]).model), images),
}}
for name in ("{first}", "quantize", "load", "quantize"):
    work[name]()
    gc.collect()
    try:
        os.kill(os.getpid(), signal.SIGINT)
        raise SystemExit("no interruption")
    except KeyboardInterrupt:
        pass
"""
        subprocess.run([sys.executable, "-X", "faulthandler", "-c", code], check=True, timeout=300)
