"""Measure latency, throughput, memory, size and accuracy, with the doubt that each number carries.

This file needs nothing else of deploykit: copy it into a project and it works. Parts:

- time: :func:`measure` one predictor, :func:`compare` several; a comparison is a *ratio* with an interval.
- accuracy: :func:`wilson_interval` for one model, :func:`paired_difference` for two on the same images.
- cost: :func:`macs`, :func:`parameters`, :func:`tensor_size_mib`, :func:`size_mib`, :func:`peak_memory_mib`.
- :func:`machine` says where the numbers come from.

A *predictor* is any callable from images, float32 [N, 3, H, W], to logits, float [N, classes]: a module, a compiled
module, or a wrapped session of another runtime.
"""

from __future__ import annotations

import contextlib
import ctypes
import difflib
import gc
import importlib.metadata
import math
import platform
import random
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    import pandas as pd

Predictor = Callable[[Tensor], Any]
Clock = Callable[[], float]

MIB = 2**20

# Spread (IQR over median) from which a measurement calls itself unstable; torch.utils.benchmark has the same two.
UNSTABLE_SPREAD, VERY_UNSTABLE_SPREAD = 0.10, 0.25

# Samples that a percentile needs. MLPerf Inference lets a run stop early when, with 99 % confidence, the percentile is
# met in spite of one slower query (inference_rules.adoc, "Early Stopping"): the smallest n for which
# P[Binomial(n, 1 - p) <= 1] <= 0.01. That is 64 for p90 and 662 for p99, as the rules say, and 130 for p95.
SAMPLES_FOR_PERCENTILE = {90: 64, 95: 130, 99: 662}

# Warm-up ends when the median of a window of calls is no longer this much below that of the window before it.
WARMUP_WINDOW, WARMUP_FALL = 5, 0.02
WARMUP_SHARE = 0.25  # of the budget, at most

# After a switch of contestants: so many calls, and so much time, pass untimed.
SETTLE_CALLS, SETTLE_S = 3, 0.005
SPIN_WAIT_S, SPIN_LOOK_S = 0.1, 0.001  # wait at most; look every
BLOCK_CALLS, BLOCK_S = 10, 0.005  # what a block of timed calls should have at least, if the budget allows
ROUNDS, LEAST_ROUNDS = 40, 10  # aimed at, and refused below
RESAMPLES, TRIM = 2000, 0.2


# ---------------------------------------------------------------------------------------------------------------------
# Time
# ---------------------------------------------------------------------------------------------------------------------


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


