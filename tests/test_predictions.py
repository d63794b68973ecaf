"""Predictions are recorded beside claims and scored against verdicts."""

import pytest

from deploykit import ledger
from deploykit.claims import judge, not_measurable
from deploykit.predictions import predict, prediction_score

BASELINE, ACCURACY = "establish-a-baseline-first", "measure-more-than-accuracy"


@pytest.fixture(autouse=True)
def _own_ledger(tmp_path, monkeypatch):
    monkeypatch.setenv("DEPLOYKIT_LEDGER", str(tmp_path / "ledger"))


@pytest.mark.parametrize("open_answer", [None, ...])
def test_an_open_question_is_fine_and_shows_its_answers(open_answer):
    """Nothing is recorded, and the reader sees what can be answered."""
    prediction = predict(BASELINE, open_answer)

    assert ledger.rows().empty
    assert "5 to 20 %" in str(prediction)
    assert "`under 1 %`" in prediction._repr_markdown_()


def test_another_answer_lists_those_there_are():
    """A typing error does not count as a prediction."""
    with pytest.raises(ValueError, match=r"^'a lot' is none of the answers to establish-a-baseline-first: 'under 1 %'"):
        predict(BASELINE, "a lot")


def test_an_answer_is_right_if_its_range_meets_the_interval():
    """4.8 to 6 % meets both neighbours of 5 %, and neither "under 1 %" nor "more than 20 %"."""
    judge(BASELINE, 5.5, low=4.8, high=6.0, evidence="planted")

    outcome = {}
    for answer in ("under 1 %", "1 to 5 %", "5 to 20 %", "more than 20 %"):
        predict(BASELINE, answer)
        outcome[answer] = prediction_score().right
    assert outcome == {"under 1 %": 0, "1 to 5 %": 1, "5 to 20 %": 1, "more than 20 %": 0}


def test_the_score_says_where_intuition_failed():
    """Right ones are counted, wrong ones shown with what was measured."""
    predict(BASELINE, "under 1 %")
    predict(ACCURACY, "1.5x to 4x")
    judge(BASELINE, 12, low=10, high=14, evidence="planted")
    judge(ACCURACY, 3, low=2.9, high=3.1, evidence="planted")

    text = str(prediction_score())
    assert text.startswith("1 of 2 predictions right.")
    assert "intuition failed: establish-a-baseline-first: you said under 1 %, measured 12.0 %" in text
    assert "right: measure-more-than-accuracy: you said 1.5x to 4x, measured 3.00x" in text
    assert "1 of 2 predictions right" in prediction_score()._repr_html_()


def test_what_was_not_measured_is_not_scored():
    """Neither a missing verdict nor one without a number counts against the reader."""
    predict(BASELINE, "under 1 %")
    predict(ACCURACY, "1.5x to 4x")
    not_measurable(BASELINE, "no clock")

    score = prediction_score()
    assert (score.scored, score.waiting) == ((), (ACCURACY, BASELINE))
    assert str(score).startswith("No prediction to score yet")
