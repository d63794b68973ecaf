"""Low bits: the gradients are the paper's, a layer has as few levels as it should, and training works."""

from __future__ import annotations

import copy
import functools
import json

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from deploykit.data import Batches, Dataset, load_dataset
from deploykit.models import load_pretrained, resnet
from deploykit.quantization.learned_steps import LearnedQuantizer, LearnedStep, best_step
from deploykit.quantization.low_bit_files import integer_weights, load_low_bits, save_low_bits
from deploykit.quantization.low_bits import low_bit_layers, parameter_groups, prepare_low_bits
from deploykit.training import evaluate, fit

GRID = (-2, 1)  # 2 bits, signed
# Left of the grid, on it, between its last level and half a step beyond, and far beyond it.
VALUES = (-3.0, -1.7, -0.6, 0.3, 0.9, 1.3, 1.7, 5.0)


@pytest.fixture(scope="module")
def shapes32() -> Dataset:
    """The embedded pictures."""
    return load_dataset("shapes32")


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    """A ResNet-20 that knows shapes32."""
    return load_pretrained("resnet20", "shapes32")


@pytest.fixture(scope="module")
def calibration(shapes32) -> list[tuple[Tensor, Tensor]]:
    """64 training images in two batches."""
    return list(Batches(shapes32.train.take(64), shapes32, batch_size=32))


@pytest.fixture(scope="module")
def val(shapes32) -> Batches:
    """200 images to judge by."""
    return Batches(shapes32.val.take(200), shapes32, batch_size=200)


@pytest.fixture(scope="module")
def tiny() -> nn.Module:
    """Convolution, batch norm, ReLU twice and a linear layer, random."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Conv2d(4, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5),
    ).eval()  # fmt: skip


@pytest.fixture(scope="module")
def images() -> Tensor:
    """Eight images of noise, float32 [8, 3, 12, 12]."""
    return torch.randn(8, 3, 12, 12, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def two_bits(tiny, images) -> nn.Module:
    """``tiny`` with weights and activations of 2 bits."""
    return prepare_low_bits(tiny, [images], weight_bits=2, activation_bits=2)


def gradients(step: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return result, gradient of the values and gradient of the step for each of ``VALUES`` times ``step``, float64."""
    values = (torch.tensor(VALUES, dtype=torch.float64) * step).requires_grad_()
    steps = torch.full((len(VALUES),), step, dtype=torch.float64, requires_grad=True)
    result = LearnedStep.apply(values, steps, GRID)
    result.sum().backward()
    return result.detach(), values.grad, steps.grad


class TestLearnedStep:
    def test_the_result_is_the_nearest_level(self):
        """Levels -2, -1, 0, 1 times the step: equations 1 and 2."""
        result, _, _ = gradients(0.5)

        assert result.tolist() == [-1.0, -1.0, -0.5, 0.0, 0.5, 0.5, 0.5, 0.5]

    def test_the_step_has_the_gradient_of_equation_3(self):
        """Inside round(v/s) - v/s, outside the end of the grid; half a step beyond the last level is outside."""
        _, _, of_step = gradients(0.5)

        assert_close(of_step, torch.tensor([-2, -0.3, -0.4, -0.3, 0.1, 1, 1, 1], dtype=torch.float64))

    def test_a_value_has_gradient_1_inside_the_grid_and_0_outside(self):
        """The straight-through estimator, equation 5."""
        _, of_values, _ = gradients(0.5)

        assert of_values.tolist() == [0, 1, 1, 1, 1, 0, 0, 0]

    def test_the_operator_of_torch_has_other_gradients_beyond_the_last_level(self):
        """Why it is not used: from 1 to 1.5 steps it lets the gradient through, and takes the step's as -0.3."""
        values, step = torch.tensor([1.3], requires_grad=True), torch.ones(1, requires_grad=True)
        operator = torch._fake_quantize_learnable_per_tensor_affine
        operator(values, step, torch.zeros(1), *GRID, 1.0).backward()

        assert_close((values.grad.item(), step.grad.item()), (1.0, -0.3))

    def test_a_step_is_shared_by_a_channel(self):
        """The gradient of each channel's step is the sum over that channel."""
        values, upstream = torch.randn(2, 3, 5, 5), torch.randn(2, 3, 5, 5)
        steps = torch.tensor([0.4, 0.7]).view(2, 1, 1, 1).requires_grad_()
        LearnedStep.apply(values, steps, GRID).backward(upstream)
        each = steps.detach().expand_as(values).clone().requires_grad_()
        LearnedStep.apply(values, each, GRID).backward(upstream)

        assert_close(steps.grad.flatten(), each.grad.sum((1, 2, 3)))