def decimals_allowed(value: float, spread: float) -> int:
    """Return how many decimals of ``value`` its spread leaves meaningful: up to the spread's first digit.

    3.274 with a spread of 0.41 has one decimal (3.3). Never more than four significant figures, never less than 0.
    """
    most = 3 - math.floor(math.log10(abs(value))) if value else 0
    by_spread = -math.floor(math.log10(spread)) if spread > 0 else most
    return max(0, min(most, by_spread))


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
        budget_s: seconds for warm-up and timed calls, the first call not counted.
        min_samples: fewer timed calls than this are an error.
        clock: returns seconds; tests pass a fake one.

    Raises:
        ValueError: images that are not a float32 batch, output that is not finite logits [N, classes], or a budget
            that ends before ``min_samples`` calls.
    """
    images = _checked_images(images)
    _check_positive(budget_s=budget_s, min_samples=min_samples)
    with _fixed_conditions(threads) as used_threads:
        timer = _Timer(predictor, images, label or "the predictor", device, clock)
        started = clock()
        warmup_calls, _ = timer.warm_up(budget_s * WARMUP_SHARE)
        samples = [timer.call()]
        while clock() - started < budget_s:
            samples.append(timer.call())
    if len(samples) < min_samples:
        needed = (min_samples + 2 * WARMUP_WINDOW) * statistics.median(samples)
        raise ValueError(
            f"the budget of {budget_s:g} s was enough for {len(samples)} timed calls of about "
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
        decimals = decimals_allowed(self.value, self.high - self.low)
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
        budget_s: seconds for warm-up and rounds together; the first call of each is not counted.
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
    images = _checked_images(images)
    _check_positive(budget_s=budget_s)
    names, order = list(contestants), random.Random(seed)  # noqa: S311 - an order of turns, not a secret
    samples: dict[str, list[float]] = {name: [] for name in names}
    rounds: dict[str, list[float]] = {name: [] for name in names}
    with _fixed_conditions(threads) as used_threads:
        timers = {name: _Timer(contestants[name], images, name, device, clock) for name in names}
        started = clock()
        warm = {name: timers[name].warm_up(budget_s * WARMUP_SHARE / len(names)) for name in names}
        block_s = (budget_s - (clock() - started)) / ROUNDS / len(names)
        timed_calls = {name: _timed_calls(call_s, block_s) for name, (_, call_s) in warm.items()}
        round_s = 0.0
        while (begun := clock()) - started + round_s <= budget_s:
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
            f"the budget of {budget_s:g} s was enough for {done} rounds of {len(names)} contestants, and an interval "
            f"needs at least {LEAST_ROUNDS}: give budget_s={math.ceil(needed)} or more, a smaller batch, or fewer "
            "contestants"
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


def trimmed_mean_interval(values: Sequence[float] | np.ndarray, *, seed: int = 0) -> tuple[float, float, float]:
    """Return the 20 % trimmed mean of float [n] values and the ends of its 95 % bootstrap interval.

    The plain percentile interval is too narrow for few values; the expanded one (Hesterberg 2015, "What Teachers Should
    Know About the Bootstrap", The American Statistician 69:371, section 5) takes the percentiles that correspond to
    Student's t and the unbiased variance. In simulations with normal, heavy-tailed and hiccuping rounds, 10 to 40 of
    them, it held the truth in 95 to 97 %, the plain one in 93 to 95 %.
    """
    from scipy.stats import norm, t

    count = len(values)
    tail = float(norm.cdf(-math.sqrt(count / (count - 1)) * t.ppf(0.975, count - 1)))
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    cut = int(TRIM * len(ordered))
    keep = slice(cut, len(ordered) - cut)
    drawn = np.random.default_rng(seed).integers(len(ordered), size=(RESAMPLES, len(ordered)))
    # Sorting the indices into sorted values sorts the values, and small integers sort several times faster.
    drawn = np.sort(drawn.astype(np.uint16 if len(ordered) < 2**16 else np.int64), axis=1)
    means = ordered[drawn[:, keep]].mean(axis=1)
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(ordered[keep].mean()), float(low), float(high)


class _Timer:
    """One predictor on one batch, with the clock and the device it is timed by."""

    def __init__(
        self, predictor: Predictor, images: Tensor, name: str, device: str | torch.device | None, clock: Clock
    ) -> None:
        self.predictor, self.images, self.clock = predictor, images, clock
        self.device = torch.device(device) if device is not None else images.device
        self.on_cuda = self.device.type == "cuda"
        _check_logits(predictor(images), len(images), name)

    def call(self) -> float:
        """Return the seconds that one call takes until its result is there."""
        if self.on_cuda:
            torch.cuda.synchronize(self.device)
        began = self.clock()
        self.predictor(self.images)
        if self.on_cuda:
            torch.cuda.synchronize(self.device)
        return self.clock() - began

    def warm_up(self, limit_s: float) -> tuple[int, float]:
        """Call until stable or ``limit_s`` is over; return the number of calls and the seconds of a warm one."""
        began, taken, before = self.clock(), [self.call()], math.inf
        while self.clock() - began < limit_s:
            taken.append(self.call())
            if len(taken) % WARMUP_WINDOW == 0:
                median = statistics.median(taken[-WARMUP_WINDOW:])
                if median > before * (1 - WARMUP_FALL):
                    break
                before = median
        return len(taken), statistics.median(taken[-WARMUP_WINDOW:])

    def settle(self) -> None:
        """Wait until the threads of the one before sleep, then make the untimed calls that follow a switch."""
        _wait_for_spinning_threads()
        began, calls = self.clock(), 0
        while calls < SETTLE_CALLS or self.clock() - began < SETTLE_S:
            self.call()
            calls += 1


def _wait_for_spinning_threads() -> None:
    """Return when no other thread of this process is running, or after 0.1 s; at once where there is no /proc."""
    began = time.perf_counter()
    while _others_running() and time.perf_counter() - began < SPIN_WAIT_S:
        time.sleep(SPIN_LOOK_S)


def _others_running() -> bool:
    own = threading.get_native_id()
    for task in Path("/proc/self/task").glob("*"):
        with contextlib.suppress(OSError):  # a thread may end meanwhile
            # proc(5): the state follows the name, which is in parentheses and may hold anything.
            state = (task / "stat").read_text(errors="replace").rpartition(")")[2].split()[0]
            if state == "R" and int(task.name) != own:
                return True
    return False


@contextlib.contextmanager
def _fixed_conditions(threads: int | None) -> Iterator[int]:
    """Fix the threads, pause the garbage collector and switch gradients off; yield the number of threads."""
    import joblib
    import threadpoolctl

    before = torch.get_num_threads()
    used = min(before, joblib.cpu_count()) if threads is None else threads
    _check_positive(threads=used)
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        with threadpoolctl.threadpool_limits(limits=used), torch.inference_mode():
            torch.set_num_threads(used)
            yield used
    finally:
        torch.set_num_threads(before)
        if collecting:
            gc.enable()


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


def _checked_images(images: Tensor) -> Tensor:
    given = f"{images.dtype} {list(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
    if not isinstance(images, Tensor) or images.dim() != len("NCHW") or images.dtype != torch.float32:
        raise ValueError(f"images are {given}; a float32 tensor [N, 3, H, W] is needed, normalised as for the model")
    if len(images) == 0:
        raise ValueError(f"images are empty ({given}); at least one is needed")
    return images


def _check_logits(output: Any, batch: int, name: str) -> None:
    try:
        logits = torch.as_tensor(output)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{name} returned {type(output).__name__}; logits, a tensor [N, classes], are needed"
        ) from error
    if logits.dim() != len("NC") or len(logits) != batch:
        raise ValueError(
            f"{name} returned a tensor {list(logits.shape)} for {batch} images; [{batch}, classes] is needed"
        )
    bad = int((~torch.isfinite(logits)).any(dim=1).sum())
    if bad:
        raise ValueError(
            f"{name} returned NaN or infinity for {bad} of {batch} images; a broken model is not worth timing: check "
            "its weights, its precision and the normalisation of the images"
        )


def _check_known(name: str, names: Mapping[str, Any]) -> None:
    if name not in names:
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
        raise ValueError(f"there is no contestant {name!r}; {hint}there are: {', '.join(names)}")


def _check_positive(**numbers: float) -> None:
    for name, number in numbers.items():
        if not number > 0:
            raise ValueError(f"{name} is {number}; it must be above 0")


# ---------------------------------------------------------------------------------------------------------------------
# Accuracy
# ---------------------------------------------------------------------------------------------------------------------


def _normal_quantile(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; it must lie between 0 and 1, for example 0.95")
    return statistics.NormalDist().inv_cdf((1 + confidence) / 2)


def wilson_interval(correct: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the interval for an accuracy, ``correct`` of ``total`` images (Wilson 1927, J. Am. Stat. Assoc. 22:209).

    It stays within 0 and 1 and is right for accuracies near 100 %, where the usual ± does neither.

    Raises:
        ValueError: no images, a count outside 0 to ``total``, or a confidence outside 0 to 1.
    """
    if total <= 0 or not 0 <= correct <= total:
        raise ValueError(f"{correct} correct of {total} images: total must be at least 1, and correct between 0 and it")
    z, p = _normal_quantile(confidence), correct / total
    scale = 1 / (1 + z**2 / total)
    centre = (p + z**2 / (2 * total)) * scale
    half = z * math.sqrt(p * (1 - p) / total + z**2 / (4 * total**2)) * scale
    # Rounding must not push the interval past its own estimate at 0 and at 1.
    return min(max(0.0, centre - half), p), max(min(1.0, centre + half), p)


@dataclass(frozen=True)
class PairedDifference:
    """The accuracy of model b minus that of model a, on the same images.

    Attributes:
        difference: between -1 and 1; 0.01 is one percentage point in favour of b.
        interval: of the difference.
        discordant_a: images that only a classified correctly.
        discordant_b: images that only b classified correctly.
        p_value: exact McNemar: how often models of equal accuracy would differ at least this much.
        images: how many both saw.
    """

    difference: float
    interval: tuple[float, float]
    discordant_a: int
    discordant_b: int
    p_value: float
    images: int

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"{100 * self.difference:+.2f} points ({100 * low:+.2f} to {100 * high:+.2f}), "
            f"{self.discordant_b} images won and {self.discordant_a} lost of {self.images}, p = {self.p_value:.2g}"
        )


