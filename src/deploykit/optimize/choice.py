"""Which row wins, and why each of the others does not."""

from __future__ import annotations

from collections.abc import Sequence

from deploykit.rows import Row

UNMADE = "PyTorch"  # the runtime in the row of a smaller network of which no form could be made


def choose(rows: Sequence[Row], max_drop: float) -> Row:
    """Return the fastest row that is surely faster than the first and keeps the accuracy; else the first.

    Args:
        rows: the baseline first; with ratios and differences to it.
        max_drop: points of accuracy that a row may lose, as measured.
    """
    able = [(row.ratio.value, number) for number, row in enumerate(rows) if row.ratio and not fault(row, max_drop)]
    return rows[max(able)[1]] if able else rows[0]


def fault(row: Row, max_drop: float) -> str:
    """Say why a row other than the baseline cannot win; "" where it can."""
    if not row.ok:
        return row.status
    if row.ratio is None or row.difference is None:
        return "not timed"
    if -100 * row.difference.difference > max_drop:
        return "loses too much"
    if row.ratio.high < 1:
        return "slower"
    return "" if row.ratio.low > 1 else "not surely faster"


def verdict(row: Row, rows: Sequence[Row], winner: Row, max_drop: float) -> str:
    """Say on one line what became of a row: baseline, chosen, or why not."""
    if row is winner:
        return "chosen" if row is not rows[0] else "stays as it is"
    if row is rows[0]:
        return "the network as it is"
    return fault(row, max_drop) or "not the fastest"


def is_doubtful(row: Row, max_drop: float) -> bool:
    """Tell whether the images that it was chosen on are too few to be sure that no more than ``max_drop`` is lost."""
    return row.difference is not None and -100 * row.difference.interval[0] > max_drop


def label(row: Row) -> str:
    """Return what a row is called in a table: a smaller network that could not be made has no form."""
    return row.network if row.network and row.runtime == UNMADE else row.name