class TestLearnedQuantizer:
    @pytest.mark.parametrize(("per_image", "shared"), [(True, 3 * 4 * 4), (False, 8 * 3 * 4 * 4)])
    def test_the_gradient_of_a_step_is_scaled(self, per_image, shared):
        """By 1 / sqrt(N Qp): of activations, N counts the features of one image (section 2.2)."""
        quantizer = LearnedQuantizer(3, signed=False, per_image=per_image)
        values = torch.rand(8, 3, 4, 4) * 9
        quantizer(values).sum().backward()
        plain = torch.ones(1, 1, 1, 1, requires_grad=True)
        LearnedStep.apply(values, plain, (0, 7)).sum().backward()

        assert_close(quantizer.step.grad, plain.grad.flatten() / (shared * 7) ** 0.5)

    @pytest.mark.parametrize(
        ("bits", "signed", "grid"), [(2, True, (-2, 1)), (2, False, (0, 3)), (8, True, (-128, 127))]
    )
    def test_the_grid_is_what_the_bits_hold(self, bits, signed, grid):
        """Two's complement, or from 0."""
        assert LearnedQuantizer(bits, signed=signed).grid == grid

    def test_a_step_below_zero_counts_by_its_size(self):
        """Training may drive a step through 0; the grid stays the same way round."""
        quantizer = LearnedQuantizer(2, signed=True)
        nn.init.constant_(quantizer.step, -1.0)

        assert quantizer(torch.tensor([[-5.0, 5.0]])).tolist() == [[-2, 1]]

    def test_the_best_step_of_a_normal_distribution_is_that_of_the_tables(self):
        """A uniform quantizer of 16 levels, a zero among them, does best near 0.335 (Max 1960, table II)."""
        values = torch.randn(1, 200_000, generator=torch.Generator().manual_seed(0))

        assert best_step(values, (-8, 7)).item() == pytest.approx(0.335, abs=0.02)

    def test_without_a_level_at_zero_there_are_as_many_below_as_above(self):
        """An offset of ½: ±½ and ±1½ steps; of a normal distribution the best step is 0.996 (Max 1960, table II)."""
        quantizer = LearnedQuantizer(2, signed=True, offset=0.5)
        quantizer.start_from(torch.randn(1, 200_000, generator=torch.Generator().manual_seed(0)))

        assert quantizer.step.item() == pytest.approx(0.996, abs=0.03)
        assert_close(
            quantizer(torch.tensor([[-9.0, -0.1, 0.1, 9.0]])) / quantizer.step, torch.tensor([[-1.5, -0.5, 0.5, 1.5]])
        )

    def test_an_offset_has_the_gradient_of_the_shifted_levels(self):
        """Level minus v/s inside, the last level outside, times 1 / sqrt(N Qp)."""
        quantizer = LearnedQuantizer(2, signed=True, offset=0.5)
        found = []
        for value in (-3.0, -1.2, 0.3, 1.8):
            quantizer.step.grad = None
            quantizer(torch.tensor([[value]])).sum().backward()
            found.append(quantizer.step.grad.item() * 1.5**0.5)

        assert found == pytest.approx([-1.5, -0.3, 0.2, 1.5], abs=1e-6)

    def test_rows_of_zeros_get_a_step_that_can_be_divided_by(self):
        """A channel that was pruned stays 0 and finite."""
        assert best_step(torch.zeros(2, 9), GRID).tolist() == [1, 1]


