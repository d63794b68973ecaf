"""What a step can be expected to bring: a range over recorded runs, or a claim's verdict; never a number of its own."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

from deploykit.claims import find_claim, verdicts
from deploykit.recorded import recorded, results_folder
from deploykit.text import with_unit

NETWORKS = ("resnet20", "resnet56", "resnet20x4")  # convolutional, in float32 and int8, x86 with VNNI
PRUNED, DRAWN = "block-pruning-resnet20", "resnet10-fast"
SINGLE, MANY = 1, 64  # the batches of those runs
ABSENT = "no recorded run has it"
FEW_IMAGES = 8  # up to here a batch is like a single image


@dataclass(frozen=True)
class Effect:
    """An expected effect and where it is taken from.

    Attributes:
        what: the quantity: "speed over OpenVINO, float32, batch 64".
        low: the smallest that was measured; None if nobody measured it yet.
        high: the largest.
        unit: "x" or "points".
        source: the recorded runs, or the claim with the notebook that puts it to the test.
    """

    what: str
    low: float | None
    high: float | None
    unit: str
    source: str

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.what}: not measured yet ({self.source})"
        places = 2 if self.unit == "points" or self.high < 1 else 1  # digits that the intervals support
        ends = dict.fromkeys(f"{end:.{places}f}" for end in (self.low, self.high))
        span = " to ".join(ends)
        return f"{self.what}: {with_unit(span, self.unit)} ({self.source})"


def recorded_speed(form: str, *, over: str, batch: int) -> Effect:
    """Return how many times as fast a form is as another one, over the recorded networks.

    Args:
        form: as the recorded runs call it: "OpenVINO, int8 NNCF".
        over: the form to compare with.
        batch: images per call; the recorded batch that is like it is looked up.
    """
    size = SINGLE if batch <= FEW_IMAGES else MANY
    column, what = f"speedup_batch_{size}", f"speed over {over}, batch {size}"
    found = {name: rows for name, rows in _tables(results_folder()).items() if form in rows and over in rows}
    if not found:
        return Effect(what, None, None, "x", ABSENT)
    ratios = [rows[form][column] / rows[over][column] for rows in found.values()]
    return Effect(what, min(ratios), max(ratios), "x", f"recorded: {', '.join(found)}")


def recorded_batching(form: str) -> Effect:
    """Return how many times as many images a second a form answers in large batches as one by one."""
    what = f"throughput of {form}, batch {MANY} over batch {SINGLE}"
    found = {name: rows[form] for name, rows in _tables(results_folder()).items() if form in rows}
    if not found:
        return Effect(what, None, None, "x", ABSENT)
    gains = [
        MANY * row[f"median_ms_batch_{SINGLE}"] / (SINGLE * row[f"median_ms_batch_{MANY}"]) for row in found.values()
    ]
    return Effect(what, min(gains), max(gains), "x", f"recorded: {', '.join(found)}")


def recorded_loss(form: str) -> Effect:
    """Return the change of accuracy of a form, points: the outer ends of the recorded runs' paired intervals."""
    found = {name: rows[form] for name, rows in _tables(results_folder()).items() if form in rows}
    if not found:
        return Effect("change of accuracy", None, None, "points", ABSENT)
    low, high = min(row["low_points"] for row in found.values()), max(row["high_points"] for row in found.values())
    return Effect("change of accuracy", low, high, "points", f"recorded: {', '.join(found)}")


def training_loss(run: str) -> Effect:
    """Return what a smaller network changed once it was trained, points, with the recorded interval.

    Args:
        run: the recorded run: ``PRUNED``, blocks taken out and the rest fine-tuned, or ``DRAWN``, a network drawn for
            the processor and trained from random weights.
    """
    if not (results_folder() / f"{run}.json").is_file():
        return Effect("change of accuracy", None, None, "points", f"recorded run {run} is not here")
    row = recorded(run).rows[0]
    low, high = row["minus_before_points_low"], row["minus_before_points_high"]
    trained = f"{row['epochs']} epochs, {row['minutes']:.0f} minutes"
    return Effect("change of accuracy", low, high, "points", f"recorded run {run}: {trained}")


def claim_effect(claim_id: str, *, here: bool = True) -> Effect:
    """Return what this machine's ledger says about a claim, or that it has yet to be measured.

    Args:
        claim_id: the claim.
        here: whether the advice is for this machine; what was measured on it says nothing about another.
    """
    claim = find_claim(claim_id)
    table = verdicts().set_index("claim")
    source = f"claim {claim_id}, notebook {claim.notebook}"
    if not here or claim_id not in table.index or table.loc[claim_id, ["low", "high"]].isna().any():
        return Effect(claim.quantity, None, None, claim.unit, source)
    row = table.loc[claim_id]
    found = f"{source}: on this machine, {row['verdict']}"
    return Effect(claim.quantity, float(row["low"]), float(row["high"]), claim.unit, found)


@functools.cache
def _tables(folder: Path) -> dict[str, dict[str, dict[str, float]]]:
    """Return the rows of the recorded runs in the results folder: run to form to row."""
    runs = {f"quantization-{name}" for name in NETWORKS}
    here = sorted(name for name in runs if (folder / f"{name}.json").is_file())
    return {name: {str(row["form"]): dict(row) for row in recorded(name).rows} for name in here}
