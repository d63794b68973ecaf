"""The Pareto picture: its points are the table's, the front is told apart, and names are text."""

from __future__ import annotations

import pandas as pd
import pytest

from deploykit import plots

TABLE = pd.DataFrame(
    {"accuracy": [0.92, 0.91, 0.90], "latency_ms": [2.0, 0.5, 0.7], "size_kib": [1000.0, 300.0, 250.0]},
    index=["float32", "int8", "worse"],
)


def test_points_are_where_the_numbers_say():
    """Dominated ones and those of the front are drawn apart, areas in proportion to the files."""
    behind, front = plots.pareto(TABLE).axes[0].collections

    assert behind.get_offsets().tolist() == [[0.7, 90.0]]
    assert front.get_offsets().tolist() == [[0.5, 91.0], [2.0, 92.0]]
    assert front.get_sizes()[1] / front.get_sizes()[0] == pytest.approx(1000 / 300)


def test_points_are_numbered_from_fast_to_slow_and_named_beside():
    """A number stands at its point; the front is listed first."""
    plot = plots.pareto(TABLE)
    at = {text.get_text(): text.xy for text in plot.axes[0].texts}

    assert at == {"1": (0.5, 91.0), "2": (0.7, 90.0), "3": (2.0, 92.0)}
    assert [text.get_text() for text in plot.legends[0].get_texts()] == [
        "on the front", "1  int8", "3  float32", "dominated", "2  worse",
    ]  # fmt: skip


def test_the_alt_text_has_the_front_from_fast_to_slow():
    """What a reader of the picture would say first."""
    assert plots.pareto(TABLE).alt == (
        "Bubbles, accuracy against time per call of 3 variants. On the Pareto front: int8 91.0 % at 0.500 ms, 300 KiB; "
        "float32 92.0 % at 2.00 ms, 1,000 KiB."
    )


def test_demands_are_lines():
    """At the accuracy and at the time that were asked for."""
    lines = plots.pareto(TABLE, least_accuracy=0.905, most_ms=1.0).axes[0].lines[1:]

    assert [line.get_ydata()[0] for line in lines[:1]] == [90.5]
    assert [line.get_xdata()[0] for line in lines[1:]] == [1.0]


def test_the_chosen_one_has_a_ring_and_the_word():
    """Around its point, larger than its bubble; in the legend and in the alt text; a name of no row is refused."""
    plot = plots.pareto(TABLE, chosen="int8")
    _, front, ring = plot.axes[0].collections

    assert ring.get_offsets().tolist() == [[0.5, 91.0]]
    assert ring.get_sizes()[0] > front.get_sizes()[0]
    assert "1  int8 (chosen)" in [text.get_text() for text in plot.legends[0].get_texts()]
    assert plot.alt.endswith(" Chosen: int8.")
    with pytest.raises(ValueError, match="there is no variant 'int4'; there are float32, int8, worse"):
        plots.pareto(TABLE, chosen="int4")


def test_no_variant_is_refused():
    """There is nothing to draw."""
    with pytest.raises(ValueError, match="no variant to draw"):
        plots.pareto(TABLE.iloc[:0])


def test_the_names_of_many_variants_are_all_in_the_picture():
    """A figure of fixed height cut the list below its edge; forty names, half of them on two lines."""
    names = [f"network {number} with a long name, int8" if number % 2 else f"network {number}" for number in range(40)]
    many = pd.DataFrame({"accuracy": 0.9, "latency_ms": range(1, 41), "size_kib": 100.0}, index=names)
    plot = plots.pareto(many)
    plot.draw_without_rendering()
    listed = plot.legends[0].get_window_extent()

    assert listed.y0 >= 0
    assert listed.y1 <= plot.bbox.y1