def paired_difference(
    correct_a: Tensor | np.ndarray, correct_b: Tensor | np.ndarray, confidence: float = 0.95
) -> PairedDifference:
    """Compare two models on the same images: only those on which they disagree carry information.

    The interval is the adjusted Wald interval for paired proportions (Agresti and Min 2005, Statistics in Medicine
    24:729, section 3): half an observation is added to each of the four cells. The p-value is McNemar's, from the
    binomial distribution and not its approximation, so it holds for few disagreements too.

    Args:
        correct_a: bool [N], whether model a was right about image i.
        correct_b: bool [N], the same for model b, in the same order.
        confidence: of the interval.

    Raises:
        ValueError: different lengths, no images, or values that are not booleans.
    """
    from scipy.stats import binomtest

    a, b = (np.asarray(correct) for correct in (correct_a, correct_b))
    if a.shape != b.shape or a.ndim != 1 or a.size == 0:
        raise ValueError(
            f"correct_a is {list(a.shape)} and correct_b {list(b.shape)}; both must be [N] over the same images, N >= 1"
        )
    if a.dtype != bool or b.dtype != bool:
        raise ValueError(f"correct_a is {a.dtype} and correct_b {b.dtype}; both must be bool: predictions == labels")
    only_a, only_b, total = int((a & ~b).sum()), int((b & ~a).sum()), a.size
    adjusted = (only_b - only_a) / (total + 2)
    half = _normal_quantile(confidence) * math.sqrt(only_a + only_b + 1 - (total + 2) * adjusted**2) / (total + 2)
    p_value = binomtest(only_b, only_a + only_b).pvalue if only_a + only_b else 1.0
    return PairedDifference(
        difference=(only_b - only_a) / total,
        interval=(max(-1.0, adjusted - half), min(1.0, adjusted + half)),
        discordant_a=only_a,
        discordant_b=only_b,
        p_value=float(p_value),
        images=total,
    )


