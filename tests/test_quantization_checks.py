"""What recipes refuse: each refusal says what was given and what to do, and what is usable passes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from deploykit.quantization.checks import calibration_images, check_model, check_runs, dtype_name, is_quantized

IMAGES = torch.zeros(2, 3, 8, 8)


def net() -> nn.Sequential:
    """A convolution and a linear layer, in evaluation mode."""
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 10)).eval()


def integer_linear() -> nn.Module:
    """A layer of torch.ao with int8 weights."""
    return torch.ao.nn.quantized.dynamic.Linear(4, 3)


class TestModel:
    def test_a_float_model_passes(self):
        """A plain model, and one with marks for static quantization in it, are float32 models."""
        check_model(net(), "the recipe")
        marked = nn.Sequential(torch.ao.quantization.QuantStub(), net(), torch.ao.nn.quantized.FloatFunctional())
        check_model(marked.eval(), "the recipe")

    def test_no_module(self):
        """A function is a predictor but has no weights to quantize."""
        with pytest.raises(TypeError, match=r"the recipe takes a torch\.nn\.Module, not function"):
            check_model(lambda images: images, "the recipe")

    def test_training_mode(self):
        """One dropout left in training mode is enough."""
        model = net()
        model.append(nn.Dropout())
        with pytest.raises(ValueError, match=r"Sequential is in training mode, .* call \.eval\(\) before the recipe"):
            check_model(model, "the recipe")

    @pytest.mark.parametrize(("model", "where"), [(integer_linear(), "itself"), (nn.Sequential(integer_linear()), "0")])
    def test_quantized_already(self, model, where):
        """Also when the model is itself the quantized layer."""
        with pytest.raises(ValueError, match=rf"is quantized already \({where}\); the recipe takes the float32 model"):
            check_model(model.eval(), "the recipe")

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_other_dtypes(self, dtype):
        """The parameter and its dtype are named."""
        message = rf"0\.weight is {dtype_name(dtype)}; the recipe takes float32 weights: call \.float\(\) on the model"
        with pytest.raises(ValueError, match=message):
            check_model(net().to(dtype), "the recipe")


class TestIsQuantized:
    @pytest.mark.parametrize(
        "module",
        [
            integer_linear(),
            torch.ao.nn.quantized.QFunctional(),
            torch.ao.quantization.MinMaxObserver(),
            torch.ao.quantization.FakeQuantize(),
            torch.ao.nn.qat.Linear(2, 2, qconfig=torch.ao.quantization.get_default_qat_qconfig()),
        ],
        ids=lambda module: type(module).__name__,
    )
    def test_integers_observers_and_fakes_are(self, module):
        """Whatever torch.ao puts into a model on the way to integers is recognised."""
        assert is_quantized(module)

    def test_torchao_weights_are(self):
        """A layer keeps its class in torchao; its weight is replaced."""
        torchao = pytest.importorskip("torchao.quantization")
        layer = nn.Linear(8, 8)
        torchao.quantize_(layer, torchao.Int8WeightOnlyConfig())

        assert is_quantized(layer)
        assert not is_quantized(nn.Linear(8, 8))


class TestCalibrationImages:
    def test_images_with_and_without_labels(self):
        """Both forms come out as batches of images."""
        found = calibration_images([IMAGES, (IMAGES[:1], torch.tensor([3]))])

        assert [tuple(batch.shape) for batch in found] == [(2, 3, 8, 8), (1, 3, 8, 8)]

    def test_the_test_split_is_refused(self):
        """A set that says it comes from the test split is not looked at."""
        with pytest.raises(ValueError, match=r"calibration was given the test split, which is only for reporting"):
            calibration_images(SimpleNamespace(split="test"))

    @pytest.mark.parametrize(
        ("batches", "message"),
        [
            ([], r"there is no calibration image; a few dozen to a few hundred are usual"),
            ([IMAGES[:0]], r"there is no calibration image"),
            ([IMAGES.double()], r"batch 0 of the calibration images is float64; give float32, normalised as in"),
            ([IMAGES[0]], r"batch 0 of the calibration images has shape \(3, 8, 8\); give \[N, C, H, W\]"),
            ([IMAGES, IMAGES[..., 1:]], r"batch 1 .* has shape \(2, 3, 8, 7\); give \[N, 3, 8, 8\] as the first"),
            ([IMAGES * float("nan")], r"batch 0 of the calibration images has NaN or infinity in it; a scale"),
            ([IMAGES, IMAGES + float("inf")], r"batch 1 of the calibration images has NaN or infinity in it"),
        ],
    )
    def test_what_cannot_calibrate_is_refused(self, batches, message):
        """Nothing, another dtype or shape, NaN: named with the number of the batch."""
        with pytest.raises(ValueError, match=message):
            calibration_images(batches)

    def test_what_is_no_tensor_is_refused(self):
        """A NumPy array or a path is not guessed at."""
        with pytest.raises((TypeError, ValueError), match=r"batch 0 of the calibration images is str; give tensors"):
            calibration_images(["images"])

    def test_large_images_whose_sum_overflows_are_fine(self):
        """The quick check by a sum does not take an overflow for infinity."""
        assert len(calibration_images([torch.full((2, 3, 8, 8), 3e38)])) == 1


def test_a_model_that_cannot_run_says_on_what():
    """The shape of the images and the model's own words are in the message."""
    check_runs(net(), IMAGES)
    with pytest.raises(ValueError, match=r"Sequential cannot process images of shape \(2, 1, 8, 8\): .*channels"):
        check_runs(net(), IMAGES[:, :1])
