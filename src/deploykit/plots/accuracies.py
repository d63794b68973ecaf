"""Accuracies, each with its interval, alone and against time per call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from deploykit.figures import INK, QUIET, Plot, new_figure, style
from deploykit.plots._marks import log_scale, look, median_text, name_rows, note


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
            axes.errorbar(value, row, xerr=ends, ecolor=INK, capsize=5, elinewidth=1.4, **look(row, size=8))
            note(axes, f"{value:.1f} %", (value, row), offset=(0, 9), ha="center")
        name_rows(axes, names)
        axes.margins(x=0.12)
        axes.set_ylim(len(names) - 0.5, -0.75)
        axes.set_xlabel("accuracy [%], with 95 % interval")
        axes.grid(axis="y", visible=False)
    parts = [f"{name} {value:.1f} % ({low:.1f} to {high:.1f})" for name, (value, low, high) in percent.items()]
    plot.alt = f"Accuracies with 95 % intervals: {'; '.join(parts)}."
    return plot


def accuracy_differences(
    differences: Mapping[str, tuple[float, tuple[float, float]]], *, of: str = "accuracy, second minus first"
) -> Plot:
    """Draw differences between accuracies, each with its interval (95 %), beside the line of no difference.

    Args:
        differences: label to (difference, (lower end, upper end)), all between -1 and 1.
        of: which accuracy minus which.

    Raises:
        ValueError: no differences.
    """
    if not differences:
        raise ValueError("no differences to draw: give at least one, {'paired': (found.difference, found.interval)}")
    points = {name: 100 * np.array([value, *ends]) for name, (value, ends) in differences.items()}
    with style():
        plot = new_figure(0.9 + 0.45 * len(points))
        axes = plot.subplots()
        axes.axvline(0, color=INK, linestyle="--", linewidth=1)
        for row, (value, low, high) in enumerate(points.values()):
            ends = [[value - low], [high - value]]
            axes.errorbar(value, row, xerr=ends, ecolor=INK, capsize=5, elinewidth=1.4, **look(row, size=8))
        name_rows(axes, points)
        axes.margins(x=0.12)
        axes.set_xlabel(f"{of} [percentage points], 95 % interval")
        axes.grid(axis="y", visible=False)
    parts = [f"{name} {value:+.2f} ({low:+.2f} to {high:+.2f})" for name, (value, low, high) in points.items()]
    plot.alt = f"Differences in percentage points with 95 % intervals, {of}: {'; '.join(parts)}."
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
            axes.errorbar(median, value, label=name, **spread, **lines, **look(number, size=9))
        medians = [measurement.median_ms for _, measurement in points.values()]
        if max(medians) > 5 * min(medians):
            log_scale(axes, "x")
        else:
            axes.set_xlim(0, max(medians) * 1.15)
        axes.margins(y=0.15)
        axes.set_xlabel("time per call [ms]: median and quartiles (left is faster)")
        axes.set_ylabel("accuracy [%], 95 % interval")
        plot.legend(loc="outside right upper")
    parts = [f"{name} {100 * a.accuracy:.1f} % at {median_text(m)} ms" for name, (a, m) in points.items()]
    plot.alt = f"Accuracy against time per call: {'; '.join(parts)}."
    return plot
