"""The reader's guesses before each measurement, and at the end how often intuition was right."""

from __future__ import annotations

import html
from dataclasses import dataclass
from types import EllipsisType

from deploykit import ledger
from deploykit.claims import NOT_MEASURABLE, Claim, claims, find_claim
from deploykit.text import escape_markdown, format_interval, with_unit


@dataclass(frozen=True)
class Prediction:
    """A reader's answer to a claim's question; ``answer`` is None when it was left open."""

    claim: Claim
    answer: str | None

    def __str__(self) -> str:
        if self.answer is not None:
            return f"Your prediction: {self.answer}. Now measure."
        answers = " | ".join(option.answer for option in self.claim.options)
        return f"{self.claim.question} Answers: {answers}. No prediction yet; going on without one is fine."

    __repr__ = __str__

    def _repr_markdown_(self) -> str:
        if self.answer is not None:
            return f"**Your prediction:** {escape_markdown(self.answer)}. Now measure."
        answers = "\n".join(f"- `{option.answer}`" for option in self.claim.options)
        return (
            f"**{escape_markdown(self.claim.question)}**\n\n{answers}\n\n"
            "*No prediction yet: put one of these in the cell above. Going on without one is fine.*"
        )


@dataclass(frozen=True)
class Scored:
    """One prediction beside the measured number: ``right`` if the answer's range meets the measured interval."""

    claim: Claim
    answer: str
    measured: str
    right: bool


@dataclass(frozen=True)
class PredictionScore:
    """The reader's predictions held against the verdicts.

    Attributes:
        scored: the predictions whose claim was measured, in the order of the course.
        waiting: ids of claims that were answered but not (or could not be) measured.
    """

    scored: tuple[Scored, ...]
    waiting: tuple[str, ...]

    @property
    def right(self) -> int:
        """Number of predictions that the measurement bore out."""
        return sum(entry.right for entry in self.scored)

    def __str__(self) -> str:
        if not self.scored:
            return "No prediction to score yet: answer a question before its measurement is run."
        lines = [f"{self.right} of {len(self.scored)} predictions right."]
        for entry in self.scored:
            mark = "right" if entry.right else "intuition failed"
            lines.append(f"  {mark}: {entry.claim.id}: you said {entry.answer}, measured {entry.measured}")
        if self.waiting:
            lines.append(f"  not measured: {', '.join(self.waiting)}")
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        if not self.scored:
            return f"<p>{html.escape(str(self))}</p>"
        body = "".join(
            f"<tr><td>{'✓ right' if entry.right else '✗ intuition failed'}</td>"
            f"<td style='text-align:left'>{html.escape(entry.claim.words)}</td>"
            f"<td style='text-align:left'>{html.escape(entry.answer)}</td>"
            f"<td style='text-align:left'>{html.escape(entry.measured)}</td></tr>"
            for entry in self.scored
        )
        waiting = f"<p>Not measured: {html.escape(', '.join(self.waiting))}</p>" if self.waiting else ""
        return (
            f"<p><strong>{self.right} of {len(self.scored)} predictions right.</strong></p>"
            "<table><thead><tr><th></th><th>claim</th><th>you said</th><th>measured</th></tr></thead>"
            f"<tbody>{body}</tbody></table>{waiting}"
        )


def predict(claim_id: str, answer: str | EllipsisType | None = None) -> Prediction:
    """Record the reader's answer to a claim's question, before it is measured.

    Args:
        claim_id: the claim that is asked about.
        answer: one of the answers of the claim's options; None or ``...`` leaves the question open, which is fine,
            and shows it with the answers to choose from.

    Raises:
        ValueError: no such claim, or another answer; the message lists the claim's.
    """
    claim = find_claim(claim_id)
    if answer is None or isinstance(answer, EllipsisType):
        return Prediction(claim, None)
    known = [option.answer for option in claim.options]
    if answer not in known:
        raise ValueError(f"{answer!r} is none of the answers to {claim_id}: {', '.join(map(repr, known))} (or None)")
    ledger.record(claim_id, kind="prediction", answer=answer)
    return Prediction(claim, answer)


def prediction_score() -> PredictionScore:
    """Hold the newest answer to each claim against the claim's newest verdict.

    An answer is right if its range meets the measured interval, so nobody is wrong by less than the measurement knows.
    """
    answers = ledger.rows(kind="prediction").drop_duplicates("what", keep="last").set_index("what")
    verdicts = ledger.rows(kind="verdict").drop_duplicates("what", keep="last").set_index("what")
    scored, waiting = [], []
    for claim_id, claim in claims().items():
        if claim_id not in answers.index:
            continue
        option = next((o for o in claim.options if o.answer == answers.loc[claim_id, "answer"]), None)
        if claim_id not in verdicts.index or verdicts.loc[claim_id, "verdict"] == NOT_MEASURABLE or option is None:
            waiting.append(claim_id)
            continue
        value, low, high = (float(verdicts.loc[claim_id, name]) for name in ("value", "low", "high"))
        shown = with_unit(format_interval(value, low, high, apart_from=claim.threshold)[0], claim.unit)
        right = option.above <= high and low <= option.up_to
        scored.append(Scored(claim, option.answer, shown, right))
    return PredictionScore(tuple(scored), tuple(waiting))
