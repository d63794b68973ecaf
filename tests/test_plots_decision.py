"""The decision ladder: a rung for each question, the way that was taken told apart, text that is text."""

from __future__ import annotations

import pytest

from deploykit import plots
from deploykit.advisor import Question

QUESTIONS = (Question("Are there images?", "static int8", answer=True), Question("A GPU?", "float16", answer=False))


def test_each_question_is_a_rung_with_its_answer():
    """Question, answer and step stand in a row, in the order of asking."""
    written = [text.get_text() for text in plots.decision_ladder(QUESTIONS, end="OpenVINO").axes[0].texts]

    assert [text for text in written if text] == [
        "Are there images?", "static int8", "yes", "A GPU?", "float16", "no", "OpenVINO",
    ]  # fmt: skip


def test_what_is_not_taken_is_dashed():
    """So the way is seen without colours."""
    boxes = plots.decision_ladder(QUESTIONS).axes[0].patches

    assert [box.get_linestyle() for box in boxes] == ["-", "-", "--", "--"]


def test_the_alt_text_tells_the_way():
    """What a reader of the picture would say."""
    assert plots.decision_ladder(QUESTIONS, end="OpenVINO").alt == (
        "A ladder of 2 questions. Are there images? yes, static int8; A GPU? no. The end: OpenVINO."
    )


def test_a_question_is_drawn_as_text_and_no_question_is_refused():
    """Neither HTML nor a broken formula stops the figure."""
    plot = plots.decision_ladder((Question(r"$\frac{$ <b>", "x", answer=True),))

    assert plot._repr_mimebundle_()[0]["image/png"].startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="no question to draw"):
        plots.decision_ladder(())
