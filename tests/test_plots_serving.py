"""Pictures of a service under load: points are where the requests were, and refusals are told apart."""

from __future__ import annotations

import types

import numpy as np
import pandas as pd
import pytest

from deploykit import plots


def run(latencies_ms, *, refused: int = 0):
    """Return what a run of the load generator looks like to a picture."""
    times = np.array([*latencies_ms, *[1.0] * refused]) / 1000
    return types.SimpleNamespace(latency_s=times, ok=np.arange(len(times)) < len(latencies_ms))


def test_points_are_median_and_95th_percentile_of_the_answered():
    """A refusal that came after a millisecond makes no service fast."""
    axes = plots.load_curves({"int8": {100.0: run(range(1, 102), refused=50)}}).axes[0]
    points = [(line.get_xdata()[0], line.get_ydata()[0]) for line in axes.lines if line.get_marker() == "o"]

    assert points == [(100.0, pytest.approx(51.0)), (100.0, pytest.approx(96.0))]


def test_a_point_with_refusals_is_hollow_and_said():
    """Its times are of those that were let in."""
    plot = plots.load_curves({"int8": {100.0: run([2.0] * 9), 900.0: run([5.0] * 9, refused=3)}})
    faces = [line.get_markerfacecolor() for line in plot.axes[0].lines if line.get_marker() == "o"]

    assert [face == "white" for face in faces] == [False, True, False, True]
    assert plot.alt == (
        "Lines, median and 95th percentile of latency against the rate. int8 2.00 and 2.00 ms at 100/s, "
        "5.00 and 5.00 ms at 900/s with 25% not answered."
    )


def test_a_rate_at_which_nothing_was_answered_has_no_point():
    """There is no latency to draw."""
    plot = plots.load_curves({"int8": {100.0: run([2.0]), 900.0: run([], refused=3)}})

    assert "900" not in plot.alt


def test_no_run_is_refused():
    """There is nothing to draw."""
    with pytest.raises(ValueError, match="no run to draw"):
        plots.load_curves({"int8": {}})


def test_each_gauge_has_a_panel_and_each_step_a_line_in_all():
    """The table's columns in their order, and what began when."""
    table = pd.DataFrame({"time_s": [0.5, 1.0], "cpu_cores": [0.1, 1.5], "memory_mib": [500.0, 510.0]})
    plot = plots.watched(table, steps=[(0.6, "100/s")])
    cores, memory = plot.axes

    assert [axes.lines[0].get_ydata().tolist() for axes in (cores, memory)] == [[0.1, 1.5], [500.0, 510.0]]
    assert [axes.lines[1].get_xdata() for axes in (cores, memory)] == [[0.6, 0.6]] * 2
    assert plot.alt == ("Lines over 1.0 s: cores busy 0.100 to 1.50; memory [MiB] 500 to 510. Marked: 100/s at 0.6 s.")


def test_no_samples_are_refused():
    """There is nothing to draw."""
    with pytest.raises(ValueError, match="no samples to draw: watch for longer than every_s"):
        plots.watched(pd.DataFrame({"time_s": [], "cpu_cores": []}))
