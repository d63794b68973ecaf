"""Claims are decided by the whole interval, and the newest verdict counts."""

import dataclasses
import math

import pytest

from deploykit import ledger
from deploykit.claims import claims, find_claim, judge, not_measurable, verdicts

BASELINE, ACCURACY = "establish-a-baseline-first", "measure-more-than-accuracy"


@pytest.fixture(autouse=True)
def _own_ledger(tmp_path, monkeypatch):
    monkeypatch.setenv("DEPLOYKIT_LEDGER", str(tmp_path / "ledger"))


@pytest.mark.parametrize(
    ("low", "value", "high", "verdict"),
    [
        (5.01, 6, 7, "holds"),
        (3, 4, 4.99, "refuted here"),
        (5.0, 6, 7, "undecided"),
        (3, 4, 5.0, "undecided"),
        (4, 5, 6, "undecided"),
        (5.1, 5.1, 5.1, "holds"),
        (5, 5, 5, "undecided"),
    ],
)
def test_a_verdict_needs_the_whole_interval_on_one_side(low, value, high, verdict):
    """An interval that touches the threshold decides nothing."""
    assert judge(BASELINE, value, low=low, high=high, evidence="planted").verdict == verdict


def test_a_claim_of_below_turns_the_sides_around(monkeypatch):
    """Where less is claimed, an interval under the threshold holds."""
    less = dataclasses.replace(find_claim(BASELINE), direction="below", threshold=5.0)
    monkeypatch.setattr("deploykit.claims.claims", lambda: {BASELINE: less})

    assert judge(BASELINE, 1, low=1, high=2, evidence="planted").verdict == "holds"
    assert judge(BASELINE, 8, low=7, high=9, evidence="planted").verdict == "refuted here"


def test_a_verdict_prints_one_line_with_numbers_and_units():
    """The line has as many digits as the interval allows and names the claimed side."""
    line = str(judge(ACCURACY, 3.14159, low=3.02, high=3.29, evidence="ResNet-20"))

    assert line == (
        "holds: measure-more-than-accuracy: the throughput in batches of 64 over that of one image at a time is 3.14x "
        "(3.02 to 3.29x), claimed above 1.5x"
    )


def test_a_clear_interval_is_not_rounded_onto_the_threshold():
    """An end just beside the threshold keeps the digits that show it."""
    verdict = judge(BASELINE, 6, low=5.004, high=8, evidence="planted")

    assert verdict.verdict == "holds"
    assert "(5.004 to 8.000 %)" in str(verdict)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"value": 2.0}, r"2\.0 comes without an interval; pass low= and high="),
        ({"value": math.nan, "low": 1, "high": 2}, r"value nan, low 1\.0, high 2\.0; all three must be finite"),
        ({"value": 2, "low": 1, "high": math.inf}, "all three must be finite"),
        ({"value": 3, "low": 1, "high": 2}, r"value 3\.0 lies outside its interval \[1\.0, 2\.0\]"),
        ({"value": 2, "low": 1, "high": 3, "unit": "x"}, "is decided in '%', the value is in 'x'"),
        ({"value": 2, "low": 1, "high": 3, "evidence": " "}, "a verdict needs a line that says what it rests on"),
    ],
)
def test_what_decides_nothing_is_refused_and_not_recorded(numbers, message):
    """Only a finite number within its interval, in the claim's unit and with evidence, is judged."""
    with pytest.raises(ValueError, match=message):
        judge(BASELINE, **{"evidence": "planted", **numbers})
    assert ledger.rows().empty


def test_an_unknown_claim_lists_the_known_ones():
    """A misspelt id is answered with the ids there are."""
    with pytest.raises(ValueError, match=r"^there is no claim 'baseline'; claims\.toml has: .*establish-a-baseline"):
        find_claim("baseline")


def test_the_newest_verdict_of_each_claim_counts():
    """Verdicts are rows of the ledger; a later one replaces an earlier, and evidence goes with it."""
    judge(BASELINE, 9, low=8, high=10, evidence="monday")
    judge(ACCURACY, 3, low=2, high=4, evidence="monday")
    not_measurable(BASELINE, "the machine was taken away")

    table = verdicts().set_index("claim")
    assert table.loc[BASELINE, "verdict"] == "not measurable here"
    assert table.loc[BASELINE, "evidence"] == "the machine was taken away"
    assert table.loc[ACCURACY, ["verdict", "value", "unit"]].tolist() == ["holds", 3, "x"]
    assert len(ledger.rows("verdict")) == 3


def test_no_verdict_yet_is_an_empty_table():
    """Before any measurement there are columns and no rows."""
    assert verdicts().empty
    assert "verdict" in verdicts().columns


def test_evidence_is_shown_as_text():
    """Whatever is written as reason, no markup of it reaches the page."""
    verdict = not_measurable(BASELINE, "needs <img src=x onerror=alert(1)> and *stars* $x$")

    assert "&lt;img src=x onerror=alert(1)&gt; and \\*stars\\* \\$x\\$" in verdict._repr_markdown_()
    assert "<img" not in verdict._repr_markdown_()


def test_the_courses_claims_are_valid_and_have_a_question():
    """claims.toml loads, is not empty, and each claim asks something with more than yes and no."""
    assert {BASELINE, ACCURACY} <= set(claims())
    assert all(claim.question.endswith("?") and len(claim.options) >= 3 for claim in claims().values())
