"""Sensitivity: one layer at a time is made coarse as by hand, the others stay exact, and nothing is left behind."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from deploykit.models import resnet
from deploykit.quantization.sensitivity import fake_quantized_input, fake_quantized_weight, sensitivity


class Source(list[tuple[Tensor, Tensor]]):
    """Batches that say what they were drawn from."""

    def __init__(self, split: str, *batches: tuple[Tensor, Tensor]) -> None:
        super().__init__(batches)
        self.split = split


@pytest.fixture(autouse=True)
def same_weights() -> None:
    """Every test draws the same random networks."""
    torch.manual_seed(0)


@pytest.fixture
def batches() -> list[tuple[Tensor, Tensor]]:
    """Two batches of images, float32 [8, 3, 32, 32], with labels."""
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(8, 3, 32, 32, generator=generator), torch.randint(10, (8,), generator=generator)) for _ in range(2)
    ]


class TestRounding:
    def test_weights_by_hand(self):
        """With 3 bits, -3 to 3: a row up to 0.6 has steps of 0.2, a row up to 3 has steps of 1, ties go to even."""
        weight = torch.tensor([[0.6, -0.31, 0.11], [-3.0, 1.4, 0.5]])

        rounded = fake_quantized_weight(weight, 3)

        assert_close(rounded, torch.tensor([[0.6, -0.4, 0.2], [-3.0, 1.0, 0.0]]))

    def test_inputs_by_hand(self):
        """With 2 bits over -1 to 2: the levels are -1, 0, 1, 2, and what lies outside is cut."""
        values = torch.tensor([-5.0, -0.6, 0.4, 1.6, 9.0])

        assert_close(fake_quantized_input(values, -1, 2, 2), torch.tensor([-1.0, -1.0, 0.0, 2.0, 2.0]))

    def test_zero_stays_exact(self):
        """Padding is made of zeros: a range that leaves it out is widened, and an empty one changes nothing."""
        assert fake_quantized_input(torch.zeros(1), 3, 7, 8).item() == 0
        assert fake_quantized_input(torch.zeros(1), -0.3, 1.1, 4).item() == 0
        assert fake_quantized_input(torch.zeros(1), 0, 0, 8).item() == 0

    def test_a_channel_of_zeros_stays(self):
        """A scale of 0 would make NaN of it."""
        assert_close(fake_quantized_weight(torch.zeros(2, 3), 8), torch.zeros(2, 3))


class TestSensitivity:
    def test_one_layer_by_hand(self):
        """A network of one layer: the error of the logits is that of its rounded weights and inputs."""
        model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False)).eval()
        model[1].weight.data = torch.tensor([[0.7, -0.2, 0.1, 0.3], [1.4, 0.6, -1.0, 0.2]])
        images, labels = torch.tensor([[[[0.0, 1.5, 0.4, 0.9]]]]), torch.tensor([0])
        # 4 bits: steps of 0.1 and 0.2 for the weights, which are exact; steps of 0.1 for inputs from 0 to 1.5: exact.
        # 2 bits: weights -1, 0, 1 times 0.7 and 1.4; inputs 0, 0.5, 1, 1.5.
        coarse = torch.tensor([[0.7, 0, 0, 0], [1.4, 0, -1.4, 0]]) @ torch.tensor([0, 1.5, 0.5, 1.0])
        exact = model(images)[0].detach()
        noise = (exact - coarse).double()

        fine = sensitivity(model, [images], [(images, labels)], weight_bits=4, activation_bits=4)
        found = sensitivity(model, [images], [(images, labels)], weight_bits=2, activation_bits=2)

        assert fine["sqnr_db"].item() > 100
        assert found["sqnr_db"].item() == pytest.approx(
            10 * math.log10(exact.double().square().sum() / noise.square().sum())
        )

    def test_each_layer_has_a_row_and_fewer_bits_cost_more(self, batches):
        """The ten layers of ResNet-8, by their names; 3 bits are worse than 8 for every one of them."""
        model = resnet(8).eval()

        eight, three = (sensitivity(model, batches, batches, weight_bits=b, activation_bits=b) for b in (8, 3))

        assert list(eight["layer"]) == [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        assert (eight["sqnr_db"] > three["sqnr_db"] + 15).all()
        assert (eight["sqnr_db"] < 80).all()

    def test_the_other_layers_stay_exact(self, batches):
        """The last row is what rounding the last layer alone does, not what the layers before it left behind."""
        model = resnet(8).eval()
        images = torch.cat([images for images, _ in batches])
        with torch.no_grad():
            features = nn.Sequential(*list(model.children())[:-1])(images).mean(dim=(2, 3))
            weight = fake_quantized_weight(model.fc.weight, 4)
            inputs = fake_quantized_input(features, float(features.min()), float(features.max()), 4)
            exact, coarse = model(images).double(), (inputs @ weight.T + model.fc.bias).double()
        by_hand = 10 * math.log10(exact.square().sum() / (exact - coarse).square().sum())

        found = sensitivity(model, batches, batches, weight_bits=4, activation_bits=4)

        assert found["sqnr_db"].iloc[-1] == pytest.approx(by_hand, abs=0.01)

    def test_accuracy_is_counted_against_the_labels(self):
        """Labels that are the network's own answers: what it loses is what it no longer agrees on."""
        model, images = nn.Sequential(nn.Flatten(), nn.Linear(12, 10)).eval(), torch.randn(64, 3, 2, 2)
        with torch.no_grad():
            answers = model(images).argmax(1)

        found = sensitivity(model, [images], [(images, answers)], weight_bits=2, activation_bits=2)

        assert 0 < found["agreement"].item() < 1
        assert found["accuracy_drop"].item() == pytest.approx(100 * (1 - found["agreement"].item()))

    def test_the_model_is_not_changed(self, batches):
        """Not a weight, and no hook stays."""
        model = resnet(8).eval()
        before = {name: value.clone() for name, value in model.state_dict().items()}

        sensitivity(model, batches, batches)

        assert_close(model.state_dict(), before, rtol=0, atol=0)
        assert not any(module._forward_pre_hooks for module in model.modules())

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"model": resnet(8)}, "is in training mode"),
            ({"model": nn.Sequential(nn.Flatten()).eval()}, "has no convolution and no linear layer"),
            ({"calibration": []}, "there is no calibration image"),
            (
                {"validation": Source("test", (torch.zeros(1, 3, 32, 32), torch.zeros(1)))},
                "validation was given the test",
            ),
            ({"validation": [torch.zeros(1, 3, 32, 32)]}, "validation needs pairs of images and labels"),
            ({"weight_bits": 1}, "weight_bits is 1; choose a whole number from 2 to 8"),
            ({"activation_bits": 9}, "activation_bits is 9; choose a whole number from 2 to 8"),
        ],
    )
    def test_what_cannot_be_measured_is_refused(self, batches, change, message):
        """Before any work, with what was given and what is needed."""
        given = {"model": resnet(8).eval(), "calibration": batches, "validation": batches} | change

        with pytest.raises(ValueError, match=message):
            sensitivity(given.pop("model"), given.pop("calibration"), given.pop("validation"), **given)
