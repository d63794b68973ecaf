"""``deploykit claims`` and ``deploykit predictions``: the advice under test, and how often intuition was right."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deploykit.cli import output
from deploykit.cli.contract import Status, StopError

if TYPE_CHECKING:
    from deploykit.claims import Claim, Verdict
    from deploykit.predictions import PredictionScore

UNMEASURED = "not measured yet"


def claims(
    claim_id: Annotated[str | None, typer.Argument(metavar="ID", help="One claim, with all that is known of it.")] = (
        None
    ),
    *,
    verdicts: Annotated[bool, typer.Option("--verdicts", help="Add the newest verdict reached on this machine.")] = (
        False
    ),
    as_json: output.Json = False,
) -> None:
    """List the pieces of advice that the course puts to the test."""
    from deploykit.claims import claims as all_claims
    from deploykit.claims import find_claim

    chosen = [find_claim(claim_id)] if claim_id else list(all_claims().values())
    reached = _verdicts() if verdicts else None
    if as_json:
        output.document({"claims": [_as_json(claim, reached) for claim in chosen]})
    elif claim_id:
        output.show(_in_full(chosen[0], reached))
    elif reached is None:
        rows = [(claim.id, claim.notebook, claim.words) for claim in chosen]
        output.show(output.table(rows, head=("claim", "notebook", "advice")))
    else:
        rows = [(claim.id, *_in_columns(reached.get(claim.id))) for claim in chosen]
        output.show(output.table(rows, head=("claim", "verdict", "measured")))


def predictions(*, as_json: output.Json = False) -> None:
    """Hold your predictions against what was measured.

    Shows the score, and where intuition failed.
    """
    from deploykit.predictions import prediction_score

    with _readable_ledger():
        score = prediction_score()
    if as_json:
        output.document({
            "right": score.right,
            "scored": [
                {
                    "claim": entry.claim.id,
                    "words": entry.claim.words,
                    "answer": entry.answer,
                    "measured": entry.measured,
                    "right": entry.right,
                }
                for entry in score.scored
            ],
            "waiting": list(score.waiting),
        })  # fmt: skip
    else:
        output.show(_score(score))


def _score(score: PredictionScore) -> str:
    if not score.scored:
        lines = [output.paragraph(str(score))]
    else:
        lines = [f"{score.right} of {len(score.scored)} predictions right"]
    for title, right in (("Where intuition failed", False), ("Where it was right", True)):
        entries = [entry for entry in score.scored if entry.right is right]
        if entries:
            rows = [(entry.claim.id, entry.answer, entry.measured) for entry in entries]
            lines += ["", f"{title}:", output.table(rows, head=("claim", "you said", "measured"))]
    if score.waiting:
        lines += ["", output.paragraph(f"Not measured yet: {', '.join(score.waiting)}")]
    return "\n".join(lines)


def _verdicts() -> dict[str, tuple[Verdict, dict[str, Any]]]:
    """Newest verdict by claim, with the row of the ledger that it stands in."""
    from deploykit.claims import Verdict, find_claim
    from deploykit.claims import verdicts as newest

    found = {}
    with _readable_ledger():
        for row in newest().to_dict("records"):
            value, low, high = (None if _absent(row[name]) else float(row[name]) for name in ("value", "low", "high"))
            verdict = Verdict(find_claim(row["claim"]), str(row["verdict"]), value, low, high, str(row["evidence"]))
            _ = verdict.numbers  # what cannot be written is found here, not while it is shown
            found[verdict.claim.id] = verdict, row
    return found


@contextlib.contextmanager
def _readable_ledger() -> Iterator[None]:
    """Name the remedy where a row of the ledger was edited into something that is no verdict or prediction.

    Raises:
        StopError: a column is missing, or holds what cannot be there.
    """
    try:
        yield
    except (LookupError, TypeError, ValueError, ArithmeticError) as error:
        raise StopError(
            f"a verdict or prediction in the ledger cannot be understood ({type(error).__name__}: {error}); "
            "look at `deploykit ledger show --kind verdict` (and prediction) and take the row out of its file",
            Status.UNABLE,
        ) from error


def _absent(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _as_json(claim: Claim, reached: dict[str, tuple[Verdict, dict[str, Any]]] | None) -> dict[str, Any]:
    described = dataclasses.asdict(claim)
    described["options"] = [
        {name: None if isinstance(value, float) and math.isinf(value) else value for name, value in option.items()}
        for option in described["options"]
    ]
    if reached is not None:
        described["verdict"] = _verdict_as_json(*reached[claim.id]) if claim.id in reached else None
    return described


def _verdict_as_json(verdict: Verdict, row: dict[str, Any]) -> dict[str, Any]:
    return {
        "verdict": verdict.verdict,
        "value": verdict.value,
        "low": verdict.low,
        "high": verdict.high,
        "evidence": verdict.evidence,
        "dataset": None if _absent(row["dataset"]) else row["dataset"],
        "time": row["time"],
    }


def _in_columns(reached: tuple[Verdict, dict[str, Any]] | None) -> tuple[str, str]:
    if reached is None:
        return UNMEASURED, ""
    verdict, _ = reached
    return verdict.verdict, verdict.numbers


def _in_full(claim: Claim, reached: dict[str, tuple[Verdict, dict[str, Any]]] | None) -> str:
    facts = {
        "claim": claim.id,
        "advice": claim.words,
        "source": claim.source,
        "test": claim.measured,
        "holds if": f"{claim.quantity} is {claim.stake}",
        "notebook": claim.notebook,
        "question": claim.question,
        "answers": " | ".join(option.answer for option in claim.options),
    }
    if reached is not None:
        verdict, numbers = _in_columns(reached.get(claim.id))
        facts["verdict"] = f"{verdict}: {numbers}" if numbers else f"{verdict}; run notebook {claim.notebook}"
    return output.table(facts.items())
