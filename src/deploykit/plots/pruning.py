"""Pruning in pictures: which layers lose channels together, and how many each layer had and has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from deploykit.figures import INK, Plot, new_figure, style
from deploykit.plots._marks import name_rows, note, tint

if TYPE_CHECKING:
    import pandas as pd

STRIP = 0.22  # of a layer's box, for the side that is cut
SIDES = {"input channels": (0.0,), "output channels": (1 - STRIP,), "channels": (0.0, 1 - STRIP)}  # where strips begin


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


def dependency_boxes(group: pd.DataFrame) -> Plot:
    """Draw the layers that lose a channel together as boxes, hatched where they are cut: inputs left, outputs right.

    Args:
        group: with the columns ``layer``, ``kind``, ``cut`` ("input channels", "output channels" or "channels", where
            both are the same) and ``channels``, as from ``pruning.groups.dependency_group``.

    Raises:
        ValueError: no layer.
    """
    if group.empty:
        raise ValueError("no layer to draw: the table is empty")
    layers = list(dict.fromkeys(group["layer"]))
    kinds = dict(zip(group["layer"], group["kind"], strict=True))
    with style():
        plot = new_figure(0.7 + 0.3 * len(layers))
        axes = plot.subplots()
        for row, layer in enumerate(layers):
            axes.barh(row, 1, height=0.72, color="white", edgecolor=INK, linewidth=0.8)
            note(axes, kinds[layer], (0.5, row), offset=(0, 0), va="center", ha="center")
        for layer, side, channels in zip(group["layer"], group["cut"], group["channels"], strict=True):
            row = layers.index(layer)
            for start in SIDES[side]:
                axes.barh(row, STRIP, left=start, height=0.72, color=tint(1), hatch="///", edgecolor=INK, linewidth=0.8)
            note(axes, f"1 of {channels} {side}", (1, row), offset=(6, 0), va="center")
        name_rows(axes, layers)
        axes.grid(visible=False)
        axes.set_xticks([])
        axes.set_xlim(0, 1.6)
        axes.spines[:].set_visible(False)
    parts = [f"{layer} ({kinds[layer]})" for layer in layers]
    plot.alt = f"Boxes, the layers that lose a channel together: {', '.join(parts)}."
    return plot
