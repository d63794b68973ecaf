"""Static quantization by PT2E: integers are really there, the logits stay near, and nothing is done in silence."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torchvision
from small_residual import Branching, SmallResidual, images, kernels, state
from torch import nn
from torch.testing import assert_close

pytest.importorskip("torchao")

from deploykit.export import export_onnx
from deploykit.quantization.programs import load_program, save_program
from deploykit.quantization.pt2e import quantize_pt2e
from deploykit.quantization.report import Quantized
from deploykit.runtimes import inductor

LAYERS = ["stem", "conv1", "conv2", "fc"]


class TestSplit(list):
    """Batches of the test split."""

    __test__ = False
    split = "test"


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """A small residual network in evaluation mode."""
    torch.manual_seed(0)
    return SmallResidual().eval()


@pytest.fixture(scope="module", params=["inductor", "portable"])
def quantized(request, model) -> Quantized:
    """It in int8, by each quantizer, calibrated on 64 images."""
    return quantize_pt2e(model, [images(32), images(32, seed=1)], quantizer=request.param)


@pytest.fixture(scope="module")
def portable(model) -> Quantized:
    """It in int8 by the portable quantizer."""
    return quantize_pt2e(model, [images(64)], quantizer="portable")


def error(quantized: Quantized, model: nn.Module) -> float:
    """Compare with the float model on other images: root mean square of the difference over that of the logits."""
    with torch.no_grad():
        exact, found = model(images(64, seed=2)), quantized.model(images(64, seed=2))
    return float((found - exact).square().mean().sqrt() / exact.square().mean().sqrt())


class TestQuantizePT2E:
    def test_all_layers_compute_with_integers(self, quantized):
        """int8 weights and uint8 activations, a row per layer under the module's name."""
        assert [layer.name for layer in quantized.layers] == LAYERS
        assert {(layer.weights, layer.inputs) for layer in quantized.layers} == {("int8", "uint8")}
        assert [layer.kind for layer in quantized.layers] == ["Conv2d", "Conv2d", "Conv2d", "Linear"]
        assert [layer.parameters for layer in quantized.layers] == [216, 576, 576, 32]

    def test_the_graph_holds_the_integers(self, quantized):
        """Four int8 tensors are used in it, and no float weight."""
        graph = quantized.model
        used = [
            graph.get_buffer(n.target)
            for n in graph.graph.find_nodes(op="get_attr")
            if n.target in dict(graph.named_buffers())
        ]

        assert sorted(tensor.numel() for tensor in used if tensor.dtype == torch.int8) == [32, 216, 576, 576]

    def test_the_logits_stay_near(self, quantized, model):
        """8 bits leave an error of a few percent, and not none."""
        assert 1e-4 < error(quantized, model) < 0.05

    def test_the_model_is_not_changed(self, model):
        """Weights, statistics and mode are what they were, bit for bit."""
        before = state(model)

        quantize_pt2e(model, [images(8)], quantizer="portable")

        assert_close(model.state_dict(), before, rtol=0, atol=0)
        assert not model.training

    @pytest.mark.parametrize("quantizer", ["inductor", "portable"])
    def test_skipping_leaves_exactly_that_layer(self, model, quantizer):
        """It keeps its float weights, and the report says on whose wish."""
        quantized = quantize_pt2e(model, [images(8)], quantizer=quantizer, skip=["conv1"])

        assert [layer.name for layer in quantized.left] == ["conv1"]
        assert quantized.left[0].why == "skipped on request"
        assert quantized.left[0].weights == "float32"

    def test_symmetric_activations_are_int8(self, model):
        """TensorRT's form, near the model as well."""
        quantized = quantize_pt2e(model, [images(64)], quantizer="portable", symmetric=True)

        assert {layer.inputs for layer in quantized.layers} == {"int8"}
        assert error(quantized, model) < 0.05

    def test_an_operator_without_a_rule_is_named(self):
        """A transposed convolution stays in float, and the report says why."""
        model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ConvTranspose2d(4, 4, 2)).eval()

        quantized = quantize_pt2e(model, [images(4)], quantizer="portable")

        assert "  1 (ConvTranspose2d) stays in float: the portable quantizer has no rule for conv_transpose2d" in str(
            quantized
        )

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"calibration": []}, "there is no calibration image"),
            ({"calibration": [images(2) / 0]}, "has NaN or infinity in it"),
            ({"calibration": TestSplit([images(2)])}, "was given the test split"),
            ({"calibration": [images(2)[:, :2]]}, "cannot process images of shape"),
            ({"skip": ["conv9"]}, "skip names 'conv9', and the model has no such layer; near it: conv"),
            ({"quantizer": "x86"}, "there is no quantizer 'x86'; choose 'inductor' or 'portable'"),
            ({"symmetric": True}, "the inductor quantizer knows no symmetric activations"),
            ({"model": SmallResidual()}, "SmallResidual is in training mode"),
            ({"model": Branching().eval()}, r"torch\.export cannot follow gate \(Gate\)"),
            ({"model": nn.Sequential(nn.ReLU()).eval()}, "PT2E quantization quantized no layer"),
        ],
    )  # fmt: skip
    def test_what_cannot_work_is_refused(self, model, change, message):
        """Before or after the work, with the reason."""
        with pytest.raises(ValueError, match=message):
            quantize_pt2e(**({"model": model, "calibration": [images(2)]} | change))

    def test_a_quantized_model_is_refused(self, quantized):
        """It is recognised by its operators."""
        with pytest.raises(ValueError, match="GraphModule is quantized already"):
            quantize_pt2e(quantized.model, [images(2)])


