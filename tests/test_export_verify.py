"""verify_onnx: passes what is the model, and raises for every way in which a file is not."""

from __future__ import annotations

import copy

import pytest
import torch
from small_residual import SmallResidual, images
from torch import Tensor, nn

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from deploykit.export import convert_precision, export_onnx, load_onnx, verify_onnx


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """A small residual network in evaluation mode."""
    torch.manual_seed(0)
    return SmallResidual().eval()


@pytest.fixture(scope="module")
def exported(model):
    """It as ONNX."""
    return export_onnx(model, images(2))


class TestWhatIsTheModel:
    def test_it_is_said_with_figures(self, model, exported, tmp_path):
        """Largest error, agreement, batch sizes, opset and size, from a file; labels beside the images are allowed."""
        path = tmp_path / "model.onnx"
        path.write_bytes(exported.SerializeToString())
        found = verify_onnx(model, path, [(images(8), torch.zeros(8)), (images(5, seed=1), torch.zeros(5))])

        assert (found.images, found.batch_sizes, found.opset) == (13, (1, 3, 5, 8), 20)
        assert 0 < found.max_error < 1e-5
        assert found.agreement == 1
        assert found.size_bytes == path.stat().st_size
        assert str(found).startswith("13 images, batches of 1, 3, 5, 8: logits differ by up to ")

    def test_the_error_is_the_largest_of_all(self, model, exported):
        """Reference: the last bias is raised by 0.25, and so is each logit of one class."""
        raised = copy.deepcopy(model)
        with torch.no_grad():
            raised.fc.bias[2] += 0.25
            changed = float((raised(images(40)).argmax(1) != model(images(40)).argmax(1)).float().mean())
        found = verify_onnx(raised, exported, [images(40)], tolerance=None)

        assert found.max_error == pytest.approx(0.25, abs=1e-5)
        assert found.agreement == pytest.approx(1 - changed)


class TestWhatIsNot:
    def test_another_model(self, exported):
        """The same network with other weights: figures, the tolerance, and what to do."""
        torch.manual_seed(1)
        with pytest.raises(ValueError, match=r"the file is not the model: 16 images.*Accepted are 1\.0e-04"):
            verify_onnx(SmallResidual().eval(), exported, [images(16)])

    def test_another_precision_unless_it_is_meant(self, model, exported):
        """float16 is refused at the tolerance of float32, and reported where asked for."""
        small = convert_precision(exported, "float16")
        with pytest.raises(ValueError, match="tolerance=None where a difference is meant"):
            verify_onnx(model, small, [images(16)])

        assert verify_onnx(model, small, [images(16)], tolerance=None).max_error > 1e-4

    def test_logits_that_are_no_numbers(self, model, exported):
        """NaN is infinitely far from any number."""
        broken = load_onnx(exported)
        bias = next(tensor for tensor in broken.graph.initializer if tensor.name.endswith("fc.bias"))
        bias.raw_data = torch.full((4,), torch.nan).numpy().tobytes()

        with pytest.raises(ValueError, match="logits differ by up to inf"):
            verify_onnx(model, broken, [images(4)])

    def test_a_fixed_batch_size(self, model):
        """A file for batches of four is found out by batches of one, also when four are all that is asked for."""
        program = torch.onnx.export(model, (images(4),), dynamo=True, verbose=False)
        with pytest.raises(ValueError, match=r"the model cannot compute images of shape \[1, 3, 8, 8\]"):
            verify_onnx(model, program.model_proto, [images(4)])

    def test_an_operator_that_the_runtime_does_not_know(self, model, exported):
        """The runtime's words name it."""
        foreign = load_onnx(exported)
        foreign.opset_import.add(domain="their.own", version=1)
        foreign.graph.node[1].op_type, foreign.graph.node[1].domain = "Secret", "their.own"

        with pytest.raises(ValueError, match=r"ONNX Runtime cannot load the model: .*Secret"):
            verify_onnx(model, foreign, [images(4)])

    def test_another_number_of_classes(self, exported):
        """Shapes are compared before values."""

        class Cut(SmallResidual):
            def forward(self, given: Tensor) -> Tensor:
                return super().forward(given)[:, :3]

        with pytest.raises(ValueError, match=r"the file returns \[1, 4\] where the model returns \[1, 3\]"):
            verify_onnx(Cut().eval(), exported, [images(4)])

    def test_training_mode_and_no_image(self, model, exported):
        """Said before anything is loaded, and after nothing was compared."""
        with pytest.raises(ValueError, match=r"SmallResidual is in training mode; call \.eval\(\)"):
            verify_onnx(SmallResidual(), exported, [images(4)])
        with pytest.raises(ValueError, match="there is no image to compare"):
            verify_onnx(model, exported, [])
