"""Optimizers do to the weights what their papers say; schedules have their peak and their end."""

import math

import pytest
import torch
from torch import nn

from deploykit import optimizers
from deploykit.models import resnet
from deploykit.optimizers import schedule_factor


class TestOptimizers:
    def test_muon_orthogonalises_the_convolutions_and_not_the_rest(self) -> None:
        """After one step the update of a convolution, as a matrix, has singular values near one another."""
        pytest.importorskip("timm", reason="timm (extra training) is not installed")
        model = resnet(8, classes=3)
        before = model.blocks[0].conv1.weight.detach().clone()
        optimizer = optimizers.muon(model, weight_decay=0.0)
        images, labels = torch.rand(32, 3, 32, 32), torch.arange(32) % 3
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()

        values = torch.linalg.svdvals((model.blocks[0].conv1.weight.detach() - before).flatten(1))
        assert values.max() / values.min() < 3

    def test_adamw_decays_weights_and_spares_biases_and_gains(self):
        """One step without gradient: what decays shrinks by learning rate times decay, the rest stays."""
        model = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.LSTM(3, 2))
        nn.init.ones_(model[0].bias)
        before = {name: value.detach().clone() for name, value in model.named_parameters()}
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizers.adamw(model, peak_lr=0.1, weight_decay=0.5).step()

        for name, value in model.named_parameters():
            torch.testing.assert_close(value.detach(), before[name] * (0.95 if value.ndim > 1 else 1.0))


class TestSchedule:
    @pytest.mark.parametrize(("progress", "expected"), [(0.0, 0.0), (0.1, 0.5), (0.2, 1.0), (0.6, 0.5), (1.0, 0.0)])
    @pytest.mark.parametrize("schedule", ["cosine", "one-cycle"])
    def test_warm_up_peak_middle_and_end(self, schedule: str, progress: float, expected: float) -> None:
        """Both are at half the peak halfway down and end at nought."""
        assert schedule_factor(progress, schedule=schedule, warmup=0.2) == pytest.approx(expected)

    def test_the_cosine_lies_above_the_line_at_first(self) -> None:
        """A quarter of the way down: cos 45 degrees."""
        assert schedule_factor(0.25) == pytest.approx((1 + math.sqrt(0.5)) / 2)
        assert schedule_factor(0.25, schedule="one-cycle") == pytest.approx(0.75)
