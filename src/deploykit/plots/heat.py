"""A table as a picture: one field for each pair of settings, with its number in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from deploykit.figures import Plot, new_figure, style

if TYPE_CHECKING:
    import pandas as pd

DARK = 0.55  # of the way to the largest value, from which on numbers are white


def heat_map(table: pd.DataFrame, *, x: str, y: str, of: str, digits: int = 1) -> Plot:
    """Draw a field for each entry of a table, the darker the larger, with the number in it.

    Args:
        table: rows are drawn downwards, columns to the right; an entry that is NaN stays white and without a number.
        x: what the columns are, with its unit.
        y: what the rows are, with its unit.
        of: what the numbers are, with their unit.
        digits: decimals of the numbers.

    Raises:
        ValueError: an empty table, or one without any number.
    """
    values = table.to_numpy(dtype=float)
    if not np.isfinite(values).any():
        raise ValueError("no number to draw: give a table with at least one, indexed by y and with x as its columns")
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    columns, rows = [str(name) for name in table.columns], [str(name) for name in table.index]
    with style():
        plot = new_figure(1.3 + 0.34 * len(rows))
        axes = plot.subplots()
        axes.imshow(values, cmap="Greys", vmin=low - 0.25 * (high - low), vmax=high, aspect="auto")
        for (row, column), value in np.ndenumerate(values):
            if np.isfinite(value):
                ink = "white" if value > low + DARK * (high - low) else "black"
                axes.text(column, row, f"{value:.{digits}f}", ha="center", va="center", color=ink, fontsize="small")
        # Names may hold a dollar sign, which is no formula here.
        axes.set_xticks(range(len(columns)), columns, parse_math=False)
        axes.set_yticks(range(len(rows)), rows, parse_math=False)
        if max(map(len, columns)) > 5:  # noqa: PLR2004 - longer names run into each other
            axes.tick_params(axis="x", rotation=45)
        axes.grid(visible=False)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        axes.set_title(of, fontsize="medium")
    best = np.unravel_index(np.nanargmax(values), values.shape)
    plot.alt = (
        f"Table of {of}, {y} down, {x} across: from {low:.{digits}f} to {high:.{digits}f}, "
        f"largest at {rows[best[0]]} and {columns[best[1]]}."
    )
    return plot
