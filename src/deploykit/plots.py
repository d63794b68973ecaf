"""The figures of the course. Every function returns a ``Plot`` that carries an alt text built from its data.

Measurements, comparisons and accuracies are those of ``measure`` and ``training``; only their numbers are read. Names
of models and classes are shown as text, never as formula or markup.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from deploykit.figures import COLOURS, HATCHES, INK, LINES, MARKERS, QUIET, WIDTH_IN, Plot, new_figure, show, style
from deploykit.text import format_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torch import Tensor

__all__ = [
    "accuracy_latency",
    "batch_curve",
    "image_grid",
    "interval_dots",
    "latency_bars",
    "samples_over_time",
    "show",
    "style",
]

NAME_WIDTH = 26


def image_grid(
    images: Tensor | np.ndarray, labels: Sequence[int], classes: Sequence[str], *, columns: int = 10
) -> Plot:
    """Show pictures with the names of their classes.

    Args:
        images: uint8 [N, H, W, 3].
        labels: N class indices (a tensor will do).
        classes: names by index.
        columns: pictures per row.

    Raises:
        ValueError: no pictures, another shape or dtype, or a number of labels other than N.
    """
    pictures, indices = np.asarray(images), [int(label) for label in labels]
    if pictures.dtype != np.uint8 or pictures.shape[3:] != (3,) or not len(pictures):
        raise ValueError(
            f"images are {pictures.dtype} {pictures.shape}; a grid needs uint8 [N, H, W, 3] with N of 1 or more "
            "(take them from split.images, before normalisation)"
        )
    if len(indices) != len(pictures):
        raise ValueError(f"{len(pictures)} images but {len(indices)} labels; give one label for each image")
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    with style():
        cell = WIDTH_IN / columns
        plot = new_figure(rows * (cell + 0.06))
        for axes in (grid := plot.subplots(rows, columns, squeeze=False)).flat:
            axes.set_axis_off()
        for axes, picture, index in zip(grid.flat, pictures, indices, strict=False):
            axes.imshow(picture, interpolation="nearest")
            name = _wrapped(classes[index], max(6, int(cell * 13)))
            axes.set_title(name, fontsize=8, fontweight="normal", loc="center", pad=3)
    counts = {classes[index]: indices.count(index) for index in sorted(set(indices))}
    listed = ", ".join(f"{count} {name}" for name, count in counts.items())
    plot.alt = f"{len(pictures)} pictures in {rows} rows: {listed}."
    return plot


def latency_bars(comparison: Any) -> Plot:
    """Draw the median time per call of each contestant, with its 95th percentile and its speed-up over the baseline.

    The whisker ends at p95; a contestant with too few calls for one has no whisker, and its label says "no p95".

    Args:
        comparison: a ``measure.Comparison``.
    """
    measurements = comparison.measurements
    names = list(measurements)
    medians = [measurements[name].median_ms for name in names]
    tails = [measurements[name].p95_ms for name in names]
    ends = [max(median, tail or 0) for median, tail in zip(medians, tails, strict=True)]
    with style():
        plot = new_figure(1.0 + 0.52 * len(names))
        axes = plot.subplots()
        for row, (name, median, tail) in enumerate(zip(names, medians, tails, strict=True)):
            axes.barh(row, median, height=0.62, color=_tint(row), edgecolor=INK, hatch=_of(HATCHES, row), linewidth=0.8)
            if tail is not None:
                axes.errorbar(median, row, xerr=[[0], [max(tail - median, 0)]], color=INK, capsize=4, linewidth=1.3)
            text = f"{_ms(measurements[name])} ms{_speed_up(comparison, name)}"
            text += "" if tail is not None else "  (no p95)"
            _note(axes, text, (ends[row], row), offset=(7, 0), va="center")
        _name_rows(axes, names)
        axes.set_xlim(0, max(ends) * 1.55)  # room for the numbers beside the bars
        axes.set_xlabel("time per call [ms]: bar median, whisker up to p95")
        axes.grid(axis="y", visible=False)
    parts = [f"{name} {_ms(measurements[name])} ms{_speed_up(comparison, name)}" for name in names]
    plot.alt = f"Bars of the median time per call: {'; '.join(parts)}."
    return plot


def batch_curve(curves: Mapping[str, Mapping[int, Any]]) -> Plot:
    """Draw throughput and latency against batch size, a line for each setting, as two panels side by side.

    Args:
        curves: label (``"1 thread"``) to batch size to ``measure.Measurement``.

    Raises:
        ValueError: a curve without measurements.
    """
    if not curves or not all(curves.values()):
        raise ValueError("each curve needs at least one measurement: {'1 thread': {1: measurement, 8: …}}")
    sizes = sorted({size for curve in curves.values() for size in curve})
    panels = {
        "Throughput": ("images per second", lambda m: m.throughput_per_s),
        "Latency": ("time per batch [ms], median", lambda m: m.median_ms),
    }
    with style():
        plot = new_figure(3.4)
        for axes, (title, (unit, of)) in zip(plot.subplots(1, 2), panels.items(), strict=True):
            for number, (label, curve) in enumerate(curves.items()):
                batches = sorted(curve)
                axes.plot(
                    batches,
                    [of(curve[batch]) for batch in batches],
                    label=label,
                    linestyle=_of(LINES, number),
                    **_look(number),
                )
            axes.set_xscale("log", base=2)
            axes.set_xticks(sizes, [str(size) for size in sizes], minor=False)
            axes.set_xlabel("batch size [images]")
            axes.set_title(title)
            axes.set_ylabel(unit)
            _plain_log(axes) if title == "Latency" else axes.set_ylim(bottom=0)
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
        plot.axes[0].legend()
    parts = []
    for label, curve in curves.items():
        best = max(curve, key=lambda batch: curve[batch].throughput_per_s)
        ends = " to ".join(
            f"{curve[batch].throughput_per_s:,.0f} images per second and {_ms(curve[batch])} ms at batch {batch}"
            for batch in (min(curve), max(curve))
        )
        parts.append(f"{label}: from {ends}, the highest throughput at batch {best}")
    plot.alt = f"Throughput and latency against batch size. {'; '.join(parts)}."
    return plot


def samples_over_time(runs: Mapping[str, Any], *, title: str = "") -> Plot:
    """Draw the time of every single call in the order in which they were made, each run's median as a line.

    Warm-up shows as high first calls, a drifting machine as a slope or as two runs at different heights.

    Args:
        runs: label to ``measure.Measurement`` or to a sequence of times in ms.
        title: of the figure, if it needs one.

    Raises:
        ValueError: a run without calls.
    """
    times = {label: np.asarray(getattr(run, "samples_ms", run), dtype=float) for label, run in runs.items()}
    if not times or not all(map(len, times.values())):
        raise ValueError("each run needs the time of at least one call")
    with style():
        plot = new_figure(3.2)
        axes = plot.subplots()
        for number, (label, calls) in enumerate(times.items()):
            median = float(np.median(calls))
            name = f"{label}, median {_digits(median)} ms"
            axes.plot(range(1, len(calls) + 1), calls, linestyle="none", label=name, **_look(number, size=4.5))
            axes.axhline(median, color=_of(COLOURS, number), linestyle=_of(LINES, number), linewidth=1.3)
        everything = np.concatenate(list(times.values()))
        if everything.max() > 4 * everything.min() > 0:
            _plain_log(axes)
        else:
            axes.set_ylim(0, everything.max() * 1.08)
        axes.set_xlabel("call number")
        axes.set_ylabel("time per call [ms]")
        axes.set_title(title)
        plot.legend(loc="outside upper right", ncols=min(len(times), 2))
    parts = [
        f"{label}: {len(calls)} calls, the first {_digits(calls[0])} ms, median {_digits(float(np.median(calls)))} ms, "
        f"slowest {_digits(calls.max())} ms"
        for label, calls in times.items()
    ]
    plot.alt = f"Time of each call in order. {'; '.join(parts)}."
    return plot


def interval_dots(accuracies: Mapping[str, Any]) -> Plot:
    """Draw each accuracy as a dot with its interval (Wilson, 95 %).

    Args:
        accuracies: label to ``training.Accuracy``, or anything with ``accuracy`` and ``interval`` in 0..1.

    Raises:
        ValueError: no accuracies.
    """
    if not accuracies:
        raise ValueError("no accuracies to draw: give at least one, {'ResNet-20': evaluate(model, batches)}")
    names = list(accuracies)
    percent = {name: 100 * np.array([a.accuracy, *a.interval]) for name, a in accuracies.items()}
    with style():
        plot = new_figure(1.0 + 0.45 * len(names))
        axes = plot.subplots()
        for row, name in enumerate(names):
            value, low, high = percent[name]
            ends = [[value - low], [high - value]]
            axes.errorbar(value, row, xerr=ends, ecolor=INK, capsize=5, elinewidth=1.4, **_look(row, size=8))
            _note(axes, f"{value:.1f} %", (value, row), offset=(0, 9), ha="center")
        _name_rows(axes, names)
        axes.margins(x=0.12)
        axes.set_ylim(len(names) - 0.5, -0.75)
        axes.set_xlabel("accuracy [%], with 95 % interval")
        axes.grid(axis="y", visible=False)
    parts = [f"{name} {value:.1f} % ({low:.1f} to {high:.1f})" for name, (value, low, high) in percent.items()]
    plot.alt = f"Accuracies with 95 % intervals: {'; '.join(parts)}."
    return plot


def accuracy_latency(points: Mapping[str, tuple[Any, Any]]) -> Plot:
    """Draw accuracy with its interval against latency with its quartiles, a point for each model.

    Args:
        points: label to (``training.Accuracy``, ``measure.Measurement``), both of the same model.

    Raises:
        ValueError: no points.
    """
    if not points:
        raise ValueError("no points to draw: give at least one, {'ResNet-20': (accuracy, measurement)}")
    with style():
        plot = new_figure(3.8)
        axes = plot.subplots()
        for number, (name, (accuracy, measurement)) in enumerate(points.items()):
            value, low, high = 100 * np.array([accuracy.accuracy, *accuracy.interval])
            first, median, third = np.percentile(measurement.samples_ms, [25, 50, 75])
            spread: dict[str, Any] = {
                "xerr": [[median - first], [third - median]],
                "yerr": [[value - low], [high - value]],
            }
            lines: dict[str, Any] = {"ecolor": QUIET, "elinewidth": 1.2, "capsize": 3, "linestyle": "none"}
            axes.errorbar(median, value, label=name, **spread, **lines, **_look(number, size=9))
        medians = [measurement.median_ms for _, measurement in points.values()]
        if max(medians) > 5 * min(medians):
            _plain_log(axes, "x")
        else:
            axes.set_xlim(0, max(medians) * 1.15)
        axes.margins(y=0.15)
        axes.set_xlabel("time per call [ms]: median and quartiles (left is faster)")
        axes.set_ylabel("accuracy [%], 95 % interval")
        plot.legend(loc="outside right upper")
    parts = [f"{name} {100 * a.accuracy:.1f} % at {_ms(m)} ms" for name, (a, m) in points.items()]
    plot.alt = f"Accuracy against time per call: {'; '.join(parts)}."
    return plot


def _of(cycle: Sequence[Any], number: int) -> Any:
    return cycle[number % len(cycle)]


def _look(number: int, size: float = 6) -> dict[str, Any]:
    edge = {"markeredgecolor": INK, "markeredgewidth": 0.5}
    return {"color": _of(COLOURS, number), "marker": _of(MARKERS, number), "markersize": size, **edge}


def _note(axes: Axes, text: str, at: tuple[float, float], *, offset: tuple[float, float], **align: Any) -> None:
    axes.annotate(text, at, xytext=offset, textcoords="offset points", fontsize=9, **align)


def _tint(number: int) -> tuple[float, float, float]:
    # Hatches are drawn in ink; on a full colour they would be lost in greyscale.
    from matplotlib.colors import to_rgb

    red, green, blue = (1 - 0.55 * (1 - channel) for channel in to_rgb(_of(COLOURS, number)))
    return red, green, blue


def _wrapped(name: str, width: int = NAME_WIDTH) -> str:
    return textwrap.fill(str(name), width, max_lines=2, placeholder=" …", break_long_words=False)


def _name_rows(axes: Axes, names: Iterable[str]) -> None:
    labels = [_wrapped(name) for name in names]
    axes.set_yticks(range(len(labels)), labels)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(labels) - 0.5, -0.5)


def _plain_log(axes: Axes, which: str = "y") -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set(**{f"{which}scale": "log"})
    axis = axes.yaxis if which == "y" else axes.xaxis
    axis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.set_minor_formatter(NullFormatter())


def _digits(value: float) -> str:
    return format_interval(value, value, value)[0]


def _ms(measurement: Any) -> str:
    # A median is known about as well as its quartiles, narrowed by the number of calls (McGill, Tukey, Larsen 1978).
    margin = 1.57 * measurement.iqr_ms / max(len(measurement.samples_ms), 1) ** 0.5
    median = measurement.median_ms
    return format_interval(median, median - margin, median + margin)[0]


def _speed_up(comparison: Any, name: str) -> str:
    return ", baseline" if name == comparison.baseline else f", {comparison.ratio(name)}"
