"""A piece of advice under test, with the number that decides it, and the file in which such claims are written."""

from __future__ import annotations

import math
import re
import tomllib
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from deploykit.text import escape_markdown, with_unit

DIRECTIONS = ("above", "below")
TEXTS = ("id", "words", "source", "measured", "quantity", "direction", "unit", "notebook", "question")
REQUIRED = (*TEXTS, "threshold", "options")
OPTIONAL = ("but",)


@dataclass(frozen=True)
class Option:
    """One answer to a claim's question: the measured number lies in ``[above, up_to]``, in the claim's unit."""

    answer: str
    above: float
    up_to: float


@dataclass(frozen=True)
class Claim:
    """A piece of advice under test, as written in ``claims.toml``.

    Attributes:
        id: kebab-case name.
        words: the advice.
        source: where it is given.
        measured: how it is put to the test.
        quantity: the number that decides.
        threshold: the claim holds on the side ``direction`` ("above" or "below") of it; in ``unit``.
        unit: ``"x"`` for a ratio, ``""`` for a bare number.
        notebook: two digits, the notebook that measures it.
        question: what the reader is asked before the measurement.
        options: answers to choose from; their ranges cover all numbers, in ascending order.
        but: what else the notebook shows, of which the number that decides says nothing; "" if there is nothing.
    """

    id: str
    words: str
    source: str
    measured: str
    quantity: str
    threshold: float
    direction: str
    unit: str
    notebook: str
    question: str
    options: tuple[Option, ...]
    but: str = ""

    @property
    def stake(self) -> str:
        """What would have to be measured for the claim to hold, e.g. ``above 1.5x``."""
        return f"{self.direction} {with_unit(f'{self.threshold:g}', self.unit)}"

    def __str__(self) -> str:
        return f"{self.id}: {self.words} Holds if {self.quantity} is {self.stake}. Source: {self.source}."

    __repr__ = __str__

    def _repr_markdown_(self) -> str:
        return (
            f"**Claim** `{self.id}`: {escape_markdown(self.words)}  \n"
            f"*Source:* {escape_markdown(self.source)}  \n"
            f"*Put to the test:* {escape_markdown(self.measured)}  \n"
            f"*Holds if* {escape_markdown(self.quantity)} is **{escape_markdown(self.stake)}**."
        )


def load_claims(path: Path | str) -> dict[str, Claim]:
    """Read and check a file of claims in the form of ``claims.toml``.

    Raises:
        ValueError: a claim lacks or misspells a key, an id twice or not in kebab-case, an unknown direction, a notebook
            that is not two digits, or options that leave a verdict open; the message names the claim.
    """
    found: dict[str, Claim] = {}
    for number, entry in enumerate(tomllib.loads(Path(path).read_text(encoding="utf-8")).get("claim", []), start=1):
        claim = _checked(entry, f"claim {entry.get('id', f'number {number}')!r} in {Path(path).name}")
        if claim.id in found:
            raise ValueError(f"claim {claim.id!r} in {Path(path).name} is there twice: give each claim its own id")
        found[claim.id] = claim
    if not found:
        raise ValueError(f"{Path(path).name} holds no [[claim]]")
    return found


def _checked(entry: dict[str, Any], which: str) -> Claim:
    if missing := [key for key in REQUIRED if key not in entry]:
        raise ValueError(f"{which} lacks {', '.join(missing)}")
    if unknown := sorted(entry.keys() - {*REQUIRED, *OPTIONAL}):
        known = ", ".join((*REQUIRED, *OPTIONAL))
        raise ValueError(f"{which} has unknown keys: {', '.join(unknown)}; known are {known}")
    texts = [key for key in (*TEXTS, *OPTIONAL) if key in entry]
    if wrong := [key for key in texts if not isinstance(entry[key], str) or not (entry[key] or key == "unit")]:
        raise ValueError(f"{which}: {', '.join(wrong)} must be text in quotes, not empty")
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", entry["id"]):
        raise ValueError(f"{which}: an id is kebab-case, like 'establish-a-baseline-first'")
    if entry["direction"] not in DIRECTIONS:
        raise ValueError(f"{which}: direction is {entry['direction']!r}, it must be 'above' or 'below'")
    if not re.fullmatch(r"\d\d", entry["notebook"]):
        raise ValueError(f"{which}: notebook is {entry['notebook']!r}, it must be two digits, like '01'")
    threshold = entry["threshold"]
    if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not math.isfinite(threshold):
        raise ValueError(f"{which}: threshold is {threshold!r}, it must be a finite number")
    return Claim(**{**entry, "threshold": float(threshold), "options": _options(entry, which)})


def _options(entry: dict[str, Any], which: str) -> tuple[Option, ...]:
    given = entry["options"]
    tables = isinstance(given, list) and all(isinstance(option, dict) and "answer" in option for option in given)
    if not tables or not given[1:]:
        raise ValueError(f"{which}: options are at least two tables, each with an answer")
    answers = [option["answer"] for option in given]
    bounds = [option.get("up_to") for option in given]
    if len(set(answers)) < len(answers):
        raise ValueError(f"{which}: two options have the same answer")
    if bounds[-1] is not None or any(bound is None for bound in bounds[:-1]):
        raise ValueError(f"{which}: every option but the last has an up_to")
    ends = [-math.inf, *(float(bound) for bound in bounds[:-1]), math.inf]
    if any(low >= high for low, high in pairwise(ends)):
        raise ValueError(f"{which}: the options' up_to must ascend")
    if entry["threshold"] not in ends:
        raise ValueError(f"{which}: no option ends at the threshold {entry['threshold']}, so an answer leaves it open")
    return tuple(Option(answer, *span) for answer, span in zip(answers, pairwise(ends), strict=True))
