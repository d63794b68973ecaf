"""Exercises answer at once and never stop a notebook."""

import pytest
import torch

from deploykit.exercises import exercise

EXPECT = {"it is a whole number": lambda a: isinstance(a, int), "it is above 3": lambda a: a > 3}


@pytest.mark.parametrize("stub", [None, ..., (4, ...), {"batch": None}])
def test_a_stub_is_not_answered_yet(stub):
    """An open answer, alone or as a part, is no mistake."""
    checked = exercise("01.1", stub, expect=EXPECT, hint="count")

    assert str(checked).startswith("○ Exercise 01.1: not answered yet.")
    assert str(checked).endswith("Hint: count")


def test_the_first_unmet_expectation_is_said():
    """The reader learns what was expected and what they gave."""
    assert str(exercise("01.1", "4", expect=EXPECT)) == (
        "✗ Exercise 01.1: not yet. Expected: it is a whole number. Your answer: '4'."
    )
    assert "Expected: it is above 3. Your answer: 2." in str(exercise("01.1", 2, expect=EXPECT))


def test_a_right_answer_gets_a_tick_and_no_hint():
    """Once right, the hint is gone."""
    assert str(exercise("01.1", 4, expect=EXPECT, hint="count", well_done="Indeed.")) == (
        "✓ Exercise 01.1: right. Indeed."
    )


def test_an_answer_that_breaks_the_check_is_not_right():
    """A check that raises shows the error instead of a traceback."""
    checked = exercise("01.1", "4", expect={"it is above 3": lambda a: a > 3})

    assert "Expected: it is above 3. But checking your answer raised TypeError" in str(checked)


def test_a_function_is_open_until_it_is_written():
    """An empty body or NotImplementedError is open; a wrong function is wrong; a right one is right."""

    def unwritten(_):
        raise NotImplementedError

    expect = {"f(3) is 9": lambda f: f(3) == 9}
    answers = [unwritten, lambda _: ..., lambda x: x + x, lambda x: x * x]
    assert [exercise("01.2", f, expect=expect).state for f in answers] == [
        "not answered yet",
        "not answered yet",
        "not yet",
        "right",
    ]


def test_a_model_is_handed_over_as_it_is():
    """What can be called but is no plain function keeps its type in the check."""
    model = torch.nn.Linear(1, 1)

    assert exercise("01.3", model, expect={"it is a layer": lambda m: isinstance(m, torch.nn.Linear)}).state == "right"


def test_an_answer_is_shown_as_text():
    """HTML in an answer is not rendered; the author's hint is Markdown and opens on demand."""
    checked = exercise("1", "<img src=x onerror=alert(1)>", expect=EXPECT, hint="*count*")

    assert "<img" not in checked._repr_markdown_()
    assert "<details><summary>Hint</summary>\n\n*count*\n" in checked._repr_markdown_()


def test_an_exercise_that_expects_nothing_is_refused():
    """Else every answer would be right."""
    with pytest.raises(ValueError, match=r"^exercise 01\.1 expects nothing"):
        exercise("01.1", 4, expect={})
