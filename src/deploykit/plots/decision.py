"""A decision guide as a ladder: questions on the left, what a yes leads to on the right, the way taken in colour."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from deploykit.figures import COLOURS, INK, QUIET, Plot, new_figure, style
from deploykit.plots._marks import wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROW_IN = 0.55  # height of a rung
QUESTION_AT, STEP_AT = 0.29, 0.8  # centres of the two columns, in the width of the figure
QUESTION_WIDTH, STEP_WIDTH, BOX_HEIGHT = 0.54, 0.32, 0.66
LETTERS = 46  # of a question, in a line


class Rung(Protocol):
    """A question of the guide, what a yes leads to, and the answer."""

    @property
    def text(self) -> str:
        """The question."""

    @property
    def leads_to(self) -> str:
        """The step that follows from a yes."""

    @property
    def answer(self) -> bool:
        """Whether it is a yes here."""


def decision_ladder(questions: Sequence[Rung], *, end: str = "") -> Plot:
    """Draw the questions from top to bottom, and an arrow to the step wherever the answer is yes.

    Args:
        questions: in the order in which they are asked.
        end: where the way ends, drawn below the last question; may be empty.

    Raises:
        ValueError: no question.
    """
    if not questions:
        raise ValueError("no question to draw: give at least one")
    rows = len(questions) + bool(end)
    with style():
        plot = new_figure(ROW_IN * rows + 0.2)
        axes = plot.subplots()
        axes.set(xlim=(0, 1), ylim=(rows - 0.4, -0.6))
        axes.axis("off")
        for row, question in enumerate(questions):
            _box(axes, (QUESTION_AT, row), QUESTION_WIDTH, question.text, taken=question.answer, letters=LETTERS)
            _box(axes, (STEP_AT, row), STEP_WIDTH, question.leads_to, taken=question.answer, filled=question.answer)
            _arrow(axes, (QUESTION_AT + QUESTION_WIDTH / 2, row), (STEP_AT - STEP_WIDTH / 2, row), question.answer)
            if row < rows - 1:
                below = (QUESTION_AT, row + 1 - BOX_HEIGHT / 2)
                _arrow(axes, (QUESTION_AT, row + BOX_HEIGHT / 2), below, taken=True)
        if end:
            _box(axes, (QUESTION_AT, rows - 1), QUESTION_WIDTH, end, taken=True, filled=True, letters=LETTERS)
    said = "; ".join(f"{q.text} {'yes, ' + q.leads_to if q.answer else 'no'}" for q in questions)
    plot.alt = f"A ladder of {len(questions)} questions. {said}.{f' The end: {end}.' if end else ''}"
    return plot


def _box(
    axes: Axes, centre: tuple[float, float], width: float, text: str, *, taken: bool, filled: bool = False,
    letters: int = 26,
) -> None:  # fmt: skip
    from matplotlib.patches import FancyBboxPatch

    left, top = centre[0] - width / 2, centre[1] - BOX_HEIGHT / 2
    ink = INK if taken else QUIET
    axes.add_patch(
        FancyBboxPatch(
            (left, top), width, BOX_HEIGHT, boxstyle="round,pad=0,rounding_size=0.02", mutation_aspect=5,
            facecolor=COLOURS[4] if filled else "white", edgecolor=ink, linewidth=1.4 if taken else 0.8,
            linestyle="-" if taken else "--", alpha=0.9,
        )
    )  # fmt: skip
    axes.text(*centre, wrapped(text, letters), ha="center", va="center", color=ink, fontsize=9.5)


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], taken: bool) -> None:  # noqa: FBT001
    look = {"arrowstyle": "-|>", "color": INK if taken else QUIET, "linestyle": "-" if taken else ":", "shrinkA": 0}
    axes.annotate("", xy=end, xytext=start, arrowprops={**look, "shrinkB": 0, "linewidth": 1.2 if taken else 0.8})
    if start[1] == end[1]:
        label = "yes" if taken else "no"
        axes.text(
            (start[0] + end[0]) / 2, start[1] - 0.08, label, ha="center", va="bottom", fontsize=8,
            color=INK if taken else QUIET,
        )  # fmt: skip
