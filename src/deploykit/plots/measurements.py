"""Times: of contestants side by side, against batch size, and call after call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from deploykit.figures import COLOURS, HATCHES, INK, LINES, Plot, new_figure, style
from deploykit.plots._marks import cycled, digits, log_scale, look, median_text, name_rows, note, plain_numbers, tint


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
            axes.barh(
                row, median, height=0.62, color=tint(row), edgecolor=INK, hatch=cycled(HATCHES, row), linewidth=0.8
            )
            if tail is not None:
                axes.errorbar(median, row, xerr=[[0], [max(tail - median, 0)]], color=INK, capsize=4, linewidth=1.3)
            text = f"{median_text(measurements[name])} ms{_speed_up(comparison, name)}"
            text += "" if tail is not None else "  (no p95)"
            note(axes, text, (ends[row], row), offset=(7, 0), va="center")
        name_rows(axes, names)
        axes.set_xlim(0, max(ends) * 1.55)  # room for the numbers beside the bars
        axes.set_xlabel("time per call [ms]: bar median, whisker up to p95")
        axes.grid(axis="y", visible=False)
    parts = [f"{name} {median_text(measurements[name])} ms{_speed_up(comparison, name)}" for name in names]
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
                    linestyle=cycled(LINES, number),
                    **look(number),
                )
            axes.set_xscale("log", base=2)
            axes.set_xticks(sizes, [str(size) for size in sizes], minor=False)
            axes.set_xlabel("batch size [images]")
            axes.set_title(title)
            axes.set_ylabel(unit)
            log_scale(axes) if title == "Latency" else axes.set_ylim(bottom=0)
            plain_numbers(axes.yaxis)
        plot.axes[0].legend()
    parts = []
    for label, curve in curves.items():
        best = max(curve, key=lambda batch: curve[batch].throughput_per_s)
        ends = " to ".join(
            f"{curve[size].throughput_per_s:,.0f} images per second and {median_text(curve[size])} ms at batch {size}"
            for size in (min(curve), max(curve))
        )
        parts.append(f"{label}: from {ends}, the highest throughput at batch {best}")
    plot.alt = f"Throughput and latency against batch size. {'; '.join(parts)}."
    return plot


def samples_over_time(runs: Mapping[str, Any], *, what: str = "call", title: str = "") -> Plot:
    """Draw the time of every single call in the order in which they were made, each run's median as a line.

    Warm-up shows as high first calls, a drifting machine as a slope or as two runs at different heights.

    Args:
        runs: label to ``measure.Measurement`` or to a sequence of times in ms.
        what: a dot stands for one of these, in the singular: "run" where each is the mean of several calls.
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
            name = f"{label}, median {digits(median)} ms"
            axes.plot(range(1, len(calls) + 1), calls, linestyle="none", label=name, **look(number, size=4.5))
            axes.axhline(median, color=cycled(COLOURS, number), linestyle=cycled(LINES, number), linewidth=1.3)
        everything = np.concatenate(list(times.values()))
        if everything.max() > 4 * everything.min() > 0:
            log_scale(axes)
        else:
            axes.set_ylim(0, everything.max() * 1.08)
        axes.set_xlabel(f"{what} number")
        axes.set_ylabel("time per call [ms]")
        axes.set_title(title)
        plot.legend(loc="outside upper right", ncols=min(len(times), 2))
    parts = [
        f"{label}: {len(calls)} {what}s, the first {digits(calls[0])} ms, median {digits(float(np.median(calls)))} ms, "
        f"slowest {digits(calls.max())} ms"
        for label, calls in times.items()
    ]
    plot.alt = f"Time per call, {what} by {what}. {'; '.join(parts)}."
    return plot


def disturbed_calls(began_s: Any, took_ms: Any, *, disturbed_s: tuple[float, float], by: str) -> Plot:
    """Draw calls at the moments when they began, over a span of time in which something else was going on.

    Args:
        began_s: float [N], when each call began, in seconds since the first.
        took_ms: float [N], how long it took, in ms.
        disturbed_s: begin and end of the span, in seconds on the same clock.
        by: what was going on.

    Raises:
        ValueError: no calls, or another number of times than of beginnings.
    """
    began, took = np.asarray(began_s, dtype=float), np.asarray(took_ms, dtype=float)
    if began.shape != took.shape or not took.size:
        raise ValueError(
            f"{took.size} times for {began.size} beginnings; give one of each for every call, at least one"
        )
    begin_s, end_s = disturbed_s
    with style():
        plot = new_figure(2.9)
        axes = plot.subplots()
        axes.axvspan(begin_s, end_s, color="#DDDDDD", label=by)
        axes.plot(began, took, "o", color=INK, markersize=2.5, label="one call")
        log_scale(axes)
        axes.set_xlabel("time since the start [s]")
        axes.set_ylabel("time per call [ms], log scale")
        plot.legend(loc="outside upper right", ncols=2)
    spans = {"before": began < begin_s, "during": (began >= begin_s) & (began < end_s), "after": began >= end_s}
    parts = [f"{when} {digits(float(took[span].mean()))} ms" for when, span in spans.items() if span.any()]
    plot.alt = f"Time of {took.size} calls against the moment of each, beside {by}: on average {', '.join(parts)}."
    return plot


def _speed_up(comparison: Any, name: str) -> str:
    return ", baseline" if name == comparison.baseline else f", {comparison.ratio(name)}"
