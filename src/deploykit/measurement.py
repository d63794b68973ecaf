"""One predictor's times as a record: raw samples, the conditions they were taken under, and what they are worth."""

from __future__ import annotations

import importlib.metadata
import math
import statistics
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from .machine import machine
from .significance import decimals_allowed

# Spread (IQR over median) from which a measurement calls itself unstable; torch.utils.benchmark has the same two.
UNSTABLE_SPREAD, VERY_UNSTABLE_SPREAD = 0.10, 0.25

# Samples that a percentile needs. MLPerf Inference lets a run stop early when, with 99 % confidence, the percentile is
# met in spite of one slower query (inference_rules.adoc, "Early Stopping"): the smallest n for which
# P[Binomial(n, 1 - p) <= 1] <= 0.01. That is 64 for p90 and 662 for p99, as the rules say, and 130 for p95.
SAMPLES_FOR_PERCENTILE = {90: 64, 95: 130, 99: 662}


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

    @classmethod
    def here(cls, *, batch: int, threads: int, device: str, warmup_calls: int) -> Conditions:
        """Return these conditions with this machine, the libraries loaded in this process, and the time that it is."""
        libraries = ("torch", "torchao", "onnxruntime", "openvino", "tensorrt")
        versions = {name: importlib.metadata.version(name) for name in libraries if sys.modules.get(name)}
        date = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(batch, threads, device, warmup_calls, machine(), versions, date)


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
