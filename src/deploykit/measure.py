"""Measure how long predictors take, with the doubt that each number carries.

:func:`measure` times one predictor, :func:`compare` several; a comparison is a *ratio* with an interval. What else is
measured stands in modules that work alone, and can be imported from here:

- ``significance``: :func:`wilson_interval` for one accuracy, :func:`paired_difference` for two on the same images.
- ``cost``: :func:`macs`, :func:`parameters`, :func:`tensor_size_mib`, :func:`size_mib`, :func:`peak_memory_mib`.
- ``machine``: :func:`machine` says where the numbers come from.
- ``timing``: one call, timed fairly.

These five files need nothing else of deploykit: copy them into a package of your own and they work.

A *predictor* is any callable from images, float32 [N, 3, H, W], to logits, float [N, classes]: a module, a compiled
module, or a wrapped session of another runtime.
"""

from __future__ import annotations

import difflib
import importlib.metadata
import math
import random
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

# Relative, so that the five files can be copied into any package.
from .cost import PeakMemory, macs, parameters, peak_memory_mib, size_mib, tensor_size_mib
from .machine import machine
from .significance import (
    PairedDifference,
    decimals_allowed,
    paired_difference,
    trimmed_mean_interval,
    wilson_interval,
)
from .timing import (
    SETTLE_CALLS,
    SETTLE_S,
    WARMUP_WINDOW,
    Clock,
    Predictor,
    Timer,
    check_positive,
    checked_images,
    fixed_conditions,
)

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "Comparison",
    "Conditions",
    "Measurement",
    "PairedDifference",
    "PeakMemory",
    "Predictor",
    "Ratio",
    "compare",
    "decimals_allowed",
    "machine",
    "macs",
    "measure",
    "paired_difference",
    "parameters",
    "peak_memory_mib",
    "size_mib",
    "tensor_size_mib",
    "trimmed_mean_interval",
    "wilson_interval",
]

# Spread (IQR over median) from which a measurement calls itself unstable; torch.utils.benchmark has the same two.
UNSTABLE_SPREAD, VERY_UNSTABLE_SPREAD = 0.10, 0.25

# Samples that a percentile needs. MLPerf Inference lets a run stop early when, with 99 % confidence, the percentile is
# met in spite of one slower query (inference_rules.adoc, "Early Stopping"): the smallest n for which
# P[Binomial(n, 1 - p) <= 1] <= 0.01. That is 64 for p90 and 662 for p99, as the rules say, and 130 for p95.
SAMPLES_FOR_PERCENTILE = {90: 64, 95: 130, 99: 662}

OVERRUN = 4  # a busy machine may take up to so many budgets to reach the fewest calls or rounds
WARMUP_SHARE = 0.25  # of the budget, at most, goes into warm-up
BLOCK_CALLS, BLOCK_S = 10, 0.005  # what a block of timed calls should have at least, if the budget allows
ROUNDS, LEAST_ROUNDS = 40, 10  # aimed at, and refused below


@dataclass(frozen=True)
class Conditions:
    """Under what a measurement was taken.

    Attributes:
        batch: images per call.
        threads: what torch and the OpenMP and BLAS pools were limited to. Runtimes with pools of their own (ONNX
            Runtime, OpenVINO) take their number when the session is made; give them the same.
        device: "cpu", "cuda:0", …
        warmup_calls: untimed calls before the first timed one.
        machine: see :func:`machine`.
        versions: of the inference libraries loaded in this process.
        date: UTC, ISO 8601.
    """

    batch: int
    threads: int
    device: str
    warmup_calls: int
    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    date: str


