"""Pruning in pictures: how many channels each layer had and has."""

from __future__ import annotations

from collections.abc import Mapping

from deploykit.figures import INK, Plot, new_figure, style
from deploykit.plots._marks import name_rows, note, tint


def pruned_widths(widths: Mapping[str, tuple[int, int]]) -> Plot:
    """Draw the channels of each layer before (white) and after pruning (filled).

    Args:
        widths: layer to (channels before, channels after).

    Raises:
        ValueError: no layer.
    """
    if not widths:
        raise ValueError("no layer to draw: give at least one, {'conv1': (16, 9)}")
    with style():
        plot = new_figure(0.8 + 0.25 * len(widths))
        axes = plot.subplots()
        for row, (before, after) in enumerate(widths.values()):
            axes.barh(row, before, height=0.7, color="white", edgecolor=INK, linewidth=0.8)
            axes.barh(row, after, height=0.7, color=tint(0), edgecolor=INK, linewidth=0.8)
            note(axes, f"{after} of {before}", (before, row), offset=(5, 0), va="center")
        name_rows(axes, widths)
        axes.grid(axis="y", visible=False)
        axes.margins(x=0.12)
        axes.set_xlabel("channels left (filled) of those before (outline)")
    parts = [f"{name} {after} of {before}" for name, (before, after) in widths.items()]
    plot.alt = f"Bars, channels left of those before, layer by layer: {', '.join(parts)}."
    return plot
