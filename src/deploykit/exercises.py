"""Exercises that answer at once: what is right, what is not yet, and a hint that opens on demand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import EllipsisType, FunctionType
from typing import Any

from deploykit.text import escape_markdown

OPEN, WRONG, RIGHT = "not answered yet", "not yet", "right"
SIGNS = {OPEN: "○", WRONG: "✗", RIGHT: "✓"}


@dataclass(frozen=True)
class Checked:
    """Outcome of a check; the last expression of its cell, so that the reader sees it."""

    exercise_id: str
    state: str
    message: str
    hint: str

    def __str__(self) -> str:
        line = f"{SIGNS[self.state]} Exercise {self.exercise_id}: {self.state}."
        line += f" {self.message}" if self.message else ""
        return line + (f"\n  Hint: {self.hint}" if self.hint and self.state != RIGHT else "")

    __repr__ = __str__

    def _repr_markdown_(self) -> str:
        line = f"**{SIGNS[self.state]} Exercise {escape_markdown(self.exercise_id)}: {self.state}.**"
        line += f" {escape_markdown(self.message)}" if self.message else ""
        if not self.hint or self.state == RIGHT:
            return line
        return f"{line}\n\n<details><summary>Hint</summary>\n\n{self.hint}\n\n</details>"


def exercise(
    exercise_id: str, answer: Any, *, expect: Mapping[str, Callable[[Any], Any]], hint: str = "", well_done: str = ""
) -> Checked:
    """Check an answer and say the first thing that is not right about it.

    The same cell serves the stub and the solution: ``None``, ``...``, a collection with a ``...`` in it, and a function
    that raises ``NotImplementedError`` or returns ``...`` count as not answered yet, and never stop the notebook.

        exercise("01.2", smallest_batch, expect={
            "it is a batch size that was measured": lambda answer: answer in curve,
            "no smaller batch comes within 10 % of the best throughput": lambda answer: answer == best,
        }, hint="Read the left panel from the right.")

    Args:
        exercise_id: notebook and number, ``"01.2"``.
        answer: a value, or a function that the expectations call.
        expect: what must be true, in words, to a function of the answer that says whether it is. Tried in order. An
            expectation that raises is one that the answer does not meet; the error is shown.
        hint: Markdown; opens on demand while the answer is not right.
        well_done: a sentence for a right answer.

    Raises:
        ValueError: nothing is expected, so that every answer would be right.
    """
    if not expect:
        raise ValueError(f"exercise {exercise_id} expects nothing: pass expect= with at least one condition")
    if _is_open(answer):
        return Checked(exercise_id, OPEN, "Replace the ... in the cell above, then run this one again.", hint)
    for words, holds in expect.items():
        try:
            met = bool(holds(_Watched(answer) if isinstance(answer, FunctionType) else answer))
        except NotImplementedError:
            return Checked(exercise_id, OPEN, "Write the function in the cell above, then run this one again.", hint)
        except Exception as error:  # noqa: BLE001 (an answer may be anything, and none may stop the notebook)
            problem = f"Expected: {words}. But checking your answer raised {type(error).__name__}: {error}"
            return Checked(exercise_id, WRONG, problem, hint)
        if not met:
            shown = "" if callable(answer) else f" Your answer: {_short(answer)}."
            return Checked(exercise_id, WRONG, f"Expected: {words}.{shown}", hint)
    return Checked(exercise_id, RIGHT, well_done, hint)


class _Watched:
    """A reader's function that reports an empty body (``...``) as not implemented instead of as a wrong answer."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        result = self._function(*args, **kwargs)
        if isinstance(result, EllipsisType):
            raise NotImplementedError
        return result

    def __getattr__(self, name: str) -> Any:
        return getattr(self._function, name)


def _is_open(answer: Any) -> bool:
    if isinstance(answer, list | tuple | set | dict):
        parts = answer.values() if isinstance(answer, dict) else answer
        return any(_is_open(part) for part in parts)
    return answer is None or isinstance(answer, EllipsisType)


def _short(answer: Any, longest: int = 80) -> str:
    text = " ".join(repr(answer).split())
    return text if len(text) <= longest else f"{text[: longest - 1]}…"