@dataclass(frozen=True, repr=False)
class Measurement:
    """The times of one predictor: raw samples (ms per call, in the order taken), and what they are worth."""

    label: str
    samples_ms: tuple[float, ...]
    conditions: Conditions

    @property
    def median_ms(self) -> float:
        """The middle of the samples; half of the calls took longer."""
        return statistics.median(self.samples_ms)

    @property
    def iqr_ms(self) -> float:
        """The width of the middle half of the samples."""
        low, high = np.percentile(self.samples_ms, [25, 75])
        return float(high - low)

    @property
    def p90_ms(self) -> float | None:
        """What 90 % of the calls stay below; None with fewer than 64 samples."""
        return self._percentile(90)

    @property
    def p95_ms(self) -> float | None:
        """What 95 % of the calls stay below; None with fewer than 130 samples."""
        return self._percentile(95)

    @property
    def p99_ms(self) -> float | None:
        """What 99 % of the calls stay below; None with fewer than 662 samples."""
        return self._percentile(99)

    def _percentile(self, percent: int) -> float | None:
        if len(self.samples_ms) < SAMPLES_FOR_PERCENTILE[percent]:
            return None
        return float(np.percentile(self.samples_ms, percent))

    @property
    def throughput_per_s(self) -> float:
        """Images per second: batch size over median time."""
        return 1000 * self.conditions.batch / self.median_ms

    @property
    def unstable(self) -> str | None:
        """Why these numbers should not be quoted, and what to do; None when the spread is below 10 % of the median."""
        spread = self.iqr_ms / self.median_ms
        if spread > VERY_UNSTABLE_SPREAD:
            return (
                f"very unstable: the middle half of the samples spreads over {spread:.0%} of the median. Do not quote "
                "this number: stop other programs, check that no more threads than cores are used, and measure again"
            )
        if spread > UNSTABLE_SPREAD:
            return (
                f"unstable: the middle half of the samples spreads over {spread:.0%} of the median. Stop other "
                "programs or raise budget_s; for a difference between two models use compare(), which cancels drift"
            )
        return None

    def __str__(self) -> str:
        return "\n".join(filter(None, (self._line(), self.unstable and f"  {self.unstable}")))

    __repr__ = __str__  # thousands of samples are no reading matter

    def _line(self) -> str:
        decimals = decimals_allowed(self.median_ms, self.iqr_ms)
        name = f"{self.label}: " if self.label else ""
        per_s = round(self.throughput_per_s, _figures(self.throughput_per_s, self.median_ms, decimals))
        return (
            f"{name}{self.median_ms:.{decimals}f} ms (IQR {self.iqr_ms:.{max(decimals, 0)}f} ms, "
            f"{len(self.samples_ms)} calls), {per_s:,.0f} images/s at batch {self.conditions.batch}, "
            f"{self.conditions.threads} threads, {self.conditions.device}"
        )


def _figures(value: float, source: float, decimals: int) -> int:
    """Return the argument for round() that leaves ``value`` as many significant figures as ``source`` shows."""
    shown = max(1, math.floor(math.log10(source)) + 1 + decimals)
    return shown - 1 - math.floor(math.log10(value))


def measure(
    predictor: Predictor,
    images: Tensor,
    *,
    label: str = "",
    threads: int | None = None,
    device: str | torch.device | None = None,
    budget_s: float = 3.0,
    min_samples: int = 10,
    clock: Clock = time.perf_counter,
) -> Measurement:
    """Time ``predictor(images)``, call by call, after it has warmed up.

    The first call compiles, allocates and has its output checked; it counts for nothing. Then calls are made in windows
    of 5 until the median of a window is no longer more than 2 % below that of the window before it (at least 10 calls,
    at most a quarter of the budget). Then every call is timed until the budget is used. Gradients and the garbage
    collector are off meanwhile, the number of threads is fixed, and both are put back afterwards.

    Args:
        predictor: maps the images to logits, float [N, classes].
        images: float32 [N, 3, H, W]; one call takes them all, so N is the batch size.
        label: names the predictor in what is printed.
        threads: None keeps torch's number, but no more than affinity and container quota allow.
        device: where the work is done, so that CUDA is waited for; None means where ``images`` are.
        budget_s: seconds for warm-up and timed calls, the first call not counted; up to four times as many on a
            machine too busy for ``min_samples`` calls in them.
        min_samples: fewer timed calls than this are an error.
        clock: returns seconds; tests pass a fake one.

    Raises:
        ValueError: images that are not a float32 batch, output that is not finite logits [N, classes], or a budget
            that ends, overrun and all, before ``min_samples`` calls.
    """
    images = checked_images(images)
    check_positive(budget_s=budget_s, min_samples=min_samples)
    with fixed_conditions(threads) as used_threads:
        timer = Timer(predictor, images, label or "the predictor", device, clock)
        started = clock()
        warmup_calls, _ = timer.warm_up(budget_s * WARMUP_SHARE)
        samples = [timer.call()]
        while (spent_s := clock() - started) < budget_s or (
            len(samples) < min_samples and spent_s < OVERRUN * budget_s
        ):
            samples.append(timer.call())
    if len(samples) < min_samples:
        needed = (min_samples + 2 * WARMUP_WINDOW) * statistics.median(samples)
        raise ValueError(
            f"{OVERRUN} times the budget of {budget_s:g} s was enough for {len(samples)} timed calls of about "
            f"{statistics.median(samples):.2g} s, and min_samples is {min_samples}: "
            f"give budget_s={math.ceil(needed)} or more, or a smaller batch"
        )
    return Measurement(label, _milliseconds(samples), _conditions(images, used_threads, timer.device, warmup_calls))


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
            _check_known(given, self.measurements)
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


