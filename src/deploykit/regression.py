"""A gate against slower releases: it closes when the slow-down is certain, and stays open when it is only noise.

What can be timed in turns with its predecessor is (:func:`check_regression`): what slows the whole machine cancels.
What cannot, a service under load for instance, is held against stored figures of several runs
(:func:`check_against`), on the same machine only.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deploykit.ledger import package_versions
from deploykit.machine import machine
from deploykit.measure import Comparison, Predictor, compare
from deploykit.places import atomic_write

SLOWER, NOT_SLOWER, UNDECIDED = "slower", "not slower", "undecided"
IN_TURNS, FROM_STORE = 0.02, 0.10  # slow-down allowed unless told otherwise; a stored figure holds the day's mood too
SAME = ("cpu", "cores", "threads", "memory_gib", "gpu")  # a figure from a machine that differs in these is another's
LEAST_RUNS = 3


@dataclass(frozen=True)
class Regression:
    """What the gate found.

    Attributes:
        slowdown: time of the candidate over that of the baseline, minus 1: 0.05 is five percent more time.
        low: lower end of its 95 % interval.
        high: upper end.
        allowed: the slow-down that is let through.
    """

    slowdown: float
    low: float
    high: float
    allowed: float

    @property
    def outcome(self) -> str:
        """``slower`` where the whole interval lies above what is allowed, ``not slower`` where all lies below it."""
        if self.low > self.allowed:
            return SLOWER
        return NOT_SLOWER if self.high <= self.allowed else UNDECIDED

    @property
    def failed(self) -> bool:
        """Whether the gate is closed: only where the slow-down is certain."""
        return self.outcome == SLOWER

    def __str__(self) -> str:
        return (
            f"{self.outcome}: {self.slowdown:+.1%} time ({self.low:+.1%} to {self.high:+.1%}), "
            f"allowed {self.allowed:+.1%}"
        )


def check_regression(
    baseline: Predictor,
    candidate: Predictor,
    images: Tensor,
    *,
    allowed_slowdown: float = IN_TURNS,
    threads: int | None = None,
    device: str | torch.device | None = None,
    budget_s: float = 10.0,
    seed: int = 0,
) -> Regression:
    """Time a release and its predecessor in turns; the gate closes where the slow-down is certain.

    Args:
        baseline: the predictor that is in use.
        candidate: the one that is to replace it.
        images: float32 [N, 3, H, W], normalised; every call takes them all.
        allowed_slowdown: 0.02 lets through two percent more time. It should be more than two copies of the same file
            differ by for reasons of their place in memory, and it is what the budget has to resolve.
        threads: as for ``compare``.
        device: as for ``compare``.
        budget_s: seconds; where the outcome is "undecided", more would decide.
        seed: of the order of turns.

    Raises:
        ValueError: a negative slow-down, or what ``compare`` refuses.
    """
    _check_allowed(allowed_slowdown)
    contestants = {"baseline": baseline, "candidate": candidate}
    trial = compare(contestants, images, threads=threads, device=device, budget_s=budget_s, seed=seed)
    return regression_of(trial, "candidate", allowed_slowdown=allowed_slowdown)


def regression_of(trial: Comparison, candidate: str, *, allowed_slowdown: float = IN_TURNS) -> Regression:
    """Read a comparison as a gate: the candidate against the comparison's baseline.

    Raises:
        ValueError: a negative slow-down, or a candidate that did not take part.
    """
    _check_allowed(allowed_slowdown)
    faster = trial.ratio(candidate)
    return Regression(1 / faster.value - 1, 1 / faster.high - 1, 1 / faster.low - 1, allowed_slowdown)


@dataclass(frozen=True)
class Baseline:
    """Figures to be held against later ones, and what they belong to.

    Attributes:
        figures: name, with its unit, to one figure for each run; less is better. The runs are whole ones (the service
            started anew), so that their scatter is that of the next run too.
        sha256: of the artifact.
        machine: see :func:`deploykit.machine.machine`.
        versions: of the packages.
        date: UTC, ISO 8601.
    """

    figures: Mapping[str, Sequence[float]]
    sha256: str
    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    date: str

    @classmethod
    def here(cls, figures: Mapping[str, Sequence[float]], artifact: Path) -> Baseline:
        """Return figures taken now, on this machine, of this artifact.

        Args:
            figures: name to one positive figure for each run, three runs at least.
            artifact: the file that was measured.

        Raises:
            ValueError: no figures, too few runs, or a figure that is not positive and finite.
        """
        if not figures:
            raise ValueError("no figures to keep; give at least one, {'p50_ms': [2.1, 2.0, 2.2]}")
        for name, runs in figures.items():
            if len(runs) < LEAST_RUNS or not all(math.isfinite(run) and run > 0 for run in runs):
                raise ValueError(
                    f"{name} is {list(runs)}; give a positive figure for each of {LEAST_RUNS} runs or more: "
                    "the scatter of one run is unknown"
                )
        kept = {name: tuple(map(float, runs)) for name, runs in figures.items()}
        sha256 = hashlib.sha256(artifact.read_bytes()).hexdigest()
        return cls(kept, sha256, machine(), package_versions(), datetime.now(UTC).isoformat(timespec="seconds"))

    def save(self, path: Path) -> None:
        """Write it as JSON; the file is complete or absent."""
        text = json.dumps(asdict(self), indent=1, allow_nan=False)
        with atomic_write(path) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Baseline:
        """Read what :meth:`save` wrote.

        Raises:
            FileNotFoundError: no such file.
            ValueError: it is no baseline.
        """
        try:
            entry = json.loads(path.read_text(encoding="utf-8"))
            figures = {name: tuple(map(float, runs)) for name, runs in entry["figures"].items()}
            return cls(**{**entry, "figures": figures})
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{path.name} is no baseline ({error}); take one with Baseline.here(...).save") from error


@dataclass(frozen=True)
class Check:
    """Today's figures against stored ones.

    Attributes:
        found: name of a figure to what the gate found; empty where nothing can be compared.
        not_comparable: why nothing can be compared, or None.
        changed: what else differs: the artifact, versions. That is what a slow-down may come from.
    """

    found: Mapping[str, Regression]
    not_comparable: str | None
    changed: tuple[str, ...]

    @property
    def failed(self) -> bool:
        """Whether a figure is certainly slower; never where nothing can be compared."""
        return any(found.failed for found in self.found.values())

    def __str__(self) -> str:
        if self.not_comparable:
            return f"not comparable: {self.not_comparable}"
        lines = [f"{name}: {found}" for name, found in self.found.items()]
        return "\n".join([*lines, *(f"changed since: {what}" for what in self.changed)])

    __repr__ = __str__


def check_against(stored: Baseline, today: Baseline, *, allowed_slowdown: float = FROM_STORE) -> Check:
    """Hold today's runs against stored ones, figure by figure, where they come from the same machine.

    The interval is Welch's for the difference of two means, of the figures' logarithms. It knows the scatter from run
    to run, not that from day to day: therefore more slow-down is allowed than in turns.

    Args:
        stored: kept from an earlier release.
        today: of this one, with the same names.
        allowed_slowdown: 0.10 lets through ten percent more.

    Raises:
        ValueError: a negative slow-down, or figures that only one of the two has.
    """
    _check_allowed(allowed_slowdown)
    if odd := sorted(stored.figures.keys() ^ today.figures.keys()):
        raise ValueError(f"only one of the two has {', '.join(odd)}; measure the same figures")
    differs = [f"{name} {stored.machine.get(name)}, here {today.machine.get(name)}" for name in SAME
               if stored.machine.get(name) != today.machine.get(name)]  # fmt: skip
    if differs:
        return Check({}, f"the stored figures are another machine's ({'; '.join(differs)})", ())
    changed = ["the artifact"] if stored.sha256 != today.sha256 else []
    changed += [
        f"{package} {stored.versions.get(package, 'absent')} to {today.versions.get(package, 'absent')}"
        for package in sorted(stored.versions.keys() | today.versions.keys())
        if stored.versions.get(package) != today.versions.get(package)
    ]
    found = {name: _welch(stored.figures[name], today.figures[name], allowed_slowdown) for name in stored.figures}
    return Check(found, None, tuple(changed))


def _welch(before: Sequence[float], now: Sequence[float], allowed: float) -> Regression:
    from scipy.stats import ttest_ind

    logs_before, logs_now = np.log(before), np.log(now)
    value = float(logs_now.mean() - logs_before.mean())
    low = high = value
    if np.ptp(logs_before) or np.ptp(logs_now):
        low, high = ttest_ind(logs_now, logs_before, equal_var=False).confidence_interval()
    return Regression(math.expm1(value), math.expm1(low), math.expm1(high), allowed)


def _check_allowed(slowdown: float) -> None:
    if not 0 <= slowdown < math.inf:
        raise ValueError(f"allowed_slowdown is {slowdown}; give 0 or more, 0.02 for two percent")
