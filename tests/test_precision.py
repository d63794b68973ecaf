"""Mixed precision: formats by hand and by NumPy, what gets lost, operators as they run, inference."""

from __future__ import annotations

import copy
import math

import ml_dtypes
import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name that PyTorch code uses
from torch import Tensor, nn

from deploykit.models import resnet
from deploykit.precision import (
    OperatorDtypes,
    autocast_inference,
    number_format,
    number_formats,
    underflow,
)

NUMPY = {
    torch.float32: np.finfo(np.float32),
    torch.float16: np.finfo(np.float16),
    torch.bfloat16: ml_dtypes.finfo(ml_dtypes.bfloat16),
    torch.float8_e5m2: ml_dtypes.finfo(ml_dtypes.float8_e5m2),
    torch.float8_e4m3fn: ml_dtypes.finfo(ml_dtypes.float8_e4m3fn),
}
BY_HAND = {"fp32": (8, 23), "tf32": (8, 10), "bf16": (8, 7), "fp16": (5, 10), "fp8 e5m2": (5, 2), "fp8 e4m3": (4, 3)}
LOW = (torch.bfloat16, torch.float16)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """A small ResNet whose batch norms do something, in evaluation mode."""
    torch.manual_seed(0)
    model = resnet(8)
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(16, 3, 32, 32))
    return model.eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    """Six images, float32 [6, 3, 32, 32]."""
    return torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def seen() -> OperatorDtypes:
    """A training step of a small ResNet under autocast, its loss and its backward pass."""
    network = resnet(8).train()
    with OperatorDtypes() as seen:
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(network(torch.randn(4, 3, 32, 32)), torch.arange(4))
        loss.backward()
    return seen


class TestFormats:
    @pytest.mark.parametrize("dtype", NUMPY)
    def test_numpy_knows_the_same_limits(self, dtype):
        """Largest, smallest normal, smallest and step are those of NumPy and ml_dtypes."""
        held, known = number_format(dtype), NUMPY[dtype]

        assert held.largest == float(known.max)
        assert held.smallest_normal == float(known.smallest_normal)
        assert held.smallest == float(known.smallest_subnormal)
        assert held.resolution == float(known.eps)

    def test_bits_are_those_of_the_specifications(self):
        """Each format has its exponent and fraction bits, and one for the sign."""
        found = {name: (held.exponent_bits, held.fraction_bits) for name, held in number_formats().items()}

        assert found == BY_HAND
        assert [held.bits for held in number_formats().values()] == [32, 19, 16, 16, 8, 8]

    def test_tf32_is_float32_without_its_last_13_bits(self):
        """Float32's largest number and the step after 1, with 13 fraction bits cleared and set."""
        bits = np.array([np.finfo(np.float32).max], np.float32).view(np.uint32) & np.uint32(0xFFFFE000)
        next_after_one = (np.ones(1, np.float32).view(np.uint32) + np.uint32(1 << 13)).view(np.float32)
        tf32 = number_formats()["tf32"]

        assert tf32.largest == float(bits.view(np.float32)[0])
        assert tf32.resolution == float(next_after_one[0]) - 1
        assert tf32.dtype is None

    @pytest.mark.parametrize("dtype", [torch.int8, "float16"])
    def test_a_dtype_without_fractions_has_no_format(self, dtype):
        """Integers, and names, are refused."""
        with pytest.raises(TypeError, match=r"is no floating-point dtype; give one such as torch.float16"):
            number_format(dtype)