def compare(
    contestants: Mapping[str, Predictor],
    images: Tensor,
    *,
    baseline: str | None = None,
    threads: int | None = None,
    device: str | torch.device | None = None,
    budget_s: float = 10.0,
    seed: int = 0,
    clock: Clock = time.perf_counter,
) -> Comparison:
    """Time several predictors in turns, so that a drifting machine hits all of them alike.

    Each is checked and warmed up as in :func:`measure`. Then come rounds. In a round each contestant, in random order,
    makes a few untimed calls (at least 3 and 5 ms, so that caches and clock rate settle), then timed ones: at least 10
    and 5 ms, fewer when the calls are so long that 40 rounds would not fit in the budget.

    Threads that spin: the workers of ONNX Runtime and of OpenMP stay busy for a while after a call and rob the next
    contestant. So before each turn the comparison waits (on Linux) until no other thread of the process is running, at
    most 0.1 s. That takes time from the rounds, and elsewhere spinning still distorts: make ONNX Runtime's sessions
    with ``session.intra_op.allow_spinning`` set to ``"0"`` when they are to be compared.

    Args:
        contestants: name to predictor, at least two.
        images: float32 [N, 3, H, W]; every call takes them all.
        baseline: the name to compare with; None means the first.
        threads: as in :func:`measure`.
        device: as in :func:`measure`, for all contestants.
        budget_s: seconds for warm-up and rounds together, the first call of each not counted; up to four times as
            many on a machine too busy for 10 rounds in them.
        seed: of the order in the rounds and of the bootstrap.
        clock: returns seconds; tests pass a fake one.

    Raises:
        ValueError: fewer than two contestants, an unknown baseline, bad images or output (see :func:`measure`), or a
            budget that ends before 10 rounds.
    """
    if len(contestants) < 2:  # noqa: PLR2004 - a pair
        raise ValueError(
            f"{len(contestants)} contestant given ({', '.join(contestants) or 'none'}) and a comparison needs at least "
            "two; to time one predictor alone use measure()"
        )
    baseline = next(iter(contestants)) if baseline is None else baseline
    _check_known(baseline, contestants)
    images = checked_images(images)
    check_positive(budget_s=budget_s)
    names, order = list(contestants), random.Random(seed)  # noqa: S311 - an order of turns, not a secret
    samples: dict[str, list[float]] = {name: [] for name in names}
    rounds: dict[str, list[float]] = {name: [] for name in names}
    with fixed_conditions(threads) as used_threads:
        timers = {name: Timer(contestants[name], images, name, device, clock) for name in names}
        started = clock()
        warm = {name: timers[name].warm_up(budget_s * WARMUP_SHARE / len(names)) for name in names}
        block_s = (budget_s - (clock() - started)) / ROUNDS / len(names)
        timed_calls = {name: _timed_calls(call_s, block_s) for name, (_, call_s) in warm.items()}
        round_s = 0.0
        while (after_s := (begun := clock()) - started + round_s) <= budget_s or (
            len(rounds[baseline]) < LEAST_ROUNDS and after_s <= OVERRUN * budget_s
        ):
            for name in order.sample(names, len(names)):
                timers[name].settle()
                block = [timers[name].call() for _ in range(timed_calls[name])]
                samples[name] += block
                rounds[name].append(statistics.median(block))
            round_s = clock() - begun
    done = len(rounds[baseline])
    if done < LEAST_ROUNDS:
        needed = (LEAST_ROUNDS + 1) * round_s / (1 - WARMUP_SHARE)
        raise ValueError(
            f"{OVERRUN} times the budget of {budget_s:g} s was enough for {done} rounds of {len(names)} contestants, "
            f"and an interval needs at least {LEAST_ROUNDS}: give budget_s={math.ceil(needed)} or more, a smaller "
            "batch, or fewer contestants"
        )
    measurements = {
        name: Measurement(
            name,
            _milliseconds(samples[name]),
            _conditions(images, used_threads, timers[name].device, warm[name][0]),
        )
        for name in names
    }
    return Comparison(measurements, {name: _milliseconds(rounds[name]) for name in names}, baseline, seed)


def _timed_calls(call_s: float, block_s: float) -> int:
    """Return how many timed calls a block has: enough to mean something, few enough for a good number of rounds."""
    wanted = max(BLOCK_CALLS, math.ceil(BLOCK_S / call_s)) if call_s > 0 else BLOCK_CALLS
    settling_s = max(SETTLE_S, SETTLE_CALLS * call_s)
    affordable = int((block_s - settling_s) / call_s) if call_s > 0 else wanted
    return max(1, min(wanted, affordable))


def _conditions(images: Tensor, threads: int, device: torch.device, warmup_calls: int) -> Conditions:
    libraries = ("torch", "torchao", "onnxruntime", "openvino", "tensorrt")
    return Conditions(
        batch=len(images),
        threads=threads,
        device=str(device),
        warmup_calls=warmup_calls,
        machine=machine(),
        versions={name: importlib.metadata.version(name) for name in libraries if sys.modules.get(name)},
        date=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _milliseconds(seconds: Sequence[float]) -> tuple[float, ...]:
    return tuple(1000 * value for value in seconds)


def _check_known(name: str, names: Mapping[str, Any]) -> None:
    if name not in names:
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
        raise ValueError(f"there is no contestant {name!r}; {hint}there are: {', '.join(names)}")