class TestForeignModels:
    def test_torchvisions_resnet18_is_quantized_portably(self):
        """All 21 layers; what the library's Inductor quantizer cannot do with it is said, with the way round it."""
        torch.manual_seed(0)
        model, inputs = torchvision.models.resnet18(num_classes=10).eval(), torch.randn(4, 3, 32, 32)

        quantized = quantize_pt2e(model, [inputs], quantizer="portable")

        assert len(quantized.changed) == 21
        with torch.no_grad():
            together = torch.stack([quantized.model(inputs).flatten(), model(inputs).flatten()])
        assert torch.corrcoef(together)[0, 1] > 0.98
        with pytest.raises(
            ValueError, match=r"inductor quantizer cannot place integers in ResNet .*quantizer='portable'"
        ):
            quantize_pt2e(model, [inputs])


class TestInRuntimes:
    def test_onnx_runtime_runs_it_in_integers(self, portable, tmp_path):
        """All convolutions and the sum are integer kernels, none is a float one, and the logits agree."""
        inputs = images(16, seed=3)

        ran, logits = kernels(export_onnx(portable.model, inputs), inputs, tmp_path)

        assert (ran.count("QLinearConv"), ran.count("QLinearAdd")) == (3, 1)
        assert not {"Conv", "FusedConv", "Add"} & set(ran)
        assert_close(logits, portable.model(inputs).detach(), rtol=0.05, atol=0.05)

    def test_the_compiled_form_agrees_for_every_batch_size(self, portable):
        """What comes out for other sizes, with and without inference mode, is the graph's answer."""
        predict = inductor.load(portable.model)

        for number in (8, 3, 1):
            assert_close(predict(images(number)), portable.model(images(number)).detach(), rtol=0.05, atol=0.05)
        with torch.inference_mode():
            assert predict(images(8)).shape == (8, 4)

    def test_a_package_computes_in_integers(self, portable, tmp_path):
        """Compiled ahead of time: every convolution and the linear layer is an int8 kernel, for any batch size."""
        package = inductor.save(portable.model, tmp_path / "model.pt2", images=images(4))

        predict = inductor.load(package)

        census = inductor.kernels(predict, images(4)).query("precision == 'int8'")
        assert census["count"].sum() == len(LAYERS)
        assert_close(predict(images(5)), portable.model(images(5)).detach(), rtol=0.05, atol=0.05)


class TestPrograms:
    def test_a_fresh_process_gives_the_same_logits(self, portable, tmp_path):
        """Bit for bit, for another batch size than it was saved with."""
        sha256 = save_program(portable, tmp_path / "model.pt2", images(4))
        torch.save(images(5), tmp_path / "images.pt")
        code = f"""
import torch
from deploykit.quantization.programs import load_program
model = load_program(r"{tmp_path / "model.pt2"}", sha256="{sha256}")
torch.save(model(torch.load(r"{tmp_path / "images.pt"}")), r"{tmp_path / "logits.pt"}")
"""
        subprocess.run([sys.executable, "-c", code], check=True, timeout=600)

        assert torch.equal(torch.load(tmp_path / "logits.pt"), portable.model(images(5)))

    def test_the_file_holds_no_float_weight_and_no_path(self, portable, tmp_path):
        """Cleaned: neither the names of source files nor the float weights that conversion leaves behind."""
        sha256 = save_program(portable, tmp_path / "model.pt2", images(4))

        content = (tmp_path / "model.pt2").read_bytes()
        loaded = load_program(tmp_path / "model.pt2", sha256=sha256)
        assert b"small_residual.py" not in content
        assert not [
            name for name, value in loaded.state_dict().items() if value.is_floating_point() and value.ndim == 4
        ]

    def test_a_file_that_nobody_vouches_for_is_refused(self, tmp_path):
        """Its hash is compared before anything in it is read."""
        (tmp_path / "model.pt2").write_bytes(b"from elsewhere")

        with pytest.raises(ValueError, match=r"is not the file that was saved \(its SHA-256 differs\)"):
            load_program(tmp_path / "model.pt2", sha256="0" * 64)
