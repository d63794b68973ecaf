"""Number formats in pictures: how far each reaches and how finely, and which gradients are too small for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from deploykit.figures import COLOURS, HATCHES, INK, LINES, QUIET, Plot, new_figure, style
from deploykit.plots._marks import cycled, digits, look, note

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

BESIDE = 2.5  # formats of one resolution are drawn so far apart, as a factor
SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def format_ranges(formats: Mapping[str, Any]) -> Plot:
    """Draw number formats as range against resolution: what each can hold, and in which relative steps.

    Formats of one resolution are drawn beside each other.

    Args:
        formats: name to format, as from ``precision.number_formats``; ``largest``, ``smallest_normal``, ``smallest``
            and ``resolution`` are read.

    Raises:
        ValueError: no format.
    """
    if not formats:
        raise ValueError("no format to draw: give at least one, {'fp16': number_format(torch.float16)}")
    drawn: list[float] = []
    with style():
        plot = new_figure(0.9 + 0.45 * len(formats))
        axes = plot.subplots()
        for number, (name, held) in enumerate(formats.items()):
            height = held.resolution * BESIDE ** drawn.count(held.resolution)
            drawn.append(held.resolution)
            normal = {"markevery": [0, 1], **look(number)}
            axes.plot([held.smallest_normal, held.largest], [height] * 2, linewidth=3, **normal)
            axes.plot([held.smallest, held.smallest_normal], [height] * 2, color=cycled(COLOURS, number), linestyle=":")
            note(axes, name, (held.largest, height), offset=(8, 0), va="center")
        axes.set(xscale="log", yscale="log", xlabel="size of a number (dotted: subnormal, with less resolution)")
        axes.set_ylabel("relative step to the\nnext number (fine: below)")
        axes.margins(x=0.12, y=0.12)
        _powers_of_ten(axes.xaxis)
        _powers_of_ten(axes.yaxis)
    parts = [
        f"{name} from {held.smallest_normal:.1e} to {held.largest:.1e} in steps of {held.resolution:.1e}"
        for name, held in formats.items()
    ]
    plot.alt = f"Lines, the range of number formats, by their resolution: {'; '.join(parts)}."
    return plot


def magnitudes(values: Mapping[str, Any], held: Any, *, name: str, of: str = "gradient") -> Plot:
    """Draw how large numbers are, a line for each set, against what a format can hold.

    Args:
        values: label to numbers, arrays or tensors of any shape; zeros are left out.
        held: the format, as from ``precision.number_format``; its limits are read.
        name: the format's, for the text: "fp16".
        of: what the numbers are, for the axis.

    Raises:
        ValueError: nothing to draw, or a set without any number other than zero.
    """
    sizes = {label: np.abs(np.ravel(numbers)).astype(np.float64) for label, numbers in values.items()}
    sizes = {label: numbers[numbers > 0] for label, numbers in sizes.items()}
    if not sizes or not all(map(len, sizes.values())):
        raise ValueError("no magnitude to draw: give at least one set, with a number other than zero in it")
    told = []
    with style():
        plot = new_figure(3.4)
        axes = plot.subplots()
        for number, (label, numbers) in enumerate(sizes.items()):
            counts, edges = _octaves(numbers)
            line: dict[str, Any] = {"color": cycled(COLOURS, number), "linestyle": cycled(LINES, number)}
            axes.stairs(100 * counts / len(numbers), edges, label=label, linewidth=1.8, **line)
            lost = 100 * float((numbers <= held.smallest / 2).mean())
            words = " ".join(str(label).split())
            told.append(f"{words}, median {np.median(numbers):.1e}, {digits(lost)} % of them lost in {name}")
        axes.set(xscale="log", xlabel=f"size of a {of}", ylabel="share [% per octave]")
        _limits(axes, held, name)
        _powers_of_ten(axes.xaxis)
        plot.legend(loc="outside right upper")
    plot.alt = (
        f"Histograms of the size of {of}s, against what {name} can hold, {held.smallest:.1e} to {held.largest:.1e}: "
        f"{'; '.join(told)}."
    )
    return plot


def _octaves(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Count numbers between neighbouring powers of two."""
    exponents = np.log2(numbers)
    first, last = int(np.floor(exponents.min())), int(np.floor(exponents.max())) + 1
    edges = np.arange(first, last + 1)
    return np.histogram(exponents, bins=edges)[0], 2.0**edges


def _limits(axes: Axes, held: Any, name: str) -> None:
    """Shade what a format holds in part or not at all."""
    low, high = axes.get_xlim()
    low, high = min(low, held.smallest / 32), max(high, held.largest * 32)
    areas = (
        (low, held.smallest / 2, f"zero in {name}", HATCHES[1]),
        (held.smallest / 2, held.smallest_normal, "subnormal", HATCHES[2]),
        (held.largest, high, f"beyond {name}", HATCHES[1]),
    )
    for start, end, words, hatch in areas:
        if start < end:
            axes.axvspan(start, end, facecolor="#EEEEEE", edgecolor=QUIET, hatch=hatch, linewidth=0, zorder=0)
            place = axes.get_xaxis_transform()
            middle = (start * end) ** 0.5
            axes.text(middle, 1.01, words, transform=place, fontsize=9, color=INK, ha="center", va="bottom")
    axes.set_xlim(low, high)


def _powers_of_ten(axis: Axis) -> None:
    """Write the numbers of a logarithmic axis as powers, without markup, which figures here do not read."""
    axis.set_major_formatter(lambda value, _: "10" + str(round(np.log10(value))).translate(SUPERSCRIPT))
