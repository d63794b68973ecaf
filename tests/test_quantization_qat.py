"""Quantization-aware training through the ordinary loop: it trains, freezes, converts and runs in integers."""

from __future__ import annotations

import copy

import pytest
import torch
from small_residual import Branching, SmallResidual, images, kernels, state
from torch import Tensor, nn
from torch.testing import assert_close

pytest.importorskip("torchao")

from torchao.quantization.pt2e import FakeQuantize

from deploykit.data import Batches, Dataset, Split
from deploykit.export import export_onnx
from deploykit.quantization.qat import convert_qat, freeze_batchnorm, freeze_observers, prepare_qat
from deploykit.quantization.report import Quantized
from deploykit.training import evaluate, fit, sgd


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """A small residual network in evaluation mode."""
    torch.manual_seed(0)
    return SmallResidual().eval()


@pytest.fixture(scope="module")
def as_prepared(model) -> nn.Module:
    """It with fake quantization, ranges from 64 images; to be copied, not trained."""
    return prepare_qat(model, images(64))


@pytest.fixture
def prepared(as_prepared) -> nn.Module:
    """A copy of it for one test."""
    return copy.deepcopy(as_prepared)


@pytest.fixture(scope="module")
def trained(as_prepared) -> nn.Module:
    """It after three steps; not to be changed."""
    return train(copy.deepcopy(as_prepared))


@pytest.fixture(scope="module")
def before_conversion(trained) -> dict[str, Tensor]:
    """What it holds before it is converted."""
    return state(trained)


@pytest.fixture(scope="module")
def converted(trained, before_conversion) -> Quantized:
    """Its int8 form."""
    return convert_qat(trained)


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    """64 pictures of 8x8 pixels, a bright channel per class: learnable in a few steps."""
    pixels = torch.randint(0, 80, (64, 8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(64) % 3
    for label in range(3):
        pixels[labels == label, 1:7, 1:7, label] += 150
    parts = {
        name: Split(name, pixels[a:b], labels[a:b])
        for name, a, b in (("train", 0, 32), ("val", 32, 48), ("test", 48, 64))
    }
    return Dataset(name="squares", classes=("r", "g", "b", "none"), mean=(0.3,) * 3, std=(0.2,) * 3,
                   fingerprint="0" * 64, source="made for a test", **parts)  # fmt: skip


def train(prepared: nn.Module, steps: int = 3) -> nn.Module:
    """Take some steps of a training written by hand, to a loss that wants one class for all."""
    prepared.train()
    stepper = torch.optim.SGD(prepared.parameters(), lr=0.05)
    for step in range(steps):
        loss = nn.functional.cross_entropy(prepared(images(16, seed=step)), torch.zeros(16, dtype=torch.long))
        stepper.zero_grad()
        loss.backward()
        stepper.step()
    return prepared.eval()


def changed(before: dict[str, Tensor], model: nn.Module, *endings: str) -> set[str]:
    """Say which of a model's tensors with such names differ."""
    return {
        name
        for name, value in model.state_dict().items()
        if name.endswith(endings) and not torch.equal(value, before[name])
    }


class TestPrepare:
    def test_it_starts_near_the_model(self, model, prepared):
        """With the ranges of the images given, and not with scales of 1."""
        exact, rounded = model(images(64, seed=2)), prepared(images(64, seed=2))

        error = (rounded - exact).square().mean().sqrt() / exact.square().mean().sqrt()
        assert 1e-4 < error < 0.05

    def test_the_model_is_not_trained_along(self, model, prepared):
        """An exported graph would share its parameters; after steps of training all is as it was, bit for bit."""
        before = state(model)

        train(prepared)

        assert_close(model.state_dict(), before, rtol=0, atol=0)

    def test_fewer_bits_round_more_coarsely(self):
        """With 2 bits, weights are -1, 0 or 1 steps and activations 0 to 3."""
        prepared = prepare_qat(nn.Sequential(nn.Conv2d(3, 4, 3)).eval(), images(4), weight_bits=2, activation_bits=2)

        ranges = {(part.quant_min, part.quant_max) for part in prepared.modules() if isinstance(part, FakeQuantize)}
        assert ranges == {(-1, 1), (0, 3)}

    def test_batch_norms_with_constants_of_their_own_give_the_same(self):
        """The library puts 1e-5 into every batch norm that it merges; one with 0.5 is rewritten beforehand."""
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4, eps=0.5), nn.Flatten()).eval()

        prepared = prepare_qat(model, images(32))

        assert_close(prepared(images(32)), model(images(32)), rtol=0, atol=0.03)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"model": SmallResidual()}, "SmallResidual is in training mode"),
            ({"model": Branching().eval()}, r"torch\.export cannot follow gate \(Gate\)"),
            ({"images": images(0)}, "there is no initial image"),
            ({"images": images(2) / 0}, "has NaN or infinity in it"),
            ({"skip": ["conv9"]}, "skip names 'conv9', and the model has no such layer"),
            ({"weight_bits": 1}, "weight_bits is 1; choose a whole number from 2 to 8"),
        ],
    )  # fmt: skip
    def test_what_cannot_work_is_refused(self, model, change, message):
        """With the reason."""
        with pytest.raises(ValueError, match=message):
            prepare_qat(**({"model": model, "images": images(2)} | change))

    def test_a_prepared_model_is_refused(self, prepared):
        """It cannot be prepared twice."""
        with pytest.raises(ValueError, match="FakeQuantized is quantized already"):
            prepare_qat(prepared, images(2))