# ---------------------------------------------------------------------------------------------------------------------
# Cost
# ---------------------------------------------------------------------------------------------------------------------


def macs(model: nn.Module, example: Tensor) -> int:
    """Return the multiply-accumulates of one image: half of what ``torch.utils.flop_counter`` counts.

    That counts convolutions and matrix products (no batch norm, pooling or activation), as papers do.

    Args:
        model: is run once in evaluation mode and left as it was.
        example: float [N, 3, H, W], N >= 1; only the first image is used.

    Raises:
        ValueError: nothing was counted, for example because the model's operations are those of another runtime.
    """
    from torch.utils.flop_counter import FlopCounterMode

    training = {module: module.training for module in model.modules()}
    counter = FlopCounterMode(display=False)
    try:
        for module in training:
            module.training = False
        with torch.no_grad(), counter:
            model(example[:1])
    finally:
        for module, was in training.items():
            module.training = was
    if not counter.get_total_flops():
        raise ValueError(
            f"no operation of {type(model).__name__} is one that torch.utils.flop_counter knows (quantized and "
            "compiled models hide theirs); count the model that it was made from"
        )
    return counter.get_total_flops() // 2


def parameters(model: nn.Module) -> int:
    """Return the number of parameters, shared ones once; zeros count like any other number."""
    return sum(parameter.numel() for parameter in model.parameters())


