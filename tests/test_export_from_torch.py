"""Export to ONNX: the model's logits for any batch size, readable names, no machine's paths, and failures by name."""

from __future__ import annotations

import pytest
import torch
from small_residual import Branching, SmallResidual, images
from torch import Tensor, nn
from torch.testing import assert_close

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

from deploykit.export import OPSET, export_onnx
from deploykit.models.row_lstm import RowLSTM, RowLSTMConfig


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """A small residual network in evaluation mode."""
    torch.manual_seed(0)
    return SmallResidual().eval()


@pytest.fixture(scope="module")
def exported(model):
    """It as ONNX."""
    return export_onnx(model, images(1))


def run(proto, batch: Tensor) -> Tensor:
    """Compute the logits in ONNX Runtime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["logits"], {"images": batch.numpy()})[0])


class TestExport:
    @pytest.mark.parametrize("size", [1, 3, 64])
    def test_the_logits_are_the_models(self, model, exported, size):
        """An example of one image makes a model for any number."""
        assert_close(run(exported, images(size)), model(images(size)).detach(), rtol=1e-4, atol=1e-5)

    def test_batch_norm_is_part_of_the_convolutions(self, exported):
        """Three convolutions, none of the three batch norms, and names as in the module."""
        names = [node.name for node in exported.graph.node]

        assert names[:4] == ["stem/Conv", "Relu", "conv1/Conv", "Relu_2"]
        assert {"conv2/Conv", "pool/MaxPool", "fc/Gemm"} < set(names)
        assert not any("Norm" in node.op_type for node in exported.graph.node)

    def test_weights_are_inside_and_notes_are_not(self, exported):
        """No source file is named in it, and it is hardly larger than its 1,412 float32 weights and biases."""
        content = exported.SerializeToString()

        assert b".py" not in content
        assert 4 * 1412 < len(content) < 4 * 1412 + 2500

    def test_the_opset_is_the_one_that_is_said(self, exported):
        """The exporter would go its own way without a word."""
        assert [(opset.domain, opset.version) for opset in exported.opset_import] == [("", OPSET)]

    def test_the_model_is_not_changed(self, model):
        """Weights and statistics stay as they are."""
        before = {name: value.clone() for name, value in model.state_dict().items()}
        export_onnx(model, images(2))

        assert_close(model.state_dict(), before, rtol=0, atol=0)

    def test_an_lstm_is_exported_without_a_warning(self, recwarn):
        """Its nodes compute what torch computes, for batches of 1 and 5."""
        torch.manual_seed(0)
        model = RowLSTM(RowLSTMConfig(hidden=16)).eval()
        proto = export_onnx(model, torch.randn(2, 3, 32, 32))

        assert [node.op_type for node in proto.graph.node].count("LSTM") == 2
        assert not [str(warning.message) for warning in recwarn if "removed" in str(warning.message)]
        for batch in (torch.randn(1, 3, 32, 32), torch.randn(5, 3, 32, 32)):
            assert_close(run(proto, batch), model(batch).detach(), rtol=1e-4, atol=1e-5)


class TestRefusals:
    def test_training_mode(self):
        """Batch norm would be exported with the statistics of a batch."""
        with pytest.raises(ValueError, match=r"SmallResidual is in training mode.*call \.eval\(\) before export_onnx"):
            export_onnx(SmallResidual(), images(2))

    def test_a_branch_on_values(self):
        """The module in which the export stopped is named, and why."""
        with pytest.raises(ValueError, match=r"^gate \(Gate\) cannot be exported to ONNX: Could not guard on data"):
            export_onnx(Branching().eval(), images(2))

    def test_a_batch_size_written_into_the_model(self):
        """The exporter alone would return a model for two images and say nothing."""

        class Fixed(nn.Module):
            def forward(self, images: Tensor) -> Tensor:
                return images.reshape(int(images.shape[0]), 192)

        with pytest.raises(ValueError, match="Fixed was exported for batches of 2 only: somewhere it takes the batch"):
            export_onnx(Fixed().eval(), images(2))

    def test_an_opset_that_the_exporter_cannot_write(self, model):
        """For 17 it would print a traceback, return 18 and raise nothing; 18 is what it says when 18 is asked for."""
        with pytest.raises(ValueError, match="opset is 17; torch's exporter writes 18 to 23"):
            export_onnx(model, images(2), opset=17)

        assert export_onnx(model, images(2), opset=18).opset_import[0].version == 18

    def test_images_of_another_kind(self, model):
        """float64 or three dimensions: said before the exporter starts."""
        with pytest.raises(ValueError, match=r"the example images are float64 \[2, 3, 8, 8\]; give float32"):
            export_onnx(model, images(2).double())
        with pytest.raises(ValueError, match=r"the example images are float32 \[3, 8, 8\]; give"):
            export_onnx(model, images(2)[0])
