"""The same ONNX model in a smaller float type: half of the bytes, nearly the logits, float32 outside."""

from __future__ import annotations

import onnx
import pytest
import torch
from small_residual import SmallResidual, images
from torch import nn

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from deploykit.export import convert_precision, export_onnx
from deploykit.quantization.onnx import quantize_onnx
from deploykit.runtimes import onnxruntime


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """A small residual network in evaluation mode."""
    torch.manual_seed(0)
    return SmallResidual().eval()


@pytest.fixture(scope="module")
def exported(model):
    """It as ONNX, in the opset that bfloat16 needs."""
    return export_onnx(model, images(2), opset=22)


def types_of(proto) -> set[str]:
    """Return the types of all weights that are floating point."""
    name = onnx.TensorProto.DataType.Name
    return {name(tensor.data_type) for tensor in proto.graph.initializer} - {"INT64", "INT32"}


def outer_types(proto) -> list[int]:
    """Return the element types of input and output."""
    return [value.type.tensor_type.elem_type for value in (*proto.graph.input, *proto.graph.output)]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
class TestEachType:
    def test_weights_are_of_the_type_and_the_outside_is_not(self, exported, dtype):
        """Every float weight is smaller; callers give and get float32 as before, and the original is as it was."""
        before = exported.SerializeToString()
        converted = convert_precision(exported, dtype)

        assert types_of(converted) == {dtype.upper()}
        assert outer_types(converted) == [onnx.TensorProto.FLOAT] * 2
        assert exported.SerializeToString() == before

    def test_the_weights_are_those_that_torch_rounds_to(self, model, exported, dtype):
        """To the nearest, ties to even: not cut off, and nothing clipped that the type can hold."""
        converted = convert_precision(exported, dtype)
        found = next(tensor for tensor in converted.graph.initializer if "fc.weight" in tensor.name)
        wanted = model.fc.weight.detach().to(getattr(torch, dtype)).float()

        assert torch.equal(torch.from_numpy(onnx.numpy_helper.to_array(found).astype("float32")), wanted)


class TestFloat16:
    def test_the_logits_are_near(self, model, exported):
        """11 bits of each number: an error of a tenth of a percent, and not none."""
        with torch.no_grad():
            exact = model(images(64))
        found = onnxruntime.load(convert_precision(exported, "float16"))(images(64))

        assert 1e-6 < float((found - exact).norm() / exact.norm()) < 5e-3

    def test_a_large_weight_is_not_clipped(self):
        """60,000 fits into float16; a converter of another library makes 10,000 of it."""
        model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2)).eval()
        with torch.no_grad():
            model[1].weight.fill_(60_000)
        converted = convert_precision(export_onnx(model, torch.zeros(2, 3, 2, 2)), "float16")
        values = [onnx.numpy_helper.to_array(tensor).max() for tensor in converted.graph.initializer]

        assert 59_900 < max(map(float, values)) < 60_100


class TestBfloat16:
    def test_the_logits_are_those_of_weights_with_eight_bits(self, model, exported):
        """Reference: ONNX's own evaluator, operator by operator in NumPy."""
        converted = convert_precision(exported, "bfloat16")
        (logits,) = onnx.reference.ReferenceEvaluator(converted).run(None, {"images": images(8).numpy()})
        with torch.no_grad():
            exact = model(images(8))

        assert 1e-4 < float((torch.from_numpy(logits) - exact).norm() / exact.norm()) < 5e-2


class TestRefusals:
    def test_an_unknown_type(self, exported):
        """Those there are are listed."""
        with pytest.raises(ValueError, match="dtype is 'float8'; choose one of 'float16', 'bfloat16'"):
            convert_precision(exported, "float8")

    def test_a_quantized_model(self, exported):
        """Integers are smaller than any float."""
        with pytest.raises(ValueError, match=r"the model is quantized already .*convert the float32 model"):
            convert_precision(quantize_onnx(exported, [images(8)]).model, "float16")

    def test_a_model_that_is_small_already(self, exported):
        """Twice is once too often."""
        with pytest.raises(ValueError, match="is not float32; convert the float32 model"):
            convert_precision(convert_precision(exported, "float16"), "float16")

    def test_bfloat16_in_an_older_opset(self, model):
        """ONNX's rules allow it for a convolution since opset 22 only; the remedy is said."""
        with pytest.raises(ValueError, match=r"the model is of opset 20, .*export it with opset=22"):
            convert_precision(export_onnx(model, images(2)), "bfloat16")
