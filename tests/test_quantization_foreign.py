"""Models that this project did not write: exported, quantized for ONNX Runtime and OpenVINO, and compared."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import Tensor, nn

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
pytest.importorskip("nncf")
pytest.importorskip("timm")

from deploykit.export import export_onnx
from deploykit.quantization.onnx import quantize_onnx
from deploykit.quantization.openvino import quantize_openvino
from deploykit.runtimes import onnxruntime, openvino


def images(number: int, seed: int) -> Tensor:
    """Draw images, float32 [number, 3, 32, 32]."""
    return torch.randn(number, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def resnet18() -> nn.Module:
    """Build torchvision's."""
    return torchvision.models.resnet18(num_classes=10)


def mobilenet() -> nn.Module:
    """Build torchvision's small MobileNetV3."""
    return torchvision.models.mobilenet_v3_small(num_classes=10)


def vit() -> nn.Module:
    """Build a short ViT that averages its tokens: an untrained class token is so small that 8 bits lose it."""
    import timm

    options = {"img_size": 32, "patch_size": 8, "depth": 2, "class_token": False, "global_pool": "avg"}
    return timm.create_model("vit_tiny_patch16_224", num_classes=10, **options)


@pytest.fixture(scope="module", params=[resnet18, mobilenet, vit])
def foreign(request):
    """Build one with random weights, and export it."""
    torch.manual_seed(0)
    model = request.param().eval()
    return model, export_onnx(model, images(2, seed=0))


def error(predict, model: nn.Module) -> float:
    """Return the root mean square of the difference over that of the logits."""
    with torch.no_grad():
        exact, found = model(images(64, seed=2)), predict(images(64, seed=2))
    return float((found - exact).norm() / exact.norm())


class TestForeignModels:
    def test_the_export_has_the_models_logits(self, foreign):
        """Only rounding differs."""
        model, exported = foreign

        assert error(onnxruntime.load(exported), model) < 1e-4

    def test_onnx_runtime(self, foreign):
        """Every layer with weights becomes integer, and the logits stay near."""
        model, exported = foreign
        result = quantize_onnx(exported, [images(64, seed=1)])

        assert not result.left
        assert error(onnxruntime.load(result.model), model) < 0.15

    def test_openvino(self, foreign):
        """Every layer with weights becomes integer, and the logits stay near."""
        model, exported = foreign
        result = quantize_openvino(exported, [images(64, seed=1)])

        assert not result.left
        if isinstance(model, torchvision.models.MobileNetV3):
            pytest.skip(
                "untrained, its activations vanish (logits near 1e-10), below the smallest range that NNCF sets"
            )
        assert error(openvino.load(result.model), model) < 0.15

    def test_a_module_can_be_left_out(self, foreign):
        """Names are those of torch: the last layer, whatever it is called, stays float."""
        model, exported = foreign
        last = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)][-1]
        result = quantize_onnx(exported, [images(8, seed=1)], skip=[last])

        assert [layer.name for layer in result.left] == [last]
