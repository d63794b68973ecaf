"""Numbers with intervals against what was varied: calibration images, sparsity, channels."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from deploykit.figures import INK, LINES, QUIET, Plot, new_figure, style
from deploykit.plots._marks import cycled, digits, log_scale, look

Interval = tuple[float, float]


def curves(
    series: Mapping[str, Mapping[float, tuple[float, Interval]]],
    *,
    x: str,
    y: str,
    reference: float | None = None,
    log_x: bool = False,
) -> Plot:
    """Draw a line for each series, with the interval of each point.

    Args:
        series: name to what was varied to (value, (lower end, upper end)).
        x: what was varied, with its unit.
        y: what was found, with its unit.
        reference: where to draw a dashed horizontal line: what "no difference" would be.
        log_x: space what was varied by its ratio; every value has its tick.

    Raises:
        ValueError: no series, or an empty one.
    """
    if not series or not all(series.values()):
        raise ValueError("no curve to draw: give at least one, {'minmax': {64: (0.1, (0.0, 0.2))}}")
    varied = sorted({at for curve in series.values() for at in curve})
    with style():
        plot = new_figure(3.6)
        axes = plot.subplots()
        if reference is not None:
            axes.axhline(reference, color=INK, linestyle="--", linewidth=1)
        for number, (name, curve) in enumerate(series.items()):
            at = np.array(sorted(curve), float)
            values = np.array([curve[one][0] for one in sorted(curve)])
            ends = np.array([curve[one][1] for one in sorted(curve)])
            # Neighbours' intervals beside each other, not on top of each other.
            shift = number - (len(series) - 1) / 2
            beside = at * 1.04**shift if log_x else at + shift * (varied[-1] - varied[0]) / 150
            axes.errorbar(
                beside, values, yerr=[values - ends[:, 0], ends[:, 1] - values], label=name,
                ecolor=QUIET, elinewidth=1.2, capsize=3, linestyle=cycled(LINES, number), **look(number),
            )  # fmt: skip
        if log_x:
            log_scale(axes, "x")
        axes.set_xticks(varied, [f"{at:,g}" for at in varied])
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        plot.legend(loc="outside right upper")
    parts = [
        f"{name} " + ", ".join(f"{digits(curve[at][0])} at {at:,g}" for at in sorted(curve))
        for name, curve in series.items()
    ]
    plot.alt = f"Lines, {y}, against {x}: {'; '.join(parts)}."
    return plot