class TestUnderflow:
    def test_a_case_by_hand(self):
        """Of five numbers that are not zero, float16 loses 2**-26, keeps 2**-20 in part and cannot hold 70000."""
        found = underflow(torch.tensor([0.0, 2.0**-26, -(2.0**-20), 2.0**-14, -1.0, 70000.0]), torch.float16)

        assert found == (1 / 5, 1 / 5, 1 / 5, 5)

    def test_a_scale_moves_numbers_up(self):
        """Times 2**12 the small ones are saved, and the largest, 32, does not fit any more."""
        gradients = [torch.tensor([2.0**-26]), torch.tensor([[2.0**-20, 32.0]])]

        assert underflow(gradients, torch.float16, scale=2.0**12) == (0, 0, 1 / 3, 3)

    @pytest.mark.parametrize("dtype", NUMPY)
    def test_numpys_rounding_loses_the_same(self, dtype):
        """Numbers of every size, and ties, become zero or too large where NumPy's do."""
        exponents = torch.arange(-160, 128, dtype=torch.float64)
        values = torch.cat([mantissa * 2**exponents for mantissa in (1.0, 1.25, 1.5, 1.9375)])
        held = NUMPY[dtype]
        largest = float(held.max)
        step = float(held.eps) * 2.0 ** math.floor(math.log2(largest))
        values = torch.cat([values, largest + step * torch.tensor([0, 0.4, 0.5, 0.6], dtype=torch.float64)])
        with np.errstate(over="ignore"):
            rounded = values.numpy().astype(held.dtype).astype(np.float64)
        found = underflow(values, dtype)

        assert found.zero == pytest.approx((rounded == 0).mean())
        assert found.overflow == pytest.approx((~np.isfinite(rounded)).mean())
        assert found.subnormal == pytest.approx(((rounded > 0) & (rounded < float(held.smallest_normal))).mean())

    def test_gradients_are_not_changed(self):
        """Neither the values nor the dtype of what is given."""
        given = torch.tensor([1e-9, 2.0], requires_grad=True)
        before = given.detach().clone()

        underflow(given, torch.float16, scale=1024)

        assert torch.equal(given, before)

    @pytest.mark.parametrize(
        ("gradients", "scale", "message"),
        [
            ([1.0], 0, "scale is 0; give a positive number, usually a power of two such as 65536"),
            ([1.0], math.inf, "scale is inf; give a positive number"),
            ([math.nan], 1, "the gradients have NaN or infinity in them already"),
            ([0.0], 1, r"there is no gradient other than zero, and none can be lost; was backward\(\) called"),
            ([], 1, "there is no gradient other than zero"),
        ],
    )
    def test_nothing_is_said_about_what_cannot_be_lost(self, gradients, scale, message):
        """A bad scale, broken gradients and zeros alone are errors."""
        with pytest.raises(ValueError, match=message):
            underflow(torch.tensor(gradients), torch.float16, scale=scale)

    def test_no_tensor_is_an_error_too(self):
        """As are no gradients at all."""
        with pytest.raises(ValueError, match="there is no gradient other than zero"):
            underflow([], torch.float16)


class TestOperators:
    def test_convolutions_run_in_bf16(self, seen):
        """All nine of ResNet-8, two of them shortcuts, forward and backward, on nothing else."""
        calls = seen.table().set_index("operator")["calls"]

        assert calls[["aten.convolution", "aten.convolution_backward"]].tolist() == [9, 9]
        assert seen.dtypes("aten.convolution") == seen.dtypes("aten.convolution_backward") == {torch.bfloat16}

    def test_batch_norm_takes_bf16_and_keeps_its_own_in_float32(self, seen):
        """Activations come in bfloat16; weights and statistics are float32, and so are those it returns."""
        row = seen.table().set_index("operator").loc["aten.native_batch_norm"]

        assert (row["takes"], row["gives"]) == ("bfloat16, float32", "bfloat16, float32")

    def test_the_loss_runs_in_float32(self, seen):
        """Cross-entropy is on autocast's list of what stays: its softmax sees nothing else."""
        assert seen.dtypes("aten._log_softmax") == {torch.float32}

    def test_a_softmax_of_its_own_does_not_on_a_cpu(self):
        """It is on the list for CUDA, and not on that for CPUs: it runs in what it gets."""
        with OperatorDtypes() as seen, torch.autocast("cpu", torch.bfloat16):
            nn.Linear(3, 3)(torch.randn(2, 3)).softmax(1)

        assert seen.dtypes("aten._softmax") == {torch.bfloat16}

    def test_without_autocast_nothing_is_cast(self, images):
        """Float32 throughout, views and integers left out, and answers as without the recorder."""
        network = resnet(8).eval()
        with OperatorDtypes() as seen:
            found = network(images)

        assert torch.equal(found, network(images))
        assert {dtype for _, takes, gives in seen.calls for dtype in takes + gives} == {torch.float32}
        assert not {"aten.t", "aten.view", "aten.detach", "aten._to_copy"} & set(seen.table()["operator"])

    def test_in_inference_mode_operators_are_seen_whole(self, images):
        """With the casts of images, weights and bias."""
        conv = nn.Conv2d(3, 4, 3)
        with OperatorDtypes() as seen, torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            conv(images)

        assert seen.table().to_numpy().tolist() == [
            ["aten.to", "float32", "bfloat16", 3],
            ["aten.conv2d", "bfloat16", "bfloat16", 1],
        ]

    def test_an_operator_that_never_ran_has_no_dtype(self, seen):
        """Not an error: nothing was seen."""
        assert seen.dtypes("aten.fft") == set()