def tensor_size_mib(model: nn.Module) -> float:
    """Return the MiB of the model's parameters and buffers in memory, shared storage once."""
    stored = {
        (tensor.device, tensor.untyped_storage().data_ptr()): tensor.untyped_storage().nbytes()
        for tensor in (*model.parameters(), *model.buffers())
    }
    return sum(stored.values()) / MIB


def size_mib(path: Path | str) -> float:
    """Return the MiB of a file on disk, or of all files in a folder.

    An ONNX model whose weights lie in a second file beside it is a folder: give that.

    Raises:
        FileNotFoundError: there is nothing at ``path``.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; give the file or folder that is deployed")
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files) / MIB


class PeakMemory(NamedTuple):
    """Peak memory during a call, MiB.

    Attributes:
        process: resident memory of the whole process (Python, libraries, weights, everything loaded before).
        growth: how far that rose above its level before the call. What earlier calls left in allocators is reused
            unseen, so this is a lower bound; for models to be compared, measure each in a process of its own.
        device: what torch's CUDA allocator had handed out at most; None on a CPU.
    """

    process: float
    growth: float
    device: float | None


def peak_memory_mib(call: Callable[[], Any], *, device: str | torch.device = "cpu") -> PeakMemory:
    """Run ``call`` once and return the peak memory meanwhile.

    On Linux the kernel's own high-water mark is reset and read, so no peak is missed. Elsewhere resident memory is
    sampled every millisecond, and a shorter peak can be. On CUDA the allocator's peak is added: it leaves out the
    context (hundreds of MiB) and what other runtimes allocate.
    """
    import psutil

    device = torch.device(device)
    process = psutil.Process()
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # glibc keeps freed memory, which would hide growth
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    before = process.memory_info().rss
    with _PeakOfProcess(process) as resident:
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    on_device = torch.cuda.max_memory_allocated(device) / MIB if device.type == "cuda" else None
    peak = max(resident.peak, before)
    return PeakMemory(peak / MIB, (peak - before) / MIB, on_device)


class _PeakOfProcess:
    """The highest resident memory of this process, bytes, within a ``with`` block."""

    def __init__(self, process: Any) -> None:
        self.process, self.peak = process, 0
        self.over = threading.Event()
        self.sampler: threading.Thread | None = None

    def __enter__(self) -> Self:
        try:
            Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets VmHWM
        except OSError:
            self.sampler = threading.Thread(target=self._sample, daemon=True)
            self.sampler.start()
        return self

    def _sample(self) -> None:
        while not self.over.wait(0.001):
            self.peak = max(self.peak, self.process.memory_info().rss)

    def __exit__(self, *_: object) -> None:
        if self.sampler is None:
            status = Path("/proc/self/status").read_text()
            self.peak = int(status.split("VmHWM:")[1].split()[0]) * 1024
        else:
            self.over.set()
            self.sampler.join()


# ---------------------------------------------------------------------------------------------------------------------
# Where
# ---------------------------------------------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """Describe this machine for banners and records; nothing in it names a user, a host or a path.

    Returns:
        ``cpu`` (model name), ``cores`` (physical) and ``threads`` (logical), both within affinity and quota;
        ``features`` (instruction sets that decide about low precision), ``memory_gib``, ``gpu`` (name or None),
        ``os``, ``python``, ``torch``.
    """
    import joblib
    import psutil

    name, flags = _cpu()
    wanted = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimddp", "bf16")
    return {
        "cpu": name,
        "cores": joblib.cpu_count(only_physical_cores=True),
        "threads": joblib.cpu_count(),
        "features": [feature for feature in wanted if feature in flags],
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "os": _system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _cpu() -> tuple[str, set[str]]:
    """Return the CPU's model name and its feature flags (Linux; elsewhere the one level that torch detects)."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine(), {torch.backends.cpu.get_cpu_capability().lower()}
    info = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return info.get("model name", platform.machine()), set(info.get("flags", info.get("Features", "")).split())


def _system() -> str:
    with contextlib.suppress(OSError):
        return f"{platform.freedesktop_os_release()['PRETTY_NAME']}, {platform.machine()}"
    return f"{platform.system()} {platform.release()}, {platform.machine()}"
