"""One style for every figure of the course, and figures that carry their alt text wherever they are shown."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

WIDTH_IN = 7.5
DPI = 110

# Okabe and Ito's colours, ordered so that neighbours also differ in lightness; hatch, marker and line style repeat
# the distinction for greyscale print and for eyes that do not tell the colours apart.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
HATCHES = ("", "///", "...", "\\\\\\", "xx", "oo")
MARKERS = ("o", "s", "^", "D", "v", "P")
LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1, 1, 1)))
INK = "#222222"
QUIET = "#767676"

STYLE: Any = {
    "font.family": "DejaVu Sans",  # ships with matplotlib, so every machine draws the same figure
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 9,
    "axes.labelsize": 10,
    "axes.labelcolor": INK,
    "axes.edgecolor": QUIET,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.8,
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "savefig.facecolor": "white",
    "text.color": INK,
    "text.parse_math": False,  # a class called "$x$" is a name, not a formula
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 6,
    "hatch.linewidth": 0.8,
}


class Plot(Figure):
    """A matplotlib figure with an alt text: a sentence, built from the data, that says what is seen.

    As the last expression of a cell it shows itself as PNG, the alt text in the output's metadata (``image/png`` →
    ``alt``) and as its plain-text form. It does not belong to pyplot, so it is shown once and needs no closing.
    """

    alt: str = ""

    def _repr_mimebundle_(self, **_: object) -> tuple[dict[str, Any], dict[str, Any]]:
        return mime_bundle(self, self.alt)


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Draw in deploykit's style inside this block, also with pyplot; matplotlib's settings are restored after it."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        yield


def new_figure(height_in: float) -> Plot:
    """Return an empty figure of the course's width."""
    return Plot(figsize=(WIDTH_IN, height_in), dpi=DPI, layout="constrained")


def mime_bundle(figure: Figure, alt: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the figure as Jupyter output: PNG (bytes) and alt text, and the metadata that joins the two."""
    buffer = io.BytesIO()
    with style():  # ticks are created while drawing
        figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return {"image/png": buffer.getvalue(), "text/plain": alt}, {"image/png": {"alt": alt}}


def show(figure: Figure, alt: str | None = None) -> None:
    """Display a figure with its alt text; a figure of pyplot's is closed, so that it is not shown twice.

    Args:
        figure: one of ``plots`` or your own.
        alt: one or two sentences; by default those of the figure itself, which all of ``plots`` have.

    Raises:
        ValueError: a figure of your own without alt text.
    """
    from IPython.display import display

    alt = alt or getattr(figure, "alt", "")
    if not alt:
        raise ValueError("this figure has no alt text: pass alt= with a sentence that says what is to be seen")
    data, metadata = mime_bundle(figure, alt)
    display(data, metadata=metadata, raw=True)
    if pyplot := sys.modules.get("matplotlib.pyplot"):
        pyplot.close(figure)