class TestTraining:
    def test_the_ordinary_loop_trains_it(self, prepared, dataset):
        """fit() and evaluate() as they are: the loss falls, validation runs, and it ends in evaluation mode."""
        batches = Batches(dataset.train, dataset, batch_size=8)

        log = fit(prepared, batches, epochs=4, optimizer=lambda m: sgd(m, peak_lr=0.05), precision="bf16",
                  validation=Batches(dataset.val, dataset, batch_size=8))  # fmt: skip

        assert log.rows[-1]["loss"] < 0.8 * log.rows[0]["loss"]
        assert log.rows[-1]["validation_accuracy"] > 0.5
        assert not prepared.training

    def test_a_moving_average_of_it_is_consistent(self, prepared, dataset):
        """With fit's EMA the ranges are averaged, and the scales follow from them, as they will in the int8 form."""
        fit(prepared, Batches(dataset.train, dataset, batch_size=8), epochs=1, ema_decay=0.9, precision="fp32",
            optimizer=lambda m: sgd(m, peak_lr=0.05))  # fmt: skip

        prepared(images(1))

        for part in prepared.modules():
            if isinstance(part, FakeQuantize):
                assert_close((part.scale, part.zero_point), tuple(part.calculate_qparams()), check_dtype=False)

    def test_gradients_arrive_at_every_parameter(self, prepared):
        """Through the rounding: the straight-through estimate."""
        prepared.train()

        prepared(images(16)).square().sum().backward()

        assert all(parameter.grad.abs().sum() > 0 for parameter in prepared.parameters() if parameter.ndim > 1)

    def test_evaluation_leaves_no_trace(self, prepared, dataset):
        """Neither ranges nor statistics move with validation images, and the mode is put back."""
        prepared.train()
        before = state(prepared)

        evaluate(prepared, Batches(dataset.val, dataset, batch_size=8))

        assert not changed(before, prepared, "min_val", "max_val", "running_mean", "running_var")
        assert prepared.training

    def test_training_goes_on_after_evaluation(self, prepared, dataset):
        """evaluate() sets the flag without calling train(): batch norm follows it all the same."""
        prepared.train()
        evaluate(prepared, Batches(dataset.val, dataset, batch_size=8))
        before = state(prepared)

        prepared(images(16))

        assert len(changed(before, prepared, "running_mean")) == 3

    def test_frozen_observers_keep_the_grid(self, prepared):
        """After freezing, weights train on and no range moves; before it, ranges do."""
        before = state(prepared)
        assert changed(before, train(prepared), "min_val", "max_val")
        freeze_observers(prepared)
        before = state(prepared)

        train(prepared)

        assert not changed(before, prepared, "min_val", "max_val", "scale", "zero_point")
        assert changed(before, prepared, "conv1.weight", "conv1_weight")

    def test_frozen_batch_norms_keep_their_statistics(self, prepared):
        """After freezing, the running statistics stay, and a training call gives what an evaluation gives."""
        freeze_batchnorm(prepared)
        freeze_observers(prepared)
        before = state(prepared)

        in_training = prepared.train()(images(16))

        assert not changed(before, prepared, "running_mean", "running_var")
        assert_close(in_training, prepared.eval()(images(16)))

    def test_it_is_restored_from_its_state(self, prepared, trained):
        """Ranges and weights are in the state dict: what fit() resumes from."""
        prepared.load_state_dict(trained.state_dict())

        assert torch.equal(prepared(images(8)), trained(images(8)))


class TestConvert:
    def test_all_layers_compute_with_integers(self, converted):
        """As after static quantization: a row per layer, int8 weights, no batch norm left."""
        assert [(layer.name, layer.weights, layer.inputs) for layer in converted.layers] == [
            (name, "int8", "uint8") for name in ("stem", "conv1", "conv2", "fc")
        ]
        assert not [node for node in converted.model.graph.nodes if "aten.batch_norm" in str(node.target)]

    def test_the_logits_are_those_of_training(self, trained, converted):
        """What was simulated is what comes out."""
        assert_close(converted.model(images(64)), trained(images(64)), rtol=0.01, atol=0.02)

    def test_what_is_given_is_not_changed(self, trained, before_conversion, converted):
        """Converting works on a copy, so that training can go on."""
        assert_close(trained.state_dict(), before_conversion, rtol=0, atol=0)
        assert not torch.equal(train(copy.deepcopy(trained))(images(8)), trained(images(8)))

    def test_onnx_runtime_runs_it_in_integers(self, converted, tmp_path):
        """All convolutions and the sum are integer kernels, and the logits agree."""
        inputs = images(16, seed=3)

        ran, logits = kernels(export_onnx(converted.model, inputs), inputs, tmp_path)

        assert (ran.count("QLinearConv"), ran.count("QLinearAdd")) == (3, 1)
        assert not {"Conv", "FusedConv", "Add"} & set(ran)
        assert_close(logits, converted.model(inputs).detach(), rtol=0.05, atol=0.05)

    def test_a_skipped_layer_stays_in_float_with_its_batch_norm(self, model):
        """Nothing of the merging is left in it, and the logits are those of training."""
        trained = train(prepare_qat(model, images(16), skip=["conv1"]))

        converted = convert_qat(trained)

        assert [(layer.name, layer.why) for layer in converted.left] == [("conv1", "skipped on request")]
        assert not [node for node in converted.model.graph.nodes if "div" in str(node.target)]
        assert_close(converted.model(images(64)), trained(images(64)), rtol=0.01, atol=0.02)

    def test_only_what_prepare_qat_made_is_converted(self, model):
        """Any other module is refused, by all three functions."""
        for function in (convert_qat, freeze_observers, freeze_batchnorm):
            with pytest.raises(TypeError, match="give the module that prepare_qat returned, not SmallResidual"):
                function(model)
