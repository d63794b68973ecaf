"""What a fault is, and trying it a number of times."""

from __future__ import annotations

import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

FAILURES_SHOWN = 3


class UnmetError(Exception):
    """Something else happened than what was expected; the text says what."""


@dataclass(frozen=True)
class Trial:
    """One try: a source of randomness that belongs to it, and an empty folder."""

    random: random.Random
    folder: Path


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong.

    Attributes:
        name: for the command line.
        fault: what goes wrong, in a word or two.
        done: what is done to bring it about.
        expected: what must become of it.
        times, short: how often it is tried, and how often in the short form.
        trial: tries it once and returns what happened; raises UnmetError, or any other error, where that is wrong.
    """

    name: str
    fault: str
    done: str
    expected: str
    times: int
    short: int
    trial: Callable[[Trial], str]

    def run(self, *, seed: int, short: bool) -> dict[str, str | int | float | bool]:
        """Try it and return the row of the table."""
        begun, times = time.monotonic(), self.short if short else self.times
        seen: Counter[str] = Counter()
        failures = []
        for number in range(times):
            with tempfile.TemporaryDirectory(prefix="deploykit-fault-") as folder:
                try:
                    seen[self.trial(Trial(random.Random(f"{seed} {self.name} {number}"), Path(folder)))] += 1  # noqa: S311
                except Exception as error:  # noqa: BLE001 (whatever breaks is a failure of this trial)
                    kind = "" if isinstance(error, UnmetError) else f"{type(error).__name__}: "
                    failures.append(f"trial {number}: {kind}{error}".replace(folder, "the folder"))
        more = [f"and {len(failures) - FAILURES_SHOWN} more"] if len(failures) > FAILURES_SHOWN else []
        found = [f"{count} x {words}" if times > 1 else words for words, count in seen.most_common()]
        return {
            "name": self.name,
            "fault": self.fault,
            "done": self.done,
            "tried": times,
            "expected": self.expected,
            "happened": "; ".join([*failures[:FAILURES_SHOWN], *more, *found]),
            "ok": not failures,
            "seconds": round(time.monotonic() - begun, 1),
        }


CATALOGUE: list[Fault] = []


def fault(
    what: str, *, done: str, expected: str, times: int, short: int
) -> Callable[[Callable[[Trial], str]], Callable[[Trial], str]]:
    """Enter a trial into the catalogue, under the name of its function."""

    def enter(trial: Callable[[Trial], str]) -> Callable[[Trial], str]:
        name = trial.__name__.replace("_", "-")
        CATALOGUE.append(Fault(name, what, done, expected, times, short, trial))
        return trial

    return enter


def expect(condition: object, otherwise: str) -> None:
    """Go on if `condition` is true.

    Raises:
        UnmetError: it is not.
    """
    if not condition:
        raise UnmetError(otherwise)


def names(folder: Path) -> set[str]:
    """Return what is in a folder that may not exist."""
    return {path.name for path in folder.iterdir()} if folder.exists() else set()
