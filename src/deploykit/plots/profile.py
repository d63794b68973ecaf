"""Where the time goes: shares of operators and kinds of layers, and the layers of a model under the machine's roofs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from deploykit.figures import COLOURS, HATCHES, INK, LINES, MARKERS, QUIET, Plot, new_figure, style
from deploykit.plots._marks import cycled, digits, name_rows, note, plain_numbers, tint

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

MOST_ROWS = 8
LEAST_SHARE = 0.005  # what would be rounded to 0 %
NAMED_GROUPS = 6  # the slowest groups of equal layers carry their names
SAME_PLACE = 1.25  # layers of one kind whose intensities differ by less are one group
SMALLEST_POINT, LARGEST_POINT = 18, 260  # area in square points
LABEL_HEIGHT, LABEL_GAP = 11, 4  # points


def operator_shares(profile: Any) -> Plot:
    """Draw the share of time of the slowest operators and, if the profile has layers, of each kind of layer.

    Args:
        profile: a ``profiling.Profile``.

    Raises:
        ValueError: a profile without operators.
    """
    operators = profile.operators()
    if operators.empty:
        raise ValueError("this profile has no operators: what was profiled runs none of torch's")
    panels = {"By operator": _slowest(operators, "operator", "self_ms")}
    if profile.layer_times:
        panels["By kind of layer"] = _slowest(profile.by_layer_type(), "layer_type", "ms")
    heights = [len(rows) + 1.5 for rows in panels.values()]
    with style():
        plot = new_figure(0.6 + 0.29 * sum(heights))
        grid = plot.subplots(len(panels), 1, squeeze=False, sharex=True, height_ratios=heights)[:, 0]
        for number, (axes, (title, rows)) in enumerate(zip(grid, panels.items(), strict=True)):
            look: dict[str, Any] = {"edgecolor": INK, "hatch": cycled(HATCHES, number), "linewidth": 0.8}
            axes.barh(range(len(rows)), [100 * share for _, share, _ in rows], color=tint(number), height=0.7, **look)
            for row, (_, share, ms) in enumerate(rows):
                text = f"{_percent(share)}, {digits(ms)} ms"
                note(axes, text, (100 * share, row), offset=(5, 0), va="center")
            name_rows(axes, [name for name, _, _ in rows])
            axes.grid(axis="y", visible=False)
            axes.set_title(title)
        grid[-1].set_xlabel("share of time [%]")
        grid[-1].set_xlim(0, 1.35 * max(axes.get_xlim()[1] for axes in grid))  # room for the numbers
    told = [
        f"{title.lower()}: " + ", ".join(f"{name} {_percent(share)}" for name, share, _ in rows)
        for title, rows in panels.items()
    ]
    plot.alt = f"Bars of the share of time in a call at batch {profile.batch}. {'; '.join(told)}."
    return plot


def _slowest(table: pd.DataFrame, name: str, time: str) -> list[tuple[str, float, float]]:
    rows = list(table[[name, "share", time]].itertuples(index=False, name=None))
    shown, rest = (rows, []) if len(rows) <= MOST_ROWS else (rows[: MOST_ROWS - 1], rows[MOST_ROWS - 1 :])
    if rest:
        shown.append((f"{len(rest)} others", sum(share for _, share, _ in rest), sum(ms for _, _, ms in rest)))
    return shown


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= LEAST_SHARE else "below 1 %"


def time_against_macs(layers: pd.DataFrame, *, macs_per_ms: float) -> Plot:
    """Draw layers by multiply-accumulates and time, both axes logarithmic, beside the line of one speed for all.

    Args:
        layers: ``kind``, ``macs`` (of one call) and ``ms`` of each.
        macs_per_ms: the speed that the line stands for.

    Raises:
        ValueError: no layers.
    """
    if not len(layers):
        raise ValueError("there are no layers to draw: give a row with kind, macs and ms for each")
    kinds = list(dict.fromkeys(layers["kind"]))
    with style():
        plot = new_figure(3.9)
        axes = plot.subplots()
        ends = np.array([layers["macs"].min(), layers["macs"].max()])
        axes.plot(ends / 1e6, ends / macs_per_ms, linestyle=LINES[1], color=INK, label="one speed for all")
        for number, kind in enumerate(kinds):
            some = layers[layers["kind"] == kind]
            look: dict[str, Any] = {"marker": cycled(MARKERS, number), "color": cycled(COLOURS, number), "label": kind}
            axes.plot(some["macs"] / 1e6, some["ms"], linestyle="none", markeredgecolor=INK, **look)
        axes.set(xscale="log", yscale="log", xlabel="MACs of a call [millions]", ylabel="time [ms]")
        for which in (axes.xaxis, axes.yaxis):
            plain_numbers(which)
        plot.legend(loc="outside lower center", ncols=4)
    off = np.exp(np.abs(np.log(layers["macs"] / layers["ms"] / macs_per_ms)))
    told = [f"{kind} {digits(float(off[layers['kind'] == kind].median()))}" for kind in kinds]
    plot.alt = (
        f"Time of {len(layers)} layers against their MACs, beside the line of one speed for all. "
        f"Typical factor between the two: {', '.join(told)}."
    )
    return plot


def roofline(layers: pd.DataFrame, peaks: Any) -> Plot:
    """Draw layers by intensity and speed under the roofs of the machine, both axes logarithmic.

    Layers of one kind and intensity are one point, at their median speed; its area is their share of the time, and it
    is hollow where starting a layer takes longer than its work. The slowest points are named.

    Args:
        layers: what ``roofline.place_layers`` returns.
        peaks: the ``peaks.Peaks`` that they were placed by.

    Raises:
        ValueError: no layers.
    """
    if not len(layers):
        raise ValueError("there are no layers to draw: give what roofline.place_layers returned for a model")
    groups = sorted(_groups(layers), key=lambda group: -group["ms"])
    kinds = list(dict.fromkeys(layers["layer_type"]))
    whole_ms = float(layers["ms"].sum())
    with style():
        plot = new_figure(5.6)
        axes = plot.subplots()
        low, high = _roofs(axes, layers, peaks)
        for group in groups:
            number = kinds.index(group["layer_type"])
            colour = cycled(COLOURS, number)
            area = max(SMALLEST_POINT, LARGEST_POINT * group["ms"] / groups[0]["ms"])
            axes.scatter(
                group["intensity"], group["gflops"], s=area, marker=cycled(MARKERS, number), linewidth=1.3, zorder=3,
                facecolor="white" if group["bound"] == "overhead" else colour,
                edgecolor=colour if group["bound"] == "overhead" else INK,
            )  # fmt: skip
        axes.set(xscale="log", yscale="log", xlim=(low, high))
        axes.set_ylim(min(group["gflops"] for group in groups) / 3, 2.2 * max(peaks.gflops.values()))
        for which in (axes.xaxis, axes.yaxis):
            plain_numbers(which)
        axes.set_xlabel("intensity [FLOP per byte]")
        axes.set_ylabel("speed [GFLOP/s]")
        _legend(plot, axes, kinds)
        _name_points(plot, axes, groups[:NAMED_GROUPS])
    told = [
        f"{_group_name(group)} ({group['layer_type']}, {group['bound']}-bound) {group['ms'] / whole_ms:.0%} of the "
        f"time, {digits(group['gflops'])} GFLOP/s at {digits(group['intensity'])} FLOP per byte"
        for group in groups[:NAMED_GROUPS]
    ]
    roofs = [f"{name} {digits(rate)} GFLOP/s" for name, rate in peaks.gflops.items()]
    roofs += [f"{level.name} {digits(level.gb_s)} GB/s" for level in peaks.memory]
    plot.alt = (
        f"Roofline, speed against intensity. Roofs: {', '.join(roofs)}. "
        f"The slowest of {len(layers)} layers: {'; '.join(told)}."
    )
    return plot


def _groups(layers: pd.DataFrame) -> Iterator[dict[str, Any]]:
    for (kind, bound), same in layers.groupby(["layer_type", "bound"], sort=False):
        same = same.sort_values("intensity", kind="stable")  # noqa: PLW2901
        starts = (same["intensity"].to_numpy()[1:] > SAME_PLACE * same["intensity"].to_numpy()[:-1]).cumsum()
        for _, group in same.groupby(np.concatenate([[0], starts])):
            yield {
                "layer_type": kind,
                "bound": bound,
                "layers": list(group["layer"]),
                "ms": float(group["ms"].sum()),
                "intensity": float(group["intensity"].median()),
                "gflops": float(group["gflops"].median()),
            }


def _group_name(group: dict[str, Any]) -> str:
    more = len(group["layers"]) - 1
    return group["layers"][0] + (f" + {more} more" if more else "")


def _roofs(axes: Axes, layers: pd.DataFrame, peaks: Any) -> tuple[float, float]:
    """Draw the roofs and return the range of intensities that shows them and the layers."""
    highest, fastest = max(peaks.gflops.values()), max(level.gb_s for level in peaks.memory)
    low = float(layers["intensity"].min()) / 2
    high = 10 * max(float(layers["intensity"].max()), highest / peaks.bandwidth_gb_s)  # room for the names of roofs
    for level, line in zip(peaks.memory, itertools.cycle((*LINES[1:4], LINES[0])), strict=False):
        ridge = highest / level.gb_s
        label = f"{level.name} {digits(level.gb_s)} GB/s"
        axes.plot([low, ridge], [low * level.gb_s, highest], color=QUIET, linestyle=line, linewidth=1.4, label=label)
    for name, rate in peaks.gflops.items():
        axes.plot([rate / fastest, high], [rate, rate], color=INK, linewidth=1.4)
        note(axes, f"{name} {digits(rate)} GFLOP/s", (high, rate), offset=(-3, 2), ha="right", va="bottom")
    return low, high


def _legend(plot: Plot, axes: Axes, kinds: Sequence[str]) -> None:
    from matplotlib.lines import Line2D

    point: dict[str, Any] = {"linestyle": "none", "markeredgecolor": INK, "markersize": 7}
    marks = [
        Line2D([], [], marker=cycled(MARKERS, number), color=cycled(COLOURS, number), label=kind, **point)
        for number, kind in enumerate(kinds)
    ]
    hollow = Line2D([], [], marker="o", color="white", label="hollow: overhead-bound", **point)
    handles = [*axes.get_legend_handles_labels()[0], *marks, hollow]
    plot.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8.5, columnspacing=1.2)


def _name_points(plot: Plot, axes: Axes, groups: Sequence[dict[str, Any]]) -> None:
    """Write names beside points where they cover no other name, no point and no edge, a thin line leading to each."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    renderer = FigureCanvasAgg(plot).get_renderer()
    plot.draw_without_rendering()  # fixes the axes, so that pixels can be reckoned with
    scale = plot.dpi / 72
    frame = axes.get_window_extent()
    taken = [text.get_window_extent() for text in axes.texts]
    points = [axes.transData.transform((group["intensity"], group["gflops"])) for group in groups]
    for group in groups:
        for dx, dy in _offsets():
            left = dx >= 0
            text = axes.annotate(
                _group_name(group), (group["intensity"], group["gflops"]), xytext=(dx, dy),
                textcoords="offset points", fontsize=8.5, ha="left" if left else "right", va="center",
                arrowprops={"arrowstyle": "-", "color": QUIET, "linewidth": 0.7, "shrinkA": 1, "shrinkB": 2},
            )  # fmt: skip
            text.update_positions(renderer)
            # Of the words alone: an annotation's own extent includes its line, and with it the point.
            box = Text.get_window_extent(text, renderer).padded(LABEL_GAP / 2 * scale)
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
            if inside and not any(box.overlaps(other) for other in taken) and not box.count_contains(points):
                taken.append(box)
                break
            text.remove()


def _offsets() -> Iterator[tuple[float, float]]:
    """Yield places for a name, points from its point, the nearest first."""
    steps = [(dx, LABEL_HEIGHT * row) for dx in (14, 34, 60, 95) for row in range(8)]
    for dx, dy in sorted(steps, key=lambda step: math.hypot(*step)):
        yield from ((dx, dy), (dx, -dy), (-dx, dy), (-dx, -dy))