class TestAutocastInference:
    @pytest.mark.parametrize("dtype", LOW)
    @pytest.mark.parametrize("channels_last", [True, False])
    def test_logits_are_as_near_to_float64_as_the_dtype_allows(self, model, images, dtype, channels_last):
        """Within a few roundings of the exact answer, and not within float32's: it really computed in the dtype."""
        exact = copy.deepcopy(model).double()(images.double()).detach()
        found = autocast_inference(model, dtype, channels_last=channels_last)(images)
        error = float((found - exact).norm() / exact.norm())
        eps = torch.finfo(dtype).eps

        assert found.dtype == torch.float32
        assert eps / 20 < error < 4 * eps

    def test_convolutions_really_run_in_the_dtype(self, model, images):
        """Every one of them, and on nothing else."""
        with OperatorDtypes() as seen:
            autocast_inference(model)(images)

        assert seen.dtypes("aten.conv2d") == seen.dtypes("aten.linear") == {torch.bfloat16}

    @pytest.mark.parametrize("channels_last", [True, False])
    def test_the_layout_is_the_one_asked_for(self, model, images, channels_last):
        """Weights and activations of a convolution alike, whatever the images come in."""
        layout = torch.channels_last if channels_last else torch.contiguous_format
        other = torch.contiguous_format if channels_last else torch.channels_last
        observed = copy.deepcopy(model)
        found = []
        observed.conv.register_forward_hook(lambda conv, given, out: found.extend([conv.weight, *given, out]))

        autocast_inference(observed, channels_last=channels_last)(images.to(memory_format=other))

        assert all(tensor.is_contiguous(memory_format=layout) for tensor in found)

    def test_the_model_stays_as_it_is(self, model, images):
        """Weights, layout and float32 answers; and later changes to it do not reach the function."""
        given = copy.deepcopy(model)
        predict = autocast_inference(given, torch.bfloat16)
        before = predict(images)
        assert torch.equal(given(images), model(images))
        assert given.conv.weight.is_contiguous()

        nn.init.zeros_(given.fc.weight)

        assert torch.equal(predict(images), before)

    def test_no_graph_is_kept(self, model, images):
        """Logits need no gradient."""
        assert not autocast_inference(model)(images).requires_grad

    def test_a_module_without_weights_runs(self, images):
        """On the CPU, in float32 to float32."""
        assert autocast_inference(nn.Flatten().eval())(images).dtype == torch.float32

    @pytest.mark.parametrize(
        ("spoil", "dtype", "message"),
        [
            (lambda m: m, torch.float32, "dtype is torch.float32; autocast computes in torch.bfloat16 or in"),
            (lambda m: m, "bf16", "dtype is bf16; autocast computes in"),
            (lambda m: m.train(), torch.bfloat16, r"the model is in training mode, .* call model.eval\(\) first"),
            (lambda m: m.half(), torch.bfloat16, r"conv.weight is torch.float16; .* call .float\(\) on the model"),
            (lambda m: setattr(m, "fc", m.fc.to("meta")) or m, torch.float16, "the weights are on cpu, meta; move"),
        ],
    )
    def test_what_cannot_be_meant_is_refused(self, model, spoil, dtype, message):
        """Before anything is computed, with what to do."""
        with pytest.raises(ValueError, match=message):
            autocast_inference(spoil(copy.deepcopy(model)), dtype)

    def test_only_modules_are_taken(self):
        """A function has no weights to convert."""
        with pytest.raises(TypeError, match=r"autocast_inference takes a torch.nn.Module, not function"):
            autocast_inference(lambda images: images)

    def test_images_that_were_converted_are_refused(self, model, images):
        """Autocast converts them itself."""
        with pytest.raises(ValueError, match=r"images are torch.bfloat16; give float32"):
            autocast_inference(model)(images.bfloat16())


class TestGradScaler:
    """What the notebook says of torch's own, on a CPU."""

    def test_an_infinite_gradient_skips_the_step_and_halves_the_scale(self):
        """The weight stays, and the next step counts again."""
        weight = nn.Parameter(torch.ones(1))
        optimizer = torch.optim.SGD([weight], lr=0.5)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        seen = []
        for factor in (math.inf, 1.0):
            optimizer.zero_grad()
            scaler.scale(weight.sum() * factor).backward()
            scaler.step(optimizer)
            scaler.update()
            seen.append((weight.item(), scaler.get_scale()))

        assert seen == [(1.0, 512.0), (0.5, 512.0)]

    def test_the_old_name_still_runs_and_warns(self):
        """``torch.cuda.amp.autocast`` is deprecated, not removed."""
        with pytest.warns(FutureWarning, match=r"torch.cuda.amp.autocast\(args...\)` is deprecated"):
            torch.cuda.amp.autocast(enabled=False)
