"""Figures show names as text, units on axes, and say in words what is to be seen."""

from types import SimpleNamespace

import matplotlib as mpl
import numpy as np
import pytest

from deploykit import plots
from deploykit.figures import Plot, new_figure
from deploykit.measure import Ratio

EVIL = "<img src=x onerror=alert(1)>"


def timed(ms, *, calls=100, batch=1):
    """A measurement around a known median, in the form of ``measure.Measurement``."""
    samples = tuple(ms * np.linspace(0.98, 1.02, calls))
    p95_ms = float(np.percentile(samples, 95)) if calls >= 59 else None
    return SimpleNamespace(
        samples_ms=samples, median_ms=ms, iqr_ms=0.02 * ms, p95_ms=p95_ms, throughput_per_s=1000 * batch / ms
    )


def rated(accuracy):
    """An accuracy with an interval of two points to each side."""
    return SimpleNamespace(accuracy=accuracy, interval=(accuracy - 0.02, accuracy + 0.02))


def race(**contestants):
    """A comparison of given medians; the first is the baseline."""
    measurements = {name: timed(ms) for name, ms in contestants.items()}
    first = next(iter(contestants))
    return SimpleNamespace(
        measurements=measurements,
        baseline=first,
        ratio=lambda name: Ratio(*(contestants[first] / contestants[name] * f for f in (1, 0.95, 1.05))),
    )


EVERY = {
    "image_grid": lambda name: plots.image_grid(np.zeros((3, 8, 8, 3), np.uint8), [0, 0, 1], [name, "b"]),
    "latency_bars": lambda name: plots.latency_bars(race(**{name: 4.0, "b": 2.0})),
    "batch_curve": lambda name: plots.batch_curve({name: {1: timed(1), 8: timed(4, batch=8)}}),
    "samples_over_time": lambda name: plots.samples_over_time({name: timed(3), "b": [30.0, 3.0, 3.0]}),
    "disturbed_calls": lambda name: plots.disturbed_calls([0, 1, 2], [5, 9, 5], disturbed_s=(0.5, 1.5), by=name),
    "interval_dots": lambda name: plots.interval_dots({name: rated(0.9), "b": rated(0.8)}),
    "accuracy_differences": lambda name: plots.accuracy_differences({name: (0.01, (-0.01, 0.03))}),
    "accuracy_latency": lambda name: plots.accuracy_latency(
        {name: (rated(0.9), timed(2)), "b": (rated(0.8), timed(1))}
    ),
}


@pytest.mark.parametrize("draw", EVERY.values(), ids=EVERY)
@pytest.mark.parametrize("name", [EVIL, r"$\frac{$", "a_b^c"])
def test_a_name_is_drawn_as_text(draw, name):
    """Neither HTML nor a broken formula in a name changes or stops a figure; the alt text has it whole."""
    plot = draw(name)
    data, metadata = plot._repr_mimebundle_()

    assert data["image/png"].startswith(b"\x89PNG")
    assert name in plot.alt
    assert data["text/plain"] == metadata["image/png"]["alt"] == plot.alt
    assert not any(text.get_parse_math() for text in plot.findobj(mpl.text.Text) if name in text.get_text())


@pytest.mark.parametrize("draw", [d for n, d in EVERY.items() if n != "image_grid"], ids=list(EVERY)[1:])
def test_axes_with_a_quantity_carry_its_unit(draw):
    """Every measured axis names its unit in its label."""
    labels = [axes.get_xlabel() + axes.get_ylabel() for axes in draw("a").axes]

    assert labels
    assert all(any(unit in label for unit in ("[ms]", "[%]", "[percentage points]", "per second")) for label in labels)


def test_the_longest_bar_is_the_slowest_and_the_baseline_is_named():
    """Bars are medians in ms; the alt text gives the speed-up with its interval."""
    plot = plots.latency_bars(race(eager=4.0, compiled=2.0))

    assert [bar.get_width() for bar in plot.axes[0].patches] == [4.0, 2.0]
    assert plot.alt == (
        "Bars of the median time per call: eager 4.000 ms, baseline; compiled 2.000 ms, 2.00x (1.90 to 2.10)."
    )


def test_bars_differ_without_colour():
    """Neighbours have another hatch, for greyscale print."""
    hatches = [bar.get_hatch() for bar in plots.latency_bars(race(a=3.0, b=2.0, c=1.0)).axes[0].patches]

    assert len(set(hatches)) == 3


