"""Figures of quantization: the numbers are those of the data."""

from __future__ import annotations

import pandas as pd
import pytest

from deploykit import plots

LAYERS = pd.DataFrame({"layer": ["conv", "fc"], "sqnr_db": [40.5, 46.1]})


def test_levels_are_counted_by_the_nearest():
    """0.1 and -0.2 round to 0, 1.4 to 1: two of the three levels are used, whatever lies beyond the last."""
    plot = plots.quantization_grids({"one": ([0.1, -0.2, 1.4, 0.9], [-2, 0, 1])}, of="weight")

    assert "2 of 3 levels from -2 to 1.00 used" in plot.alt.replace("-2.00", "-2")
    assert plot.axes[0].get_title(loc="left") == "one: 2 of 3 levels used"


def test_every_layer_has_its_bar_and_the_marked_ones_are_hatched():
    """In the table's order, with their numbers."""
    plot = plots.layer_bars(LAYERS, "sqnr_db", label="SQNR [dB]", marked=["conv"])
    bars = plot.axes[0].patches

    assert [(bar.get_width(), bar.get_hatch()) for bar in bars] == [(40.5, "///"), (46.1, None)]
    assert plot.alt == "Bars, SQNR [dB], layer by layer: conv 40.5, fc 46.1. Marked: conv."


def test_curves_have_their_intervals():
    """Points in the order of the images, ends where the interval has them."""
    plot = plots.calibration_curves({"minmax": {64: (0.1, (-0.1, 0.2)), 8: (0.5, (0.3, 0.9))}})
    line, (segments,) = plot.axes[0].containers[0][0], plot.axes[0].containers[0][2]

    assert line.get_ydata().tolist() == [0.5, 0.1]
    assert [part[:, 1].tolist() for part in segments.get_segments()] == [
        pytest.approx([0.3, 0.9]),
        pytest.approx([-0.1, 0.2]),
    ]
    assert plot.alt.endswith("against calibration images: minmax 0.500 at 8, 0.100 at 64.")


@pytest.mark.parametrize(
    "draw",
    [
        lambda: plots.quantization_grids({}),
        lambda: plots.layer_bars(LAYERS[:0], "sqnr_db", label="SQNR [dB]"),
        lambda: plots.calibration_curves({"minmax": {}}),
    ],
)
def test_nothing_to_draw_is_an_error(draw):
    """An empty figure would look like a result."""
    with pytest.raises(ValueError, match="to draw: "):
        draw()
