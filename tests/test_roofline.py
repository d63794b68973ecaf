"""Layers stand under the roof where a calculation by hand puts them, and what cannot be placed is refused."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from deploykit import roofline
from deploykit.layers import LayerTimes
from deploykit.peaks import MIB, MemoryLevel, Peaks
from deploykit.roofline import place_layers

IMAGES = torch.zeros(2, 3, 8, 8)


def machine_with(*, gflops: float = 1e9, gb_s: float = 1e9, overhead_us: float = 1e-9) -> Peaks:
    """A machine on which only what is given takes time."""
    levels = (MemoryLevel("L2", 1, 2 * gb_s), MemoryLevel("DRAM", math.inf, gb_s))
    return Peaks({"fp32": gflops, "int8": 4 * gflops}, levels, overhead_us, {"Conv2d": 3 * overhead_us}, 1, 128)


@pytest.fixture
def model() -> nn.Module:
    """A convolution of 13,824 MACs, a ReLU over 512 numbers and a linear layer of 5,120 MACs, on two images."""
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10)).eval()


@pytest.fixture(autouse=True)
def one_millisecond_each(monkeypatch):
    """Let each layer take a millisecond: what is tested is where it is placed."""
    taken = LayerTimes(dict.fromkeys(("0", "1", "2", "3"), 1.0), plain_ms=4, clocked_ms=4)
    monkeypatch.setattr(roofline, "layer_times", lambda *_, **__: taken)


class TestPlaceLayers:
    def test_a_slow_multiplier_binds_by_compute(self, model):
        """13,824 MACs are 27,648 FLOP: at 1 GFLOP/s 27.6 µs; in 1 ms, they are 0.0276 GFLOP/s."""
        conv = place_layers(model, IMAGES, machine_with(gflops=1)).iloc[0]

        assert (conv["layer"], conv["bound"], conv["flops"]) == ("0", "compute", 27_648)
        assert conv["attainable_ms"] == pytest.approx(0.027648)
        assert conv["gflops"] == pytest.approx(0.027648)

    def test_a_slow_memory_binds_by_memory(self, model):
        """A ReLU moves 2x4x512 bytes: from a cache of 2 GB/s in 2.05 µs; its intensity is 1 FLOP for 8 bytes."""
        relu = place_layers(model, IMAGES, machine_with(gb_s=1)).iloc[1]

        assert (relu["bound"], relu["level"], relu["bytes"], relu["intensity"]) == ("memory", "L2", 4096, 1 / 8)
        assert relu["attainable_ms"] == pytest.approx(4096 / 2e9 * 1000)

    def test_slow_calls_bind_by_overhead(self, model):
        """A convolution that takes 30 µs to call, with work for 2.8 µs: both are spent."""
        conv = place_layers(model, IMAGES, machine_with(gflops=10, overhead_us=10)).iloc[0]

        assert conv["bound"] == "overhead"
        assert conv["attainable_ms"] == pytest.approx(0.030 + 0.0027648)

    def test_what_exceeds_the_caches_comes_from_memory(self, model):
        """1,024 images are 1.75 MiB for the convolution, more than a cache of 1 MiB holds."""
        conv = place_layers(model, IMAGES.repeat(512, 1, 1, 1), machine_with(gb_s=1)).iloc[0]

        assert conv["bytes"] > MIB
        assert (conv["bound"], conv["level"]) == ("memory", "DRAM")
        assert conv["attainable_ms"] == pytest.approx(conv["bytes"] / 1e9 * 1000)

    def test_the_peak_is_that_of_the_type(self, model):
        """Another type has another roof."""
        fp32, int8 = (
            place_layers(model, IMAGES, machine_with(gflops=1), dtype=dtype)["attainable_ms"].iloc[0]
            for dtype in ("fp32", "int8")
        )

        assert fp32 == pytest.approx(4 * int8)

    def test_layers_stand_in_the_order_of_the_model(self, model):
        """What does nothing, here a view, has no row."""
        assert list(place_layers(model, IMAGES, machine_with())["layer_type"]) == ["Conv2d", "ReLU", "Linear"]

    def test_a_peak_that_was_not_measured_is_refused(self, model):
        """The message lists those there are."""
        with pytest.raises(ValueError, match="there is no peak for 'bf16' among those measured: fp32, int8"):
            place_layers(model, IMAGES, machine_with(), dtype="bf16")

    def test_hidden_operations_are_refused(self, model):
        """A layer whose operations nobody counts, as a quantized one, is not placed as one without any."""

        class Quantized(nn.Linear):
            def forward(self, features: Tensor) -> Tensor:
                return features[:, : self.out_features] + 1

        model[3] = Quantized(256, 10)

        with pytest.raises(ValueError, match=r"no operation of layer '3' \(Quantized\) .* count the model that it was"):
            place_layers(model, IMAGES, machine_with())

    def test_no_calls_are_no_measurement(self, model):
        """Refused before anything runs."""
        with pytest.raises(ValueError, match="calls is 0; it must be above 0"):
            place_layers(model, IMAGES, machine_with(), calls=0)