def test_too_few_calls_for_a_percentile_are_said():
    """There is no whisker that was not measured."""
    trial = race(a=3.0)
    trial.measurements = {"a": timed(3.0, calls=20)}
    plot = plots.latency_bars(trial)

    assert any("no p95" in text.get_text() for text in plot.axes[0].texts)


def test_the_first_call_is_in_the_alt_text_of_a_run():
    """Warm-up is told in words too."""
    assert "naive: 3 calls, the first 30.0 ms, median 3.00 ms, slowest 30.0 ms" in (
        plots.samples_over_time({"naive": [30.0, 3.0, 3.0]}).alt
    )


def test_a_dot_may_stand_for_several_calls():
    """Dots are numbered as what they stand for, and the time is still that of a call."""
    plot = plots.samples_over_time({"loop": [30.0, 3.0, 3.0]}, what="run")

    assert (plot.axes[0].get_xlabel(), plot.axes[0].get_ylabel()) == ("run number", "time per call [ms]")
    assert plot.alt.startswith("Time per call, run by run. loop: 3 runs, the first 30.0 ms")


def test_a_disturbance_is_shaded_and_told_apart():
    """The span is where it was said to be; means are those before, during and after it, its begin being inside."""
    plot = plots.disturbed_calls([0, 1, 2, 3, 4], [2, 4, 8, 10, 3], disturbed_s=(2, 4), by="a neighbour")
    shade = plot.axes[0].patches[0]

    assert (shade.get_x(), shade.get_width()) == (2, 2)
    assert plot.alt == (
        "Time of 5 calls against the moment of each, beside a neighbour: on average before 3.00 ms, during 9.00 ms, "
        "after 3.00 ms."
    )


def test_a_time_for_every_beginning_is_needed():
    """A call without its moment, or no call, is refused."""
    for began, took in (([0, 1], [5]), ([], [])):
        with pytest.raises(ValueError, match=rf"^{len(took)} times for {len(began)} beginnings; give one of each"):
            plots.disturbed_calls(began, took, disturbed_s=(0, 1), by="x")


def test_differences_are_in_points_around_no_difference():
    """Fractions become percentage points; 0 is marked, and signs are written."""
    plot = plots.accuracy_differences({"paired": (-0.003, (-0.008, 0.002))}, of="int8 minus fp32")
    zero, dot = plot.axes[0].lines[:2]

    assert list(zero.get_xdata()) == [0, 0]
    assert dot.get_xdata() == pytest.approx([-0.3])
    assert plot.alt == (
        "Differences in percentage points with 95 % intervals, int8 minus fp32: paired -0.30 (-0.80 to +0.20)."
    )


def test_matplotlibs_settings_are_left_alone():
    """Drawing changes no setting of the reader's own figures."""
    with mpl.rc_context({"font.size": 17.0, "axes.grid": False, "text.parse_math": True}):
        before = dict(mpl.rcParams)
        EVERY["latency_bars"]("a")._repr_mimebundle_()

        assert dict(mpl.rcParams) == before


def test_pictures_that_are_normalised_or_unlabelled_are_refused():
    """Floats and missing labels are answered before anything is drawn."""
    with pytest.raises(ValueError, match=r"^images are float32 \(1, 8, 8, 3\); a grid needs uint8 \[N, H, W, 3\]"):
        plots.image_grid(np.zeros((1, 8, 8, 3), np.float32), [0], ["a"])
    with pytest.raises(ValueError, match=r"^2 images but 1 labels; give one label for each image$"):
        plots.image_grid(np.zeros((2, 8, 8, 3), np.uint8), [0], ["a"])


def test_nothing_to_draw_is_an_error():
    """Empty input is named, not drawn as an empty figure."""
    for draw in (
        plots.batch_curve,
        plots.samples_over_time,
        plots.interval_dots,
        plots.accuracy_latency,
        plots.accuracy_differences,
    ):
        with pytest.raises(ValueError, match="at least one"):
            draw({})


def test_show_gives_the_alt_text_to_jupyter(monkeypatch):
    """The output's metadata carries the alt text where nbconvert's templates look for it."""
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, **options: shown.append((data, options)))
    plots.show(EVERY["interval_dots"]("a"))

    data, options = shown[0]
    assert options["metadata"] == {"image/png": {"alt": data["text/plain"]}}


def test_a_figure_without_alt_text_is_not_shown():
    """A reader's own figure needs a sentence."""
    with pytest.raises(ValueError, match=r"^this figure has no alt text: pass alt="):
        plots.show(new_figure(2.0))
    assert Plot.alt == ""
