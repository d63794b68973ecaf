"""Free speed: folding and the fast predictor give the model's answers, change nothing, and refuse what cannot work."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from deploykit.free_speed import fast_predictor, fold_batchnorm
from deploykit.models import resnet


@pytest.fixture
def model() -> nn.Module:
    """A small ResNet whose batch norms do something: statistics and constants as after training."""
    torch.manual_seed(0)
    model = resnet(8).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    return model


@pytest.fixture
def images() -> Tensor:
    """Four images, float32 [4, 3, 32, 32]."""
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def batchnorms(model: nn.Module) -> int:
    """Count batch norms."""
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


class TestFoldBatchnorm:
    def test_one_pair_by_hand(self):
        """A filter of 3 after batch norm's (x - 1) / 2 * 4 + 5 is a filter of 6 with bias 3."""
        pair = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.BatchNorm2d(1, eps=0)).eval()
        for tensor, value in zip((pair[0].weight, *pair[1].state_dict().values()), (3, 4, 5, 1, 4), strict=False):
            nn.init.constant_(tensor, value)

        conv = next(module for module in fold_batchnorm(pair).modules() if isinstance(module, nn.Conv2d))

        assert (conv.weight.item(), conv.bias.item()) == (6, 3)

    def test_all_batch_norms_of_a_resnet_go_and_the_logits_stay(self, model, images):
        """Shortcuts' batch norms are folded too, and only rounding changes, for any batch size."""
        folded = fold_batchnorm(model)

        assert (batchnorms(model), batchnorms(folded)) == (9, 0)
        assert_close(folded(images), model(images), rtol=1e-4, atol=1e-4)
        assert_close(folded(images[:1]), model(images[:1]), rtol=1e-4, atol=1e-4)

    def test_the_model_is_not_changed(self, model):
        """Weights and layers of what is given stay, and the copy shares none of them."""
        before = {name: value.clone() for name, value in model.state_dict().items()}

        for parameter in fold_batchnorm(model).parameters():
            parameter.data.zero_()

        assert_close(model.state_dict(), before, rtol=0, atol=0)

    def test_a_batch_norm_after_something_else_stays(self, images):
        """Between a ReLU and a convolution it cannot be folded; the one after the convolution is."""
        layers = (nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(3600, 10))
        model = nn.Sequential(*layers).eval()

        folded = fold_batchnorm(model)

        assert batchnorms(folded) == 1
        assert_close(folded(images), model(images), rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize(
        ("model", "message"),
        [
            (nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), "the model is in training mode"),
            (nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()).eval(), "has 1 batch norms and none directly after"),
            (nn.Sequential(nn.Conv2d(3, 4, 3)).eval(), "has 0 batch norms and none directly after"),
        ],
    )
    def test_nothing_is_done_in_silence(self, model, message):
        """A model that would come back as it was, or would change its answers, is refused."""
        with pytest.raises(ValueError, match=message):
            fold_batchnorm(model)

    def test_a_branch_on_values_is_refused(self):
        """What cannot be traced is named, with the way round it."""

        class Branching(nn.Module):
            def forward(self, images: Tensor) -> Tensor:
                return images if images.sum() > 0 else -images

        with pytest.raises(ValueError, match=r"torch\.fx cannot trace Branching .*; pass fold=False"):
            fold_batchnorm(Branching().eval())


class TestFastPredictor:
    def test_the_answers_are_the_models(self, model, images):
        """Only rounding differs, no gradient is recorded, and the model keeps its layout and its weights."""
        logits = fast_predictor(model)(images)

        assert_close(logits, model(images).detach(), rtol=1e-4, atol=1e-4)
        assert logits.is_inference()
        assert model.conv.weight.is_contiguous()

    def test_bf16_is_near_but_not_equal(self, model, images):
        """bfloat16 leaves an error far above rounding and below a tenth of the largest logit; logits are float32."""
        exact, logits = model(images), fast_predictor(model, bf16=True)(images)
        error = (logits - exact).abs().max() / exact.abs().max()

        assert logits.dtype == torch.float32
        assert 1e-4 < error < 0.1

    def test_without_folding_anything_runs(self, images):
        """A model without batch norm needs fold=False, and then is refused in training mode as well."""
        model = nn.Sequential(nn.Flatten(), nn.Linear(3072, 10), nn.Dropout())

        with pytest.raises(ValueError, match="training mode"):
            fast_predictor(model, fold=False)
        assert_close(fast_predictor(model.eval(), fold=False)(images), model(images), rtol=1e-5, atol=1e-5)

    def test_compiling_is_asked_of_torch(self, model, images, monkeypatch):
        """The folded network is what torch.compile gets, and its result is what runs."""
        seen = []
        monkeypatch.setattr(torch, "compile", lambda network: seen.append(network) or network)

        logits = fast_predictor(model, compiled=True)(images)

        assert batchnorms(seen[0]) == 0
        assert_close(logits, model(images), rtol=1e-4, atol=1e-4)


MAPPED = """
import ctypes
import sys

import torch

from deploykit.free_speed import keep_freed_memory

if sys.argv[1] == "kept" and not keep_freed_memory():
    sys.exit("there is no glibc here")


class Mallinfo2(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in
                "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()]


mallinfo2 = ctypes.CDLL(None).mallinfo2
mallinfo2.restype = Mallinfo2
before = mallinfo2().hblkhd
tensor = torch.zeros(10 * 2**20)
print(mallinfo2().hblkhd - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt is glibc's")
def test_freed_memory_stays_with_the_process():
    """A tensor of 40 MiB is a mapping of its own, which goes when it is freed; or a piece of the heap, which stays."""
    mapped = {
        how: int(subprocess.run([sys.executable, "-c", MAPPED, how], check=True, capture_output=True, text=True).stdout)
        for how in ("as it is", "kept")
    }

    assert mapped["as it is"] >= 40 * 2**20
    assert mapped["kept"] == 0
