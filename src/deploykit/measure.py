"""Measure how long predictors take, with the doubt that each number carries.

:func:`measure` times one predictor, :func:`compare` several; a comparison is a *ratio* with an interval. What else is
measured stands in modules that work alone, and can be imported from here:

- ``significance``: :func:`wilson_interval` for one accuracy, :func:`paired_difference` for two on the same images.
- ``cost``: :func:`macs`, :func:`parameters`, :func:`tensor_size_mib`, :func:`size_mib`, :func:`peak_memory_mib`.
- ``machine``: :func:`machine` says where the numbers come from.
- ``timing``: one call, timed fairly.

What they return stands in ``measurement`` and ``comparison``. These seven files need nothing else of deploykit: copy
them into a package of your own and they work.

A *predictor* is any callable from images, float32 [N, 3, H, W], to logits, float [N, classes]: a module, a compiled
module, or a wrapped session of another runtime.
"""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

# Relative, so that the files can be copied into any package.
from .comparison import Comparison, Ratio, check_known
from .cost import PeakMemory, macs, parameters, peak_memory_mib, size_mib, tensor_size_mib
from .machine import machine
from .measurement import Conditions, Measurement
from .significance import (
    PairedDifference,
    decimals_allowed,
    paired_difference,
    trimmed_mean_interval,
    wilson_interval,
)
from .timing import (
    SETTLE_S,
    WARMUP_WINDOW,
    Clock,
    Predictor,
    Timer,
    check_positive,
    checked_images,
    fixed_conditions,
    settling_calls,
)

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

OVERRUN = 10  # a busy machine may take up to so many budgets to reach the fewest calls or rounds
WARMUP_SHARE = 0.25  # of the budget, at most, goes into warm-up
BLOCK_CALLS, BLOCK_S = 10, 0.005  # what a block of timed calls should have at least, if the budget allows
ROUNDS, LEAST_ROUNDS = 40, 10  # aimed at, and refused below


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
        budget_s: seconds for warm-up and timed calls, the first call not counted; up to ten times as many on a
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
    conditions = Conditions.here(
        batch=len(images), threads=used_threads, device=str(timer.device), warmup_calls=warmup_calls
    )
    return Measurement(label, _milliseconds(samples), conditions)


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
    makes timed calls: at least 10 and 5 ms, fewer when the calls are so long that 40 rounds would not fit in the
    budget. Unless it had the turn before as well, it first makes a few untimed ones (at least 5 ms, and 3 of them or
    as many as 30 ms have room for), so that caches and clock rate settle.

    Threads that spin: the workers of ONNX Runtime and of OpenMP stay busy for a while after a call and rob the next
    contestant. So before each turn the comparison waits (on Linux) until no other thread of the process is running, at
    most 0.1 s. That takes time from the rounds, and elsewhere spinning still distorts: make ONNX Runtime's sessions
    with ``session.intra_op.allow_spinning`` set to ``"0"`` when they are to be compared.

    Memory that comes and goes: glibc gives large freed tensors back to the kernel and takes them again, page by page,
    in the next call; how many depends on who else uses the heap. For large batches of eager networks that is a good
    part of the time. ``MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=2000000000`` in the environment of Python avoids it.

    Args:
        contestants: name to predictor, at least two.
        images: float32 [N, 3, H, W]; every call takes them all.
        baseline: the name to compare with; None means the first.
        threads: as in :func:`measure`.
        device: as in :func:`measure`, for all contestants.
        budget_s: seconds for warm-up and rounds together, the first call of each not counted; up to ten times as
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
    check_known(baseline, contestants)
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
        call_s = {name: seconds for name, (_, seconds) in warm.items()}
        round_s = 0.0
        last: str | None = None
        while (after_s := (begun := clock()) - started + round_s) <= budget_s or (
            len(rounds[baseline]) < LEAST_ROUNDS and after_s <= OVERRUN * budget_s
        ):
            for name in order.sample(names, len(names)):
                if name != last:  # whoever ended the round before and begins this one just goes on
                    timers[name].settle(call_s[name])
                last = name
                block = [timers[name].call() for _ in range(_timed_calls(call_s[name], block_s))]
                samples[name] += block
                call_s[name] = statistics.median(block)  # the machine may have become slower since the warm-up
                rounds[name].append(call_s[name])
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
            Conditions.here(
                batch=len(images), threads=used_threads, device=str(timers[name].device), warmup_calls=warm[name][0]
            ),
        )
        for name in names
    }
    return Comparison(measurements, {name: _milliseconds(rounds[name]) for name in names}, baseline, seed)


def _timed_calls(call_s: float, block_s: float) -> int:
    """Return how many timed calls a block has: enough to mean something, few enough for a good number of rounds."""
    wanted = max(BLOCK_CALLS, math.ceil(BLOCK_S / call_s)) if call_s > 0 else BLOCK_CALLS
    settling_s = max(SETTLE_S, settling_calls(call_s) * call_s)
    affordable = int((block_s - settling_s) / call_s) if call_s > 0 else wanted
    return max(1, min(wanted, affordable))


def _milliseconds(seconds: Sequence[float]) -> tuple[float, ...]:
    return tuple(1000 * value for value in seconds)
