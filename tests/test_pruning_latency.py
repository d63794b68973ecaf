"""Latency as a cost: a kernel that works in blocks of channels, simulated so that every number is known."""

from __future__ import annotations

import math

import pytest
import torch
from small_residual import SmallResidual, images
from torch import nn

pytest.importorskip("torch_pruning")

from deploykit.pruning.channels import prune_channels
from deploykit.pruning.latency import RememberedLatency, fastest_ms, latency_cost, layer_latencies
from deploykit.pruning.planning import plan_pruning


def blocks_of_four(layer, values) -> float:
    """Return the milliseconds of a kernel that pads its outputs to a multiple of four and reads every input channel."""
    if isinstance(layer, nn.Linear):
        return 0.0
    return math.ceil(layer.out_channels / 4) * layer.in_channels * len(values)


def narrow_is_slow(layer, values) -> float:
    """Return milliseconds of a machine on which only layers with few pixels matter."""
    return float(layer.out_channels) if isinstance(layer, nn.Conv2d) and values.shape[-1] == 4 else 0.0


class TwoSizes(nn.Module):
    """A wide layer on 8x8 pixels, which has most MACs, and one on 4x4; images [N, 3, 8, 8]."""

    def __init__(self) -> None:
        super().__init__()
        self.large = nn.Conv2d(3, 16, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.small = nn.Conv2d(16, 16, 3, padding=1)
        self.fc = nn.Conv2d(16, 4, 4)

    def forward(self, pictures):
        """Map float32 [N, 3, 8, 8] to logits [N, 4]."""
        return self.fc(self.small(self.pool(self.large(pictures).relu())).relu()).flatten(1)


class TestTable:
    def test_every_width_is_measured(self):
        """Full and each multiple of four; the inputs as they are."""
        table = layer_latencies(SmallResidual(), images(2), round_to=4, measure=blocks_of_four)

        assert table[["layer", "inputs", "outputs"]].to_numpy().tolist() == [
            ["stem", 3, 4],
            ["stem", 3, 8],
            ["conv1", 8, 4],
            ["conv1", 8, 8],
        ]
        assert table.latency_ms.tolist() == [1 * 3 * 2, 2 * 3 * 2, 1 * 8 * 2, 2 * 8 * 2]
        assert table.macs_share.tolist() == [0.5, 1.0, 0.5, 1.0]

    def test_the_layer_is_measured_as_it_would_be(self):
        """With the input of its place in the network, its channels and batch size included."""
        seen = []
        layer_latencies(
            SmallResidual(), images(2), round_to=8, measure=lambda layer, x: seen.append((repr(layer), x.shape)) or 1
        )

        assert ("Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), bias=False)", (2, 3, 8, 8)) in seen

    def test_inputs_and_outputs_shrink_alike(self):
        """A layer behind a pruned one reads fewer channels; a linear layer keeps its features last."""
        seen = {}

        def measure(layer, values):
            seen[type(layer).__name__] = (layer.weight.shape, values.shape)
            return float(values.shape[1] + layer(values).numel())

        cost = latency_cost(SmallResidual(), images(2), measure)
        cost("conv2", 5, 8)
        cost("fc", 3, 4)

        assert seen == {"Conv2d": ((8, 5, 3, 3), (2, 5, 8, 8)), "Linear": ((4, 3), (2, 3))}

    def test_a_shape_is_measured_once(self):
        """Across plans too, when they share the memory."""
        calls = []
        latency = RememberedLatency(lambda layer, values: calls.append(layer) or 1.0)
        layer_latencies(SmallResidual(), images(2), round_to=4, measure=latency)
        layer_latencies(SmallResidual(), images(2), round_to=4, measure=latency)

        assert len(calls) == 4

    def test_interference_does_not_count(self, monkeypatch):
        """Of calls that take 9, 3 and 7 ms the fastest is the answer, and the unmeasured ones before are none."""
        taken = iter([0.001, 0.001, 0.001, 0.009, 0.003, 0.007])
        layer, clock = nn.Linear(2, 2), [0.0]
        layer.register_forward_hook(lambda *_: clock.append(clock[-1] + next(taken)))
        monkeypatch.setattr("deploykit.pruning.latency.time.perf_counter", lambda: clock[-1])

        assert fastest_ms(layer, torch.zeros(1, 2), repeats=3) == pytest.approx(3)

    def test_the_default_measures_milliseconds(self):
        """A layer of a few operations takes less than a second, and some time."""
        assert 0 < fastest_ms(nn.Linear(2, 2), torch.zeros(1, 2), repeats=3) < 1000

    def test_refused(self):
        """No block of channels has no width."""
        with pytest.raises(ValueError, match=r"round_to is 0; give 1, or the block size"):
            layer_latencies(SmallResidual(), images(1), round_to=0)
        with pytest.raises(ValueError, match=r"layer_latencies finds no channel that can go \(no convolution"):
            layer_latencies(nn.ReLU(), images(1))


class TestPlans:
    def test_the_target_is_met_in_the_measures_own_terms(self):
        """The plan's milliseconds are those of the pruned model's layers."""
        model = SmallResidual()
        plan = plan_pruning(model, images(2), target_latency=50, latency=blocks_of_four)
        pruned = prune_channels(model, plan)
        layers = {"stem": 8, "conv1": 8, "conv2": 8}
        spent = sum(blocks_of_four(pruned.get_submodule(name), torch.zeros(2, 1, 8, 8)) for name in layers)

        assert plan.latency_ms == (2 * (2 * 3 + 2 * 8 + 2 * 8), spent)
        assert spent == pytest.approx(50, rel=0.3)
        assert "milliseconds 76 -> " in str(plan)

    def test_widths_stop_where_the_kernel_has_a_step(self):
        """A fifth channel costs as much as eight: no width between the steps is chosen for its output alone."""
        model = nn.Sequential(nn.Conv2d(3, 16, 1), nn.ReLU(), nn.Conv2d(16, 2, 1))
        outputs_only = plan_pruning(
            model, images(1), target_latency=9, latency=lambda layer, _: 3.0 * math.ceil(layer.out_channels / 4)
        )

        assert outputs_only.removals[0].kept == 8
        assert outputs_only.latency_ms == (15, 9)

    def test_it_cuts_where_time_is_not_where_macs_are(self):
        """The small layer takes all the time, the large one has more than half of the MACs."""
        model = TwoSizes()
        by_time = plan_pruning(model, images(1), target_latency=10, latency=narrow_is_slow)
        by_macs = plan_pruning(model, images(1), target_macs=round(0.62 * by_time.macs[0]), scope="cost")

        assert [removal.kept for removal in by_time.removals] == [16, 6]
        assert by_macs.removals[0].kept < 16

    def test_unreachable(self):
        """With the nearest, in milliseconds."""
        options = {"latency": lambda layer, _: 5.0}
        with pytest.raises(
            ValueError, match=r"the target 3 ms cannot be reached: .* nearest that can be reached is 20 ms"
        ):
            plan_pruning(SmallResidual(), images(1), target_latency=3, **options)
        with pytest.raises(ValueError, match=r"the target 99 ms is more than what the model has, 20 ms"):
            plan_pruning(SmallResidual(), images(1), target_latency=99, **options)
