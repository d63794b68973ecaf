"""A service under load: how long requests take at rising rates, and what its process took meanwhile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from deploykit.figures import COLOURS, LINES, QUIET, Plot, new_figure, style
from deploykit.plots._marks import cycled, digits, log_scale, look

if TYPE_CHECKING:
    import pandas as pd

AXES = {"cpu_cores": "cores busy", "memory_mib": "memory [MiB]", "cpu_power_w": "CPU power [W]"}
REFUSED = 0.01  # of the requests, from which a point is drawn hollow


def load_curves(services: Mapping[str, Mapping[float, Any]]) -> Plot:
    """Draw the median and the 95th percentile of latency against the rate of requests, a colour for each service.

    A point is hollow where more than one request in a hundred was not answered with 200: its times are of the others.
    Where none was, there is no point.

    Args:
        services: name to {requests per second: ``load.Load``}.

    Raises:
        ValueError: no service, or one without a run.
    """
    if not services or not all(services.values()):
        raise ValueError("no run to draw: give {'int8': {100: open_loop(...)}}")
    with style():
        plot = new_figure(3.8)
        axes = plot.subplots()
        parts = []
        for number, (name, runs) in enumerate(services.items()):
            points = {rate: _percentiles(runs[rate]) for rate in sorted(runs)}
            rates = [rate for rate, point in points.items() if point is not None]
            found = np.array([points[rate] for rate in rates]).reshape(-1, 3)
            for column, which in enumerate(("median", "p95")):
                line = cycled(LINES, column)
                axes.plot(
                    rates, found[:, column], label=f"{name}, {which}", linestyle=line, color=cycled(COLOURS, number)
                )
                for rate, (*times, refused) in zip(rates, found, strict=True):
                    face = "white" if refused > REFUSED else cycled(COLOURS, number)
                    axes.plot(rate, times[column], **(look(number) | {"markerfacecolor": face}))
            parts.append(f"{name} " + ", ".join(
                f"{digits(middle)} and {digits(high)} ms at {rate:,.0f}/s"
                + (f" with {refused:.0%} not answered" if refused > REFUSED else "")
                for rate, (middle, high, refused) in zip(rates, found, strict=True)
            ))  # fmt: skip
        log_scale(axes)
        rates = sorted({rate for runs in services.values() for rate in runs})
        axes.set_xticks(rates, [f"{rate:,.0f}" for rate in rates])
        axes.set_xlabel("requests per second, at random times")
        axes.set_ylabel("latency [ms], log scale")
        plot.legend(loc="outside lower center", ncols=len(services))
    plot.alt = f"Lines, median and 95th percentile of latency against the rate. {'; '.join(parts)}."
    return plot


def _percentiles(run: Any) -> tuple[float, float, float] | None:
    """Return median and p95 of the answered in ms, and the share of those that were not; None without an answer."""
    if not run.ok.any():
        return None
    middle, high = 1000 * np.percentile(run.latency_s[run.ok], [50, 95])
    return float(middle), float(high), float(1 - run.ok.mean())


def watched(table: pd.DataFrame, *, steps: Sequence[tuple[float, str]] = ()) -> Plot:
    """Draw what a process took over time, a panel for each gauge.

    Args:
        table: ``monitoring.Samples.table()``: ``time_s``, and a column for each gauge.
        steps: when something began, in seconds on the table's clock, and what.

    Raises:
        ValueError: a table without samples or without gauges.
    """
    gauges = [name for name in table if name != "time_s"]
    if not len(table) or not gauges:
        raise ValueError("no samples to draw: watch for longer than every_s")
    with style():
        plot = new_figure(1 + 1.5 * len(gauges))
        panels = plot.subplots(len(gauges), sharex=True, squeeze=False)[:, 0]
        for number, (axes, gauge) in enumerate(zip(panels, gauges, strict=True)):
            axes.plot(table["time_s"], table[gauge], **look(number, 3))
            axes.set_ylim(0, max(1.1 * float(table[gauge].max()), 0.1))
            axes.set_ylabel(AXES.get(gauge, gauge))
            for moment, _ in steps:
                axes.axvline(moment, color=QUIET, linestyle=":", linewidth=1)
        for moment, what in steps:
            panels[0].annotate(
                what, (moment, 1), xycoords=("data", "axes fraction"), xytext=(3, 2), textcoords="offset points",
                fontsize=8, color=QUIET,
            )  # fmt: skip
        panels[-1].set_xlabel("time since the start [s]")
    parts = [f"{AXES.get(name, name)} {digits(table[name].min())} to {digits(table[name].max())}" for name in gauges]
    events = f" Marked: {', '.join(f'{what} at {moment:.1f} s' for moment, what in steps)}." if steps else ""
    plot.alt = f"Lines over {table['time_s'].max():.1f} s: {'; '.join(parts)}.{events}"
    return plot
