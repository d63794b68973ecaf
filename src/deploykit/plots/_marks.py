"""What the figures share: the look of a contestant, names along an axis, and numbers as text."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from deploykit.figures import COLOURS, INK, MARKERS
from deploykit.text import format_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

NAME_WIDTH = 26


def cycled(cycle: Sequence[Any], number: int) -> Any:
    """Return the entry of a cycle of colours, hatches or lines that belongs to the contestant of this number."""
    return cycle[number % len(cycle)]


def look(number: int, size: float = 6) -> dict[str, Any]:
    """Return colour and marker (size in points) of the contestant of this number, for ``Axes.plot``."""
    edge = {"markeredgecolor": INK, "markeredgewidth": 0.5}
    return {"color": cycled(COLOURS, number), "marker": cycled(MARKERS, number), "markersize": size, **edge}


def note(axes: Axes, text: str, at: tuple[float, float], *, offset: tuple[float, float], **align: Any) -> None:
    """Write beside a point of the data, at an offset in points."""
    axes.annotate(text, at, xytext=offset, textcoords="offset points", fontsize=9, **align)


def tint(number: int) -> tuple[float, float, float]:
    """Return a contestant's colour, lightened: hatches are drawn in ink and would be lost on the full colour."""
    from matplotlib.colors import to_rgb

    red, green, blue = (1 - 0.55 * (1 - channel) for channel in to_rgb(cycled(COLOURS, number)))
    return red, green, blue


def wrapped(name: str, width: int = NAME_WIDTH) -> str:
    """Break a name between words into at most two lines."""
    return textwrap.fill(str(name), width, max_lines=2, placeholder=" …", break_long_words=False)


def name_rows(axes: Axes, names: Iterable[str]) -> None:
    """Give each row of a horizontal figure its name, the first at the top."""
    labels = [wrapped(name) for name in names]
    axes.set_yticks(range(len(labels)), labels)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(labels) - 0.5, -0.5)


def log_scale(axes: Axes, which: str = "y") -> None:
    """Make an axis logarithmic, with ticks at 1, 2 and 5 written as plain numbers."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set(**{f"{which}scale": "log"})
    axis = axes.yaxis if which == "y" else axes.xaxis
    axis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
    plain_numbers(axis)
    axis.set_minor_formatter(NullFormatter())


def plain_numbers(axis: Axis) -> None:
    """Write an axis's numbers out: 0.01 and 1,000, not powers of ten."""
    axis.set_major_formatter(lambda value, _: f"{value:,g}")


def digits(value: float) -> str:
    """Write a number with three significant digits."""
    return format_interval(value, value, value)[0]


def median_text(measurement: Any) -> str:
    """Write a measurement's median with the digits that its calls support."""
    # A median is known about as well as its quartiles, narrowed by the number of calls (McGill, Tukey, Larsen 1978).
    margin = 1.57 * measurement.iqr_ms / max(len(measurement.samples_ms), 1) ** 0.5
    median = measurement.median_ms
    return format_interval(median, median - margin, median + margin)[0]
