"""Figures of a profile and of the roofline: the numbers are those of the tables, and names are text."""

from __future__ import annotations

import math

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

from deploykit import plots
from deploykit.peaks import MemoryLevel, Peaks
from deploykit.profiling import LayerTime, OperatorTime, Profile

EVIL = r"$\frac{$ <img src=x onerror=alert(1)>"
PEAKS = Peaks({"fp32": 200, "int8": 800}, (MemoryLevel("L2", 2, 400), MemoryLevel("DRAM", math.inf, 20)), 3, {}, 2, 128)


def profile_of(*, operators: dict[str, float], layers: dict[str, float] | None = None) -> Profile:
    """A profile of given times; layers are of a kind of their own."""
    return Profile(
        tuple(OperatorTime(name, 1, ms) for name, ms in operators.items()),
        tuple(LayerTime(name.lower(), name, ms) for name, ms in (layers or {}).items()),
        8.0, 8.8, 10.0, 3, 64, 2, {},
    )  # fmt: skip


def layers_at(*points: tuple[str, str, float, float, float], bound: str = "compute") -> pd.DataFrame:
    """A table as of ``place_layers``."""
    columns = ["layer", "layer_type", "intensity", "gflops", "ms"]
    return pd.DataFrame(points, columns=columns).assign(bound=bound)


EVERY = {
    "operator_shares": lambda name: plots.operator_shares(profile_of(operators={name: 3, "b": 1}, layers={"A": 1})),
    "roofline": lambda name: plots.roofline(layers_at((name, "Conv2d", 30, 100, 2), ("b", "ReLU", 0.1, 2, 1)), PEAKS),
    "time_against_macs": lambda name: plots.time_against_macs(
        pd.DataFrame({"kind": [name, "b"], "macs": [1e6, 2e6], "ms": [1.0, 1.0]}), macs_per_ms=1e6
    ),
}


@pytest.mark.parametrize("draw", EVERY.values(), ids=EVERY)
def test_a_name_is_drawn_as_text(draw):
    """Neither HTML nor a broken formula in a name changes or stops a figure; the alt text has it whole."""
    plot = draw(EVIL)
    data, metadata = plot._repr_mimebundle_()

    assert data["image/png"].startswith(b"\x89PNG")
    assert EVIL in plot.alt == metadata["image/png"]["alt"]
    assert not any(text.get_parse_math() for text in plot.findobj(mpl.text.Text) if EVIL in text.get_text())


class TestOperatorShares:
    def test_bars_are_shares_of_time(self):
        """3 of 4 ms are 75 %, in the bar, beside it and in the alt text."""
        plot = plots.operator_shares(profile_of(operators={"conv": 3.0, "add": 1.0}))
        (axes,) = plot.axes

        assert [bar.get_width() for bar in axes.patches] == [75, 25]
        assert "75 %, 3.00 ms" in [text.get_text() for text in axes.texts]
        assert plot.alt == "Bars of the share of time in a call at batch 64. by operator: conv 75 %, add 25 %."

    def test_layers_have_a_panel_of_their_own(self):
        """Kinds of layers stand below the operators, on the same axis in percent."""
        plot = plots.operator_shares(profile_of(operators={"conv": 1}, layers={"ReLU": 1, "Conv2d": 3}))

        assert [axes.get_title("left") for axes in plot.axes] == ["By operator", "By kind of layer"]
        assert plot.axes[-1].get_xlabel() == "share of time [%]"
        assert "by kind of layer: Conv2d 75 %, ReLU 25 %" in plot.alt

    def test_the_many_small_ones_are_one_bar(self):
        """Seven operators are named; the others are counted and added up, and nothing is lost."""
        plot = plots.operator_shares(profile_of(operators={f"op{number}": 1.0 for number in range(20)}))

        assert "op6 5 %, 13 others 65 %." in plot.alt
        assert sum(bar.get_width() for bar in plot.axes[0].patches) == pytest.approx(100)

    def test_nothing_to_draw_is_refused(self):
        """A profile of what runs no operator of torch's has no bars."""
        with pytest.raises(ValueError, match="this profile has no operators"):
            plots.operator_shares(profile_of(operators={}))


class TestRoofline:
    def test_layers_of_one_kind_and_place_are_one_point(self):
        """Three equal layers are one point at their median speed; a fourth at four times the intensity is another."""
        layers = layers_at(
            *[(f"c{speed}", "Conv2d", 30, speed, 1) for speed in (90, 100, 150)], ("far", "Conv2d", 120, 60, 1)
        )
        points = [
            tuple(np.asarray(found.get_offsets())[0]) for found in plots.roofline(layers, PEAKS).axes[0].collections
        ]

        assert sorted(points) == [(30, 100), (120, 60)]

    def test_roofs_meet_at_the_ridge(self):
        """A slope ends where the bandwidth feeds the highest peak: 400 GB/s reach 800 GFLOP/s at 2 FLOP a byte."""
        axes = plots.roofline(layers_at(("a", "Conv2d", 30, 100, 1)), PEAKS).axes[0]
        ends = [(line.get_xdata()[-1], line.get_ydata()[-1]) for line in axes.lines[:2]]

        assert ends == [(2, 800), (40, 800)]
        assert (axes.get_xlabel(), axes.get_ylabel()) == ("intensity [FLOP per byte]", "speed [GFLOP/s]")

    def test_overhead_is_hollow(self):
        """Where calling takes longer than the work, the point is white inside."""
        (point,) = plots.roofline(layers_at(("a", "Conv2d", 30, 1, 1), bound="overhead"), PEAKS).axes[0].collections

        assert tuple(point.get_facecolor()[0][:3]) == (1, 1, 1)

    def test_the_alt_text_has_roofs_and_slowest_layers(self):
        """Who cannot see the figure reads what binds the layer that takes most of the time."""
        plot = plots.roofline(layers_at(("a", "Conv2d", 30, 100, 3), ("b", "ReLU", 0.1, 2, 1)), PEAKS)

        assert "Roofs: fp32 200 GFLOP/s, int8 800 GFLOP/s, L2 400 GB/s, DRAM 20.0 GB/s." in plot.alt
        assert "a (Conv2d, compute-bound) 75% of the time, 100 GFLOP/s at 30.0 FLOP per byte" in plot.alt

    def test_nothing_to_draw_is_refused(self):
        """The message says what to give."""
        with pytest.raises(ValueError, match=r"no layers to draw: give what roofline\.place_layers returned"):
            plots.roofline(layers_at(), PEAKS)


class TestTimeAgainstMacs:
    def test_points_and_line(self):
        """A layer of 4 million MACs lies at 4; at a million a millisecond the line passes there at 4 ms."""
        layers = pd.DataFrame({"kind": ["1x1", "3x3"], "macs": [1e6, 4e6], "ms": [1.0, 8.0]})
        plot = plots.time_against_macs(layers, macs_per_ms=1e6)
        line, one, three = plot.axes[0].lines

        assert (list(line.get_xdata()), list(line.get_ydata())) == ([1, 4], [1, 4])
        assert (one.get_ydata(), three.get_xdata(), three.get_ydata()) == (1, 4, 8)
        assert "Typical factor between the two: 1x1 1.00, 3x3 2.00." in plot.alt

    def test_nothing_to_draw_is_refused(self):
        """The message says which columns are needed."""
        with pytest.raises(ValueError, match="no layers to draw: give a row with kind, macs and ms for each"):
            plots.time_against_macs(pd.DataFrame({"kind": [], "macs": [], "ms": []}), macs_per_ms=1.0)
