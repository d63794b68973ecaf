"""The course's claims, and the verdicts that measurements on this machine reach about them."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit import ledger
from deploykit.advice import Claim, load_claims
from deploykit.text import escape_markdown, format_interval, with_unit

if TYPE_CHECKING:
    import pandas as pd

HOLDS = "holds"
REFUTED = "refuted here"
UNDECIDED = "undecided"
NOT_MEASURABLE = "not measurable here"


@dataclass(frozen=True)
class Verdict:
    """What the measurement says about a claim. Printed as one line with the numbers; also a row of the ledger.

    ``value``, ``low`` and ``high`` are in ``claim.unit``; all three are None when nothing could be measured.
    """

    claim: Claim
    verdict: str
    value: float | None
    low: float | None
    high: float | None
    evidence: str

    @property
    def numbers(self) -> str:
        """The measured number, its interval and the threshold in words, or why there is none."""
        if self.value is None or self.low is None or self.high is None:
            return self.evidence
        unit, threshold = self.claim.unit, self.claim.threshold
        value, low, high = format_interval(self.value, self.low, self.high, apart_from=threshold)
        interval = f" ({with_unit(f'{low} to {high}', unit)})" if self.low != self.high else ""
        return f"{self.claim.quantity} is {with_unit(value, unit)}{interval}, claimed {self.claim.stake}"

    def __str__(self) -> str:
        return f"{self.verdict}: {self.claim.id}: {self.numbers}"

    __repr__ = __str__

    def _repr_markdown_(self) -> str:
        words, numbers = escape_markdown(self.claim.words), escape_markdown(self.numbers)
        return f"**{self.verdict}** · {words} ({numbers}.)"


@functools.cache
def claims() -> Mapping[str, Claim]:
    """Return deploykit's claims by id, in the order of the course."""
    return load_claims(Path(str(resources.files("deploykit") / "claims.toml")))


def find_claim(claim_id: str) -> Claim:
    """Return the claim called ``claim_id``.

    Raises:
        ValueError: there is none; the message lists those there are.
    """
    if claim_id not in claims():
        raise ValueError(f"there is no claim {claim_id!r}; claims.toml has: {', '.join(claims())}")
    return claims()[claim_id]


def judge(
    claim_id: str,
    value: float,
    *,
    low: float | None = None,
    high: float | None = None,
    evidence: str,
    unit: str | None = None,
) -> Verdict:
    """Decide a claim by a measured number with its interval, record the verdict in the ledger and return it.

    It ``holds`` if the whole interval is on the claimed side of the threshold, is ``refuted here`` if the whole
    interval is on the other, and is ``undecided`` if the interval includes the threshold.

    Args:
        claim_id: the claim to decide.
        value: the claim's ``quantity``, in the claim's unit.
        low: lower end of its confidence interval. For a number that is exact (a count, a file's size) pass it as both
            ends; a measurement without an interval decides nothing.
        high: upper end of the interval.
        evidence: one line that says where the number comes from: model, dataset, settings.
        unit: unit of the value, if you want it checked against the claim's.

    Raises:
        ValueError: no such claim, no interval, a number that is not finite, ``value`` outside ``[low, high]``, no
            evidence, or another unit. Nothing is recorded then.
    """
    claim = find_claim(claim_id)
    if low is None or high is None:
        raise ValueError(
            f"{claim_id}: {value} comes without an interval; pass low= and high= "
            "(both equal to the value if it is exact, such as a count or the size of a file)"
        )
    value, low, high = float(value), float(low), float(high)
    if not all(map(math.isfinite, (value, low, high))):
        raise ValueError(
            f"{claim_id}: value {value}, low {low}, high {high}; all three must be finite. "
            "If nothing could be measured, call not_measurable()"
        )
    if not low <= value <= high:
        raise ValueError(f"{claim_id}: value {value} lies outside its interval [{low}, {high}]")
    if unit is not None and unit != claim.unit:
        raise ValueError(f"{claim_id} is decided in {claim.unit!r}, the value is in {unit!r}: convert it")
    if low <= claim.threshold <= high:
        verdict = UNDECIDED
    else:
        verdict = HOLDS if (value > claim.threshold) == (claim.direction == "above") else REFUTED
    return _recorded(Verdict(claim, verdict, value, low, high, _one_line(claim_id, evidence)))


def not_measurable(claim_id: str, reason: str) -> Verdict:
    """Record that a claim cannot be put to the test on this machine, and why ("needs a CUDA GPU, there is none").

    Raises:
        ValueError: no such claim, or no reason.
    """
    claim = find_claim(claim_id)
    return _recorded(Verdict(claim, NOT_MEASURABLE, None, None, None, _one_line(claim_id, reason)))


def verdicts() -> pd.DataFrame:
    """Return the newest verdict of each claim, in the order of ``claims.toml``.

    Columns: claim, words, verdict, value, low, high, unit, threshold, direction, dataset, time, evidence.
    """
    rows = ledger.rows(kind="verdict").rename(columns={"what": "claim"})
    newest = rows.drop_duplicates("claim", keep="last").set_index("claim")
    newest = newest.reindex([claim_id for claim_id in claims() if claim_id in newest.index])
    newest.insert(0, "words", [find_claim(claim_id).words for claim_id in newest.index])
    columns = ["claim", "words", "verdict", "value", "low", "high", "unit", "threshold", "direction"]
    return newest.reset_index().reindex(columns=[*columns, "dataset", "time", "evidence"])


def _one_line(claim_id: str, text: str) -> str:
    if not str(text).strip():
        raise ValueError(f"{claim_id}: a verdict needs a line that says what it rests on")
    return " ".join(str(text).split())


def _recorded(verdict: Verdict) -> Verdict:
    claim = verdict.claim
    ledger.record(
        claim.id,
        kind="verdict",
        verdict=verdict.verdict,
        value=verdict.value,
        low=verdict.low,
        high=verdict.high,
        unit=claim.unit,
        threshold=claim.threshold,
        direction=claim.direction,
        evidence=verdict.evidence,
    )
    return verdict
