"""Accuracy, time and size of many variants in one picture, the dominated ones in grey."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from deploykit.figures import COLOURS, INK, QUIET, Plot, new_figure, style
from deploykit.pareto import pareto_front
from deploykit.plots._marks import digits, log_scale, wrapped

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

LARGEST_BUBBLE = 900  # points², for the largest file; areas are in proportion to sizes
SMALLEST_BUBBLE = 12  # still seen
RING = 180  # points² more than the bubble that it is drawn around
HEIGHT, LEGEND_LINE = 4.6, 0.215  # inches: of the figure, unless the names beside it need more
ON_FRONT, DOMINATED = "on the front", "dominated"


def pareto(
    table: pd.DataFrame,
    *,
    least_accuracy: float | None = None,
    most_ms: float | None = None,
    chosen: str | None = None,
) -> Plot:
    """Draw accuracy against latency, bubbles as large as the files, and a line along the Pareto front of the two.

    Points are numbered from fast to slow, and named beside the axes.

    Args:
        table: one variant a row, its name the index: ``accuracy`` (0 to 1), ``latency_ms``, ``size_kib``.
        least_accuracy: a demand, drawn as a line; 0 to 1.
        most_ms: another, milliseconds.
        chosen: the row that was decided for; it gets a ring, and the word in the legend.

    Raises:
        ValueError: no row, a value that was not measured, or no row of the name that is chosen.
    """
    if table.empty:
        raise ValueError("no variant to draw: the table is empty")
    if chosen is not None and chosen not in table.index:
        raise ValueError(f"there is no variant {chosen!r}; there are {', '.join(map(str, table.index))}")
    table = table.sort_values("latency_ms", kind="stable")
    front = pareto_front(table)
    area = np.maximum(LARGEST_BUBBLE * table["size_kib"] / table["size_kib"].max(), SMALLEST_BUBBLE)
    with style():
        labels = _labels(front, chosen)
        lines = sum(text.count("\n") + 1 for text, _ in labels)
        plot = new_figure(max(HEIGHT, LEGEND_LINE * (lines + 1)))
        axes = plot.subplots()
        for on_front, colour in ((False, "white"), (True, COLOURS[4])):
            rows = front == on_front
            axes.scatter(
                table.loc[rows, "latency_ms"], 100 * table.loc[rows, "accuracy"], s=area[rows], color=colour,
                edgecolor=INK if on_front else QUIET, linewidth=0.8, alpha=0.75, zorder=2 + on_front,
            )  # fmt: skip
        best = table[front]
        axes.step(best["latency_ms"], 100 * best["accuracy"], where="post", color=INK, linewidth=1, zorder=1)
        if chosen is not None:
            at = table.loc[[chosen]]
            axes.scatter(
                at["latency_ms"], 100 * at["accuracy"], s=area[[chosen]] + RING, facecolor="none",
                edgecolor=COLOURS[5], linewidth=2.2, zorder=4,
            )  # fmt: skip
        _demands(axes, least_accuracy, most_ms)
        log_scale(axes, "x")
        axes.margins(x=0.1, y=0.12)
        _number(axes, table, front)
        _legend(plot, labels)
        axes.set_xlabel("time per call [ms] (left is faster)")
        axes.set_ylabel("accuracy [%]")
    parts = [
        f"{name} {100 * row.accuracy:.1f} % at {digits(row.latency_ms)} ms, {row.size_kib:,.0f} KiB"
        for name, row in best.iterrows()
    ]
    plot.alt = (
        f"Bubbles, accuracy against time per call of {len(table)} variants. On the Pareto front: {'; '.join(parts)}."
        f"{'' if chosen is None else f' Chosen: {chosen}.'}"
    )
    return plot


def _demands(axes: Axes, least_accuracy: float | None, most_ms: float | None) -> None:
    line: dict[str, Any] = {"color": QUIET, "linestyle": "--", "linewidth": 1, "zorder": 1}
    if least_accuracy is not None:
        axes.axhline(100 * least_accuracy, **line)
    if most_ms is not None:
        axes.axvline(most_ms, **line)


def _number(axes: Axes, table: pd.DataFrame, front: pd.Series) -> None:
    for number, (name, row) in enumerate(table.iterrows(), 1):
        axes.annotate(
            str(number), (row.latency_ms, 100 * row.accuracy), fontsize=8, ha="center", va="center", zorder=5,
            color=INK if front[name] else QUIET, weight="bold" if front[name] else "normal",
        )  # fmt: skip


def _labels(front: pd.Series, chosen: str | None) -> list[tuple[str, bool]]:
    names = [f"{number}  {name}{' (chosen)' if name == chosen else ''}" for number, name in enumerate(front.index, 1)]
    labels = [(ON_FRONT, True), *((name, True) for name, best in zip(names, front, strict=True) if best)]
    labels += [(DOMINATED, False), *((name, False) for name, best in zip(names, front, strict=True) if not best)]
    return [(wrapped(text, 28), on_front) for text, on_front in labels]


def _legend(plot: Plot, labels: list[tuple[str, bool]]) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], linestyle="none", label=text) for text, _ in labels]
    shown = plot.legend(handles=handles, loc="outside right upper", handlelength=0, handletextpad=0, fontsize=9)
    for text, (label, on_front) in zip(shown.get_texts(), labels, strict=True):
        text.set_color(INK if on_front else QUIET)
        text.set_fontweight("bold" if label in (ON_FRONT, DOMINATED) else "normal")
