"""One way to run a model: what was measured of it, as numbers and as text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from deploykit.comparison import Ratio
from deploykit.evaluation import Accuracy
from deploykit.measurement import Measurement
from deploykit.significance import PairedDifference, decimals_allowed

OK = "ok"
NOTHING = "-"


@dataclass
class Row:
    """One way to run the model.

    Attributes:
        runtime: "PyTorch eager", "PyTorch channels_last", "ONNX Runtime", "OpenVINO", "Inductor".
        precision: "float32", "bfloat16", "int8"; "as given" for a file that was quantized before.
        status: "ok", or on one line why there are no figures.
        accuracy: on test images.
        difference: to the first row that works, image by image; None for that row.
        latency: of the smallest batch.
        latency_ratio: how many times faster than the first row that works.
        throughput: of the large batch.
        ratio: how many times faster, of the large batch.
        size_mib: of what is deployed: a file, two files of OpenVINO, the tensors of a module.
        network: what was made of the model before, "fewer blocks"; "" where it is as it was given.
    """

    runtime: str
    precision: str
    status: str = OK
    accuracy: Accuracy | None = None
    difference: PairedDifference | None = None
    latency: Measurement | None = None
    latency_ratio: Ratio | None = None
    throughput: Measurement | None = None
    ratio: Ratio | None = None
    size_mib: float | None = None
    network: str = ""
    predictor: Callable[[Tensor], Tensor] | None = field(default=None, repr=False)

    @property
    def ok(self) -> bool:
        """Whether it has figures."""
        return self.status == OK

    @property
    def name(self) -> str:
        """What it is called where a contestant has one name."""
        return f"{self.network}{', ' if self.network else ''}{self.runtime} {self.precision}"

    def figures(self) -> dict[str, Any]:
        """Return all of it flat, None where there is nothing: shares and points of accuracy, milliseconds, MiB."""
        accuracy, lost = self.accuracy, self.difference
        low, high = accuracy.interval if accuracy else (None, None)
        return {
            "runtime": self.runtime,
            "precision": self.precision,
            "status": self.status,
            "accuracy": accuracy.accuracy if accuracy else None,
            "accuracy_low": low,
            "accuracy_high": high,
            "points_lost": 100 * (0 - lost.difference) if lost else None,
            "points_lost_low": 100 * (0 - lost.interval[1]) if lost else None,
            "points_lost_high": 100 * (0 - lost.interval[0]) if lost else None,
            "latency_ms": self.latency.median_ms if self.latency else None,
            **_ratio("latency_speedup", self.latency_ratio),
            "images_per_s": self.throughput.throughput_per_s if self.throughput else None,
            **_ratio("speedup", self.ratio),
            "size_mib": self.size_mib,
        }

    def shown(self) -> dict[str, str]:
        """Return the figures as text, each with the digits that it deserves; "-" where there is none."""
        texts = dict.fromkeys(("accuracy", "points lost", "ms", "images/s", "faster", "between", "MiB"), NOTHING)
        figures = self.figures()
        if not self.ok:
            return texts
        if self.accuracy is not None:
            texts["accuracy"] = "{accuracy:.1%} ({accuracy_low:.1%} to {accuracy_high:.1%})".format(**figures)
        if self.difference is not None:
            lost = "{points_lost:.2f} ({points_lost_low:.2f} to {points_lost_high:.2f})"
            texts["points lost"] = lost.format(**figures)
        if self.latency is not None:
            texts["ms"] = "{latency_ms:.3g}".format(**figures)
        if self.throughput is not None:
            texts["images/s"] = "{images_per_s:,.0f}".format(**figures)
        if self.ratio is not None and self.difference is not None:
            value, low, high = self.ratio
            digits = decimals_allowed(value, high - low)
            texts["faster"], texts["between"] = f"{value:.{digits}f}x", f"{low:.{digits}f} to {high:.{digits}f}"
        if self.size_mib is not None:
            texts["MiB"] = "{size_mib:.2f}".format(**figures)
        return texts


def words_for(error: BaseException) -> str:
    """Say what went wrong on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def _ratio(name: str, ratio: Ratio | None) -> dict[str, float | None]:
    value, low, high = ratio or (None, None, None)
    return {name: value, f"{name}_low": low, f"{name}_high": high}
