"""Figures of pruning: the numbers are those of the data."""

from __future__ import annotations

import pandas as pd
import pytest

from deploykit import plots

GROUP = pd.DataFrame(
    {
        "layer": ["conv1", "bn1", "conv2"],
        "kind": ["Conv2d", "BatchNorm2d", "Conv2d"],
        "cut": ["output channels", "channels", "input channels"],
        "channels": [16, 16, 16],
    }
)


def test_the_channels_left_lie_inside_those_before():
    """Two bars for each layer, in the order given."""
    plot = plots.pruned_widths({"conv1": (16, 9), "conv2": (32, 32)})

    assert [bar.get_width() for bar in plot.axes[0].patches] == [16, 9, 32, 32]
    assert plot.alt == "Bars, channels left of those before, layer by layer: conv1 9 of 16, conv2 32 of 32."


def test_curves_stand_beside_each_other_on_a_linear_axis():
    """The points of two series at one place are moved apart, by equal amounts to either side of it."""
    series = {name: {0.0: (1.0, (0.9, 1.1)), 0.9: (2.0, (1.9, 2.1))} for name in ("dense", "CSR")}
    plot = plots.curves(series, x="sparsity", y="speed [x]", reference=1)
    first, second = (container[0].get_xdata() for container in plot.axes[0].containers)

    assert (first + second) / 2 == pytest.approx([0.0, 0.9])
    assert 0 < second[0] - first[0] < 0.02
    assert plot.alt == "Lines, speed [x], against sparsity: dense 1.00 at 0, 2.00 at 0.9; CSR 1.00 at 0, 2.00 at 0.9."


def test_inputs_are_cut_at_the_left_and_outputs_at_the_right():
    """A batch norm, whose inputs are its outputs, is cut at both sides."""
    plot = plots.dependency_boxes(GROUP)
    strips = [(round(bar.get_y() + 0.36), bar.get_x() < 0.5) for bar in plot.axes[0].patches if bar.get_hatch()]

    assert strips == [(0, False), (1, True), (1, False), (2, True)]
    assert plot.alt.endswith("conv1 (Conv2d), bn1 (BatchNorm2d), conv2 (Conv2d).")


@pytest.mark.parametrize("draw", [lambda: plots.pruned_widths({}), lambda: plots.curves({"a": {}}, x="x", y="y")])
def test_nothing_to_draw_is_an_error(draw):
    """It says what to give."""
    with pytest.raises(ValueError, match=r"no (layer|curve) to draw: give at least one"):
        draw()
