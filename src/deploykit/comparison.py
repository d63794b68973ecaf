"""Contestants' times as a record: rounds taken in turns, and the ratio that they support, with its interval."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .measurement import Measurement
from .significance import decimals_allowed, trimmed_mean_interval

if TYPE_CHECKING:
    import pandas as pd


class Ratio(NamedTuple):
    """How many times faster, with its 95 % interval: 2 is half the time, below 1 is slower."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        # The last digit is worth a fifth of the interval's width at most: fewer could round an end onto the value.
        decimals = decimals_allowed(self.value, (self.high - self.low) / 5)
        return f"{self.value:.{decimals}f}x ({self.low:.{decimals}f} to {self.high:.{decimals}f})"


@dataclass(frozen=True, repr=False)
class Comparison:
    """Contestants timed in turns on the same images.

    Attributes:
        measurements: by name, with all timed calls of all rounds.
        rounds_ms: by name, the median of the timed calls of each round; entry i of all names is the same round.
        baseline: the name that :meth:`ratio` and :meth:`table` compare with.
        seed: of the bootstrap.
    """

    measurements: Mapping[str, Measurement]
    rounds_ms: Mapping[str, tuple[float, ...]]
    baseline: str
    seed: int = 0

    def ratio(self, name: str, over: str | None = None) -> Ratio:
        """Return how many times faster ``name`` is than ``over`` (the baseline): time of ``over`` / time of ``name``.

        Each round gives one ratio of neighbours in time, so what slows the whole machine cancels. Their logarithms are
        averaged without the highest and lowest fifth (a hiccup hits one contestant of one round), and the interval is
        a bootstrap of that trimmed mean over rounds (see :func:`trimmed_mean_interval`).

        Raises:
            ValueError: a name that is not among the contestants.
        """
        over = self.baseline if over is None else over
        for given in (name, over):
            check_known(given, self.measurements)
        logs = np.log(self.rounds_ms[over]) - np.log(self.rounds_ms[name])
        return Ratio(*(math.exp(value) for value in trimmed_mean_interval(logs, seed=self.seed)))

    def winner(self) -> str | None:
        """Return the contestant that is faster than each other one with an interval above 1, or None."""
        fastest = min(self.measurements, key=lambda name: self.measurements[name].median_ms)
        others = [name for name in self.measurements if name != fastest]
        return fastest if all(self.ratio(fastest, over=other).low > 1 for other in others) else None

    def table(self) -> pd.DataFrame:
        """Return one row per contestant: times in ms, images per second, speed-up over the baseline with interval."""
        import pandas as pd

        rows = []
        for name, taken in self.measurements.items():
            speedup = self.ratio(name)
            rows.append(
                {
                    "contestant": name,
                    "median_ms": taken.median_ms,
                    "iqr_ms": taken.iqr_ms,
                    "p90_ms": taken.p90_ms,
                    "p99_ms": taken.p99_ms,
                    "images_per_s": taken.throughput_per_s,
                    f"speedup_over_{self.baseline}": speedup.value,
                    "speedup_low": speedup.low,
                    "speedup_high": speedup.high,
                    "timed_calls": len(taken.samples_ms),
                }
            )
        return pd.DataFrame(rows)

    def __str__(self) -> str:
        lines = [str(taken) for taken in self.measurements.values()]
        lines += [
            f"{name} is {self.ratio(name)} as fast as {self.baseline}"
            for name in self.measurements
            if name != self.baseline
        ]
        winner = self.winner()
        lines.append(f"fastest: {winner}" if winner else "no winner: an interval includes 1")
        return "\n".join(lines)

    __repr__ = __str__


def check_known(name: str, names: Mapping[str, Any]) -> None:
    """Raise ValueError for a name that is not among the contestants; the message has the nearest ones."""
    if name not in names:
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
        raise ValueError(f"there is no contestant {name!r}; {hint}there are: {', '.join(names)}")
