"""What layers do is counted as by hand, adds up to the whole, and the model is left as it was."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from deploykit import layers
from deploykit.cost import macs
from deploykit.layers import WHOLE, layer_times, layer_work, wrapped_layers
from deploykit.models import resnet

IMAGES = torch.zeros(2, 3, 8, 8)


@pytest.fixture
def model() -> nn.Module:
    """A convolution, a ReLU and a linear layer: small enough to count by hand."""
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10)).eval()


class OverRows(nn.Module):
    """An LSTM that reads an image as 8 rows of 24 numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(24, 5, batch_first=True), nn.Linear(5, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, float32 [N, 10]."""
        return self.head(self.lstm(images.transpose(1, 2).flatten(2))[0][:, -1])


class Transformer(nn.Module):
    """One transformer layer over 8 rows of 24 numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.TransformerEncoderLayer(24, 2, 16, batch_first=True), nn.Linear(24, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, float32 [N, 10]."""
        return self.head(self.layer(images.transpose(1, 2).flatten(2))[:, 0])


class TestLayerWork:
    def test_a_convolution_by_hand(self, model):
        """Each of 2x4x8x8 results takes 3x3x3 MACs; images, weights, bias and results are moved once, 4 bytes each."""
        work = layer_work(model, IMAGES)["0"]

        assert work.macs == 2 * 4 * 8 * 8 * 3 * 3 * 3
        assert work.flops == 2 * work.macs
        assert work.bytes == 4 * (2 * 3 * 8 * 8 + 4 * 3 * 3 * 3 + 4 + 2 * 4 * 8 * 8)
        assert (work.layer_type, work.operators) == ("Conv2d", 1)

    def test_a_linear_layer_by_hand(self, model):
        """Each of 2x10 results takes 256 MACs; the transposed weights are a view and no operator."""
        work = layer_work(model, IMAGES)["3"]

        assert work.macs == 2 * 10 * 256
        assert work.bytes == 4 * (2 * 256 + 256 * 10 + 10 + 2 * 10)
        assert work.operators == 1

    def test_an_operator_without_macs_does_one_flop_for_each_number(self, model):
        """A ReLU reads and writes each number, and has an intensity above 0; a view does nothing and has no row."""
        work = layer_work(model, IMAGES)

        assert (work["1"].macs, work["1"].flops, work["1"].bytes) == (0, 512, 2 * 4 * 512)
        assert list(work) == ["0", "1", "3"]

    def test_half_the_bytes_in_bf16(self, model):
        """Bytes follow the type, operations do not."""
        full = layer_work(model, IMAGES)["0"]
        half = layer_work(model.bfloat16(), IMAGES.bfloat16())["0"]

        assert (half.macs, 2 * half.bytes) == (full.macs, full.bytes)

    @pytest.mark.parametrize(("make", "pixels"), [(lambda: resnet(8), 32), (OverRows, 8), (Transformer, 8)])
    def test_layers_add_up_to_the_whole(self, make, pixels):
        """Whatever is nested, the layers' MACs are those of the model: kernels of LSTM and attention too."""
        model, images = make().eval(), torch.zeros(2, 3, pixels, pixels)

        found = layer_work(model, images)

        assert sum(work.macs for work in found.values()) == 2 * macs(model, images)

    def test_what_a_block_does_itself_is_its_own(self):
        """A residual block's own work is its addition: two tensors read and one written."""
        work = layer_work(resnet(8).eval(), torch.zeros(1, 3, 32, 32))["blocks.0"]

        assert (work.macs, work.bytes) == (0, 3 * 4 * 16 * 32 * 32)


class TestWrappedLayers:
    def test_a_forward_of_its_own_comes_back(self, model):
        """A module whose forward was replaced keeps the replacement, the others get their class's back."""
        model[1].forward = own = lambda x: x

        with pytest.raises(ZeroDivisionError), wrapped_layers(model, lambda *_: lambda *_: 1 / 0):
            model(IMAGES)

        assert model[1].__dict__["forward"] is own
        assert not any("forward" in module.__dict__ for module in (model, model[0], model[3]))
        assert torch.backends.mha.get_fastpath_enabled()


class TestLayerTimes:
    @pytest.fixture
    def ticking(self, monkeypatch):
        """A clock that gains a second whenever it is read."""
        seconds = itertools.count()
        monkeypatch.setattr(layers.time, "perf_counter", lambda: float(next(seconds)))
        monkeypatch.setattr(layers, "WARMUP_S", 0)

    @pytest.mark.usefixtures("ticking")
    def test_nothing_is_counted_twice(self, model):
        """Layers' own times add up to the outermost module's: 9 readings inside it, 1 s from each to the next."""
        times = layer_times(model, IMAGES, calls=3)

        assert times.own_ms == {WHOLE: 5000, "0": 1000, "1": 1000, "2": 1000, "3": 1000}
        assert sum(times.own_ms.values()) == 9000
        assert (times.plain_ms, times.clocked_ms) == (1000, 11000)

    @pytest.mark.parametrize(
        ("spoil", "message"),
        [
            (lambda model: model.train(), r"Sequential is in training mode.*call model\.eval\(\) first"),
            (lambda _: lambda images: images, "function is no torch module.*give the model that it was made from"),
            (lambda model: torch.compile(model, backend="eager"), "OptimizedModule is compiled: its layers no longer"),
        ],
        ids=["training", "function", "compiled"],
    )
    def test_layers_that_cannot_be_told_apart_are_refused(self, model, spoil, message):
        """A function, a compiled model and one in training mode are named, with what to give instead."""
        with pytest.raises(ValueError, match=message):
            layer_times(spoil(model), IMAGES, calls=1)
