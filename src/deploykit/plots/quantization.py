"""Quantization in pictures: numbers and the grid they are rounded to, layers that suffer, images that calibrate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from deploykit.figures import INK, Plot, new_figure, style
from deploykit.plots._marks import digits, name_rows, note, tint
from deploykit.plots.curves import curves

if TYPE_CHECKING:
    import pandas as pd

BINS = 120
TICK_SHARE = 0.12  # of a panel's height


def quantization_grids(panels: Mapping[str, tuple[Any, Any]], *, of: str = "value") -> Plot:
    """Draw the distribution of some numbers, a panel for each, with the levels that they can be rounded to below it.

    Args:
        panels: label to (values, levels), arrays or tensors of any shape; the panels share their axis.
        of: what the values are, for the axis: "weight".

    Raises:
        ValueError: no panel.
    """
    if not panels:
        raise ValueError("no distribution to draw: give at least one, {'per tensor': (weights, levels)}")
    numbers = {name: (np.ravel(values), np.unique(levels)) for name, (values, levels) in panels.items()}
    ends = [end for values, _ in numbers.values() for end in (values.min(), values.max())]
    told = []
    with style():
        plot = new_figure(0.7 + 1.5 * len(panels))
        grid = plot.subplots(len(panels), 1, squeeze=False, sharex=True)[:, 0]
        for number, (axes, (name, (values, levels))) in enumerate(zip(grid, numbers.items(), strict=True)):
            counts, edges = np.histogram(values, bins=BINS, range=(min(ends), max(ends)))
            shares = 100 * counts / len(values)
            axes.stairs(shares, edges, fill=True, facecolor=tint(number), edgecolor=INK, linewidth=0.5)
            axes.vlines(levels, -TICK_SHARE * shares.max(), 0, color=INK, linewidth=0.7)
            axes.set_ylim(-TICK_SHARE * shares.max(), 1.05 * shares.max())
            used = len(np.unique(np.searchsorted((levels[1:] + levels[:-1]) / 2, values)))  # each value's nearest level
            axes.set_title(f"{name}: {used} of {len(levels)} levels used")
            axes.set_ylabel("share [%]")
            told.append(
                f"{name}, values from {digits(values.min())} to {digits(values.max())}, {used} of {len(levels)} levels "
                f"from {digits(levels.min())} to {digits(levels.max())} used"
            )
        grid[-1].set_xlabel(f"{of}; the ticks below are the levels of the integers")
    plot.alt = f"Histograms of {of}s above the levels that they are rounded to. {'; '.join(told)}."
    return plot


def layer_bars(layers: pd.DataFrame, value: str, *, label: str, marked: Sequence[str] = ()) -> Plot:
    """Draw one number per layer as bars, in the order of the table.

    Args:
        layers: with the columns ``layer`` and ``value``, as from ``quantization.sensitivity``.
        value: the column to draw.
        label: what it is, with its unit.
        marked: layers that are to stand out.

    Raises:
        ValueError: no layers.
    """
    if layers.empty:
        raise ValueError("no layers to draw: the table is empty")
    names, values = list(layers["layer"]), layers[value].to_numpy(float)
    with style():
        plot = new_figure(0.8 + 0.25 * len(names))
        axes = plot.subplots()
        for row, (name, length) in enumerate(zip(names, values, strict=True)):
            bar: dict[str, Any] = {"color": tint(1), "hatch": "///"} if name in marked else {"color": tint(0)}
            axes.barh(row, length, height=0.7, edgecolor=INK, linewidth=0.8, **bar)
            note(axes, digits(length), (max(length, 0), row), offset=(5, 0), va="center")
        name_rows(axes, names)
        axes.grid(axis="y", visible=False)
        axes.margins(x=0.12)
        axes.set_xlabel(label + (" (hatched: marked)" if marked else ""))
    parts = [f"{name} {digits(length)}" for name, length in zip(names, values, strict=True)]
    plot.alt = f"Bars, {label}, layer by layer: {', '.join(parts)}."
    if marked:
        plot.alt += f" Marked: {', '.join(marked)}."
    return plot


def calibration_curves(
    losses: Mapping[str, Mapping[int, tuple[float, tuple[float, float]]]], *, loss: str = "accuracy lost [points]"
) -> Plot:
    """Draw what is lost against the number of calibration images, a line for each method, with intervals.

    Args:
        losses: method to number of images to (loss, (lower end, upper end)).
        loss: what is lost, with its unit.

    Raises:
        ValueError: no curve, or an empty one.
    """
    series = {method: {float(count): found for count, found in curve.items()} for method, curve in losses.items()}
    return curves(series, x="calibration images", y=loss, reference=0, log_x=True)
