"""Values shown as text: nothing from data is taken for markup, and no number has more digits than it deserves."""

from __future__ import annotations

import html
import math
import re

MARKDOWN_MARKS = re.compile(r"([\\`*_{}\[\]#|~$])")
# Where an end of an interval would be rounded onto the threshold that it clears, digits are added, up to this many.
MOST_DECIMALS = 12


def escape_markdown(value: object) -> str:
    """Return ``str(value)`` on one line so that Markdown and the HTML in it show it literally."""
    one_line = " ".join(str(value).split())
    return MARKDOWN_MARKS.sub(r"\\\1", html.escape(one_line, quote=False))


def format_interval(value: float, low: float, high: float, *, apart_from: float | None = None) -> tuple[str, str, str]:
    """Write a value and the ends of its interval with the digits that the interval's width allows.

    The last digit is worth at most a fifth of the interval; of a point (``low == high``) three digits are kept.

    Args:
        value: finite, within the interval.
        low: lower end, in the same unit.
        high: upper end.
        apart_from: a threshold; an end that differs from it is never rounded onto it.
    """
    if high > low:
        decimals = math.ceil(-math.log10((high - low) / 5))
    else:
        decimals = 2 - math.floor(math.log10(abs(value))) if value else 0
    decimals = min(max(decimals, 0), MOST_DECIMALS)
    if apart_from is not None:
        ends = [end for end in (low, high) if end != apart_from]
        while decimals < MOST_DECIMALS and any(float(f"{end:.{decimals}f}") == apart_from for end in ends):
            decimals += 1
    return f"{value:,.{decimals}f}", f"{low:,.{decimals}f}", f"{high:,.{decimals}f}"


def with_unit(number: str, unit: str) -> str:
    """Join a number and its unit: ``2.1x`` and ``5 %``; a number without unit stays alone."""
    return f"{number}{'' if unit in {'', 'x'} else ' '}{unit}"