class TestPrepare:
    def test_the_model_is_not_changed(self, tiny, two_bits):
        """Classes, weights and names stay; the copy shares no tensor with it."""
        shared = {p.data_ptr() for p in tiny.parameters()} & {p.data_ptr() for p in two_bits.parameters()}

        assert not shared
        assert type(tiny[0]) is nn.Conv2d
        assert set(tiny.state_dict()) < set(two_bits.state_dict())

    def test_first_and_last_layer_have_8_bits(self, two_bits):
        """And the layer between them those that were asked for."""
        layers = low_bit_layers(two_bits)

        assert {name: (bits.weight_bits, bits.input_bits) for name, bits in layers.items()} == {
            "0": (8, 8), "3": (2, 2), "8": (8, 8),
        }  # fmt: skip

    def test_only_images_are_signed(self, two_bits):
        """What comes out of a ReLU gets all levels at 0 and above."""
        assert [bits.signed_inputs for bits in low_bit_layers(two_bits).values()] == [True, False, False]

    def test_a_layer_computes_with_what_its_integers_say(self, two_bits, images):
        """The convolution of integers, times both steps, is the layer's output."""
        layer, features = two_bits[3], two_bits[:3](images)
        weights = integer_weights(two_bits)["3"]
        integers = nn.functional.conv2d(
            layer.input_quantizer.integers(features).double(), weights.integers.double() + weights.offset, stride=2
        )
        scale = weights.step.view(1, -1, 1, 1) * layer.input_quantizer.step

        assert_close(layer(features), integers.float() * scale + layer.bias.view(1, -1, 1, 1), rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("per_channel", [True, False])
    def test_two_bits_are_at_most_four_levels(self, trained, calibration, per_channel):
        """In every layer but the first and the last, for one step as for many."""
        prepared = prepare_low_bits(trained, calibration, weight_bits=2, activation_bits=2, per_channel=per_channel)
        _first, *inner, _last = integer_weights(prepared).values()

        assert len(inner) == 20
        assert max(weights.levels for weights in inner) <= 4
        assert {len(weights.step) for weights in inner} == ({16, 32, 64} if per_channel else {1})

    def test_8_bits_lose_next_to_nothing_and_2_nearly_all(self, trained, calibration, val):
        """Without training: this is post-training quantization."""
        accuracy = {
            bits: evaluate(prepare_low_bits(trained, calibration, weight_bits=bits, activation_bits=bits), val).accuracy
            for bits in (8, 2)
        }
        fp32 = evaluate(trained, val).accuracy

        assert accuracy[8] >= fp32 - 0.01
        assert accuracy[2] < 0.5

    def test_it_runs_under_bf16_autocast_with_steps_in_float32(self, two_bits, images):
        """The quantizer's result has no more levels than its bits, which bf16 steps would blur."""
        seen = []
        copied = copy.deepcopy(two_bits)
        copied[3].input_quantizer.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
        with torch.autocast("cpu", torch.bfloat16):
            logits = copied(images)

        assert logits.dtype == torch.bfloat16
        assert seen[0].dtype == torch.float32
        assert len(seen[0].unique()) <= 4


class TestErrors:
    @pytest.mark.parametrize("wrong", [1, 9, 4.0])
    @pytest.mark.parametrize("name", ["weight_bits", "activation_bits", "edge_bits"])
    def test_bits_outside_2_to_8(self, tiny, images, name, wrong):
        """The message says which, and what is possible."""
        bits = {"weight_bits": 4, "activation_bits": 4, name: wrong}
        with pytest.raises(ValueError, match=rf"{name} is {wrong}; choose a whole number from 2 to 8"):
            prepare_low_bits(tiny, [images], **bits)

    def test_training_mode(self, tiny, images):
        """Calibration would depend on the batch."""
        model = copy.deepcopy(tiny).train()
        with pytest.raises(ValueError, match="is in training mode"):
            prepare_low_bits(model, [images], weight_bits=4, activation_bits=4)

    def test_no_calibration_image(self, tiny):
        """An exhausted generator, say."""
        with pytest.raises(ValueError, match="there is no calibration image"):
            prepare_low_bits(tiny, iter(()), weight_bits=4, activation_bits=4)

    def test_no_layer_to_quantize(self, images):
        """A network without convolution and linear layer."""
        with pytest.raises(ValueError, match="Sequential uses no Conv2d and no Linear"):
            prepare_low_bits(nn.Sequential(nn.ReLU()).eval(), [images], weight_bits=4, activation_bits=4)

    def test_prepared_already(self, two_bits, images):
        """The copy of a copy would round twice."""
        with pytest.raises(ValueError, match="is quantized already"):
            prepare_low_bits(two_bits, [images], weight_bits=4, activation_bits=4)

    def test_groups_of_a_model_without_steps(self, tiny):
        """Before preparing, there are none."""
        with pytest.raises(ValueError, match="Sequential has no learned steps; call prepare_low_bits first"):
            parameter_groups(tiny, lr=0.1, weight_decay=0)


class TestTraining:
    def test_the_groups_hold_each_parameter_once_and_steps_do_not_decay(self, two_bits):
        """Weights and steps, with a learning rate for each."""
        own, steps = parameter_groups(two_bits, lr=0.1, weight_decay=5e-4, step_lr=0.01)

        assert {id(p) for p in own["params"] + steps["params"]} == {id(p) for p in two_bits.parameters()}
        assert len(own["params"]) + len(steps["params"]) == len(list(two_bits.parameters()))
        assert (len(steps["params"]), steps["weight_decay"], steps["lr"], own["lr"]) == (6, 0.0, 0.01, 0.1)

    def test_training_lowers_the_loss(self, shapes32, calibration):
        """Twenty steps of the ordinary ``fit`` at 2 bits; the steps of the grids are trained too."""
        float_network = load_pretrained("resnet8", "shapes32")
        network = prepare_low_bits(float_network, calibration, weight_bits=2, activation_bits=2)
        step = network.blocks[0].conv1.weight_quantizer.step
        before = step.detach().clone()
        batches = Batches(shapes32.train.take(320), shapes32, batch_size=32, shuffle=True)
        groups = functools.partial(parameter_groups, lr=0.04, weight_decay=0.0)
        log = fit(network, batches, epochs=2, optimizer=lambda model: torch.optim.SGD(groups(model), momentum=0.9))

        assert log.rows[1]["loss"] < 0.95 * log.rows[0]["loss"]
        assert (step != before).all()


class TestFiles:
    def test_a_loaded_network_computes_the_same(self, tiny, two_bits, images, tmp_path):
        """Bit for bit, into a network with other weights."""
        save_low_bits(two_bits, tmp_path / "w2a2")
        other = copy.deepcopy(tiny)
        nn.init.zeros_(other[3].weight)

        loaded = load_low_bits(other, tmp_path / "w2a2")

        assert_close(loaded(images), two_bits(images), rtol=0, atol=0)
        assert low_bit_layers(loaded) == low_bit_layers(two_bits)

    def test_the_file_holds_integers(self, two_bits, tmp_path):
        """Anyone can look: int8, four values at most."""
        from safetensors.torch import load_file

        save_low_bits(two_bits, tmp_path)
        weight = load_file(tmp_path / "model.safetensors")["3.weight"]

        assert weight.dtype == torch.int8
        assert set(weight.unique().tolist()) <= {-2, -1, 0, 1}
        assert json.loads((tmp_path / "low-bits.json").read_text())["layers"]["3"]["weight_offset"] == 0.5

    def test_another_architecture(self, two_bits, tmp_path):
        """The message names the folder and what to do."""
        save_low_bits(two_bits, tmp_path)
        with pytest.raises(ValueError, match="holds no low-bit ResNet of this form"):
            load_low_bits(resnet(8), tmp_path)

    def test_a_missing_file(self, tiny, tmp_path):
        """The message names it."""
        with pytest.raises(FileNotFoundError, match=r"no low-bits\.json in"):
            load_low_bits(tiny, tmp_path)

    def test_packed_size(self, two_bits):
        """216 weights of 2 bits and 6 steps of 4 bytes are 78 bytes."""
        assert integer_weights(two_bits)["3"].kib * 1024 == 216 * 2 / 8 + 6 * 4
