"""One call, three runtimes: each gives integers in every layer, the model's answers, and the same refusals."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from deploykit.models import resnet
from deploykit.static_quantization import BACKENDS, quantize_static


@pytest.fixture
def model() -> nn.Module:
    """A ResNet-8 with random weights, in evaluation mode."""
    torch.manual_seed(0)
    return resnet(8).eval()


@pytest.fixture
def images() -> Tensor:
    """Images, float32 [16, 3, 32, 32]."""
    return torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("backend", BACKENDS)
class TestEveryBackend:
    def test_every_layer_is_reported_and_the_skipped_one_left(self, model, images, backend):
        """Names are the model's own, whatever the backend calls them; the model itself stays as it was."""
        before = {name: value.clone() for name, value in model.state_dict().items()}
        quantized = quantize_static(model, [images], backend=backend, skip=["blocks.1.conv2"])

        layers = {name for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)}
        assert {layer.name for layer in quantized.layers} == layers
        assert {layer.name for layer in quantized.left} == {"blocks.1.conv2"}
        assert_close(model.state_dict(), before, rtol=0, atol=0)

    def test_an_unknown_layer_is_named(self, model, images, backend):
        """A misspelt name would otherwise quantize what was to be left."""
        with pytest.raises(ValueError, match=r"blocks\.1\.conv3"):
            quantize_static(model, [images], backend=backend, skip=["blocks.1.conv3"])

    def test_what_cannot_be_quantized_is_refused(self, model, images, backend):
        """Training mode, no image, NaN, the wrong shape and float64, before any work."""
        nan = torch.full_like(images, torch.nan)
        for given, calibration, message in [
            (resnet(8), [images], "is in training mode"),
            (model, [], "there is no calibration image"),
            (model, [nan], "has NaN or infinity in it"),
            (model, [images[:, :2]], r"cannot process images of shape \(16, 2, 32, 32\)"),
            (model, [images.double()], "is float64; give float32"),
            (resnet(8).eval().half(), [images], "is float16; quantize_static takes float32 weights"),
        ]:
            with pytest.raises(ValueError, match=message):
                quantize_static(given, calibration, backend=backend)


def test_an_unknown_backend_is_told_those_there_are(model, images):
    """By name."""
    with pytest.raises(ValueError, match="there is no backend 'tflite'; choose one of 'inductor', 'onnxruntime', 'op"):
        quantize_static(model, [images], backend="tflite")
