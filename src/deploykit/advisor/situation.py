"""What advice depends on: what was measured of a network, and what is demanded of it, on which processor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from deploykit.machine import machine
from deploykit.peaks import Peaks
from deploykit.roofline import place_layers

if TYPE_CHECKING:
    import pandas as pd

KINDS = ("cnn", "linear", "recurrent", "attention")
BOUNDS = ("overhead", "memory", "compute")
DATA = ("none", "images", "labelled")
# For each target the runtimes that the course has recipes for, the one to take if none is demanded first.
RUNTIMES = {
    "x86-vnni": ("openvino", "onnxruntime", "torch"),
    "x86": ("onnxruntime", "openvino", "torch"),
    "arm": ("onnxruntime",),
    "nvidia": ("tensorrt",),
}
TARGETS = tuple(RUNTIMES)
VNNI = {"avx512_vnni", "avx_vnni", "amx_int8"}
BF16 = {"avx512_bf16", "amx_bf16"}
# The beginning of a layer's class says its family; what belongs to none of them says nothing about the network.
FAMILIES = {"Conv": "cnn", "Linear": "linear", "LSTM": "recurrent", "GRU": "recurrent", "RNN": "recurrent"}


@dataclass(frozen=True)
class NetworkProfile:
    """What is known of a network; whatever was not measured is left out.

    Attributes:
        kind: what it spends its time on: "cnn", "linear", "recurrent" or "attention".
        shares: what binds its layers, "overhead", "memory", "compute", to the share of the time, 0 to 1.
        batch: images per call where it is used.
        accuracy: in float32, 0 to 1.
        latency_ms: of one call.
        size_kib: of its file.
        int8_loss_points: the accuracy that static int8 was measured to lose.
    """

    kind: str
    shares: Mapping[str, float] = field(default_factory=dict)
    batch: int = 1
    accuracy: float | None = None
    latency_ms: float | None = None
    size_kib: float | None = None
    int8_loss_points: float | None = None

    def __post_init__(self) -> None:
        _refuse_unknown("kind of network", self.kind, KINDS)
        for bound in self.shares:
            _refuse_unknown("bottleneck", bound, BOUNDS)
        if any(share < 0 for share in self.shares.values()):
            raise ValueError(f"shares are {dict(self.shares)}; a share of the time lies between 0 and 1")
        if self.batch < 1:
            raise ValueError(f"batch is {self.batch}; give the images per call, at least 1")
        if self.accuracy is not None and not 0 < self.accuracy <= 1:
            raise ValueError(f"accuracy is {self.accuracy:g}; give a share of the images between 0 and 1")
        _refuse_not_positive(latency_ms=self.latency_ms, size_kib=self.size_kib)

    @property
    def bottleneck(self) -> str | None:
        """What binds for most of the time; None if that was not measured."""
        return max(self.shares, key=lambda bound: self.shares[bound]) if self.shares else None


@dataclass(frozen=True)
class Constraints:
    """What is demanded, and with which means.

    Attributes:
        target: the processor that will do the work: "x86-vnni", "x86", "arm" or "nvidia".
        budget_points: accuracy that may be lost; 0 means that no answer may change.
        data: "none", "images" as the network will see them, or "labelled" ones.
        training_minutes: how long may be trained.
        bf16: whether the processor multiplies bfloat16.
        runtime: where it has to run; None leaves the choice to the advice.
        latency_ms: what a call may take.
        size_kib: what the file may take.
    """

    target: str
    budget_points: float = 1.0
    data: str = "none"
    training_minutes: float = 0.0
    bf16: bool = False
    runtime: str | None = None
    latency_ms: float | None = None
    size_kib: float | None = None

    def __post_init__(self) -> None:
        _refuse_unknown("target", self.target, TARGETS)
        _refuse_unknown("choice of data", self.data, DATA)
        if self.runtime is not None and self.runtime not in RUNTIMES[self.target]:
            raise ValueError(
                f"there is no recipe for {self.runtime!r} on {self.target}; "
                f"choose {' or '.join(map(repr, RUNTIMES[self.target]))}, or leave runtime at None"
            )
        if self.budget_points < 0 or self.training_minutes < 0:
            raise ValueError(
                f"budget_points is {self.budget_points:g} and training_minutes is {self.training_minutes:g}; "
                "neither can be negative: 0 means that nothing may be lost, or that nothing is trained"
            )
        if self.training_minutes and self.data == "none":
            raise ValueError(
                f"{self.training_minutes:g} minutes of training are allowed, but data is 'none': training needs "
                "images, with labels or with the network's own answers; set data, or training_minutes=0"
            )
        _refuse_not_positive(latency_ms=self.latency_ms, size_kib=self.size_kib)

    @classmethod
    def here(cls, **demands: Any) -> Constraints:
        """Return demands on this machine: its target and whether it has bfloat16 are filled in."""
        return cls(**{"target": target_here(), "bf16": bool(BF16 & set(machine()["features"])), **demands})


def target_here() -> str:
    """Return what this machine is as a target; a GPU that torch can use comes before the processor.

    Raises:
        ValueError: a processor that the course has no recipes for.
    """
    return target_of(machine())


def target_of(facts: Mapping[str, Any]) -> str:
    """Return the target that ``machine()`` describes; see :func:`target_here`."""
    if facts["gpu"]:
        return "nvidia"
    architecture = str(facts["os"]).rsplit(" ", 1)[-1].lower()
    if architecture in {"aarch64", "arm64"}:
        return "arm"
    if architecture in {"x86_64", "amd64"}:
        return "x86-vnni" if VNNI & set(facts["features"]) else "x86"
    raise ValueError(f"this processor is {architecture}; name the target that is nearest: {', '.join(TARGETS)}")


def profile_network(model: nn.Module, images: Tensor, peaks: Peaks, *, calls: int = 20, **known: Any) -> NetworkProfile:
    """Measure what kind of network this is and what binds it, on a CPU.

    Args:
        model: in evaluation mode, float32.
        images: float32 [N, 3, H, W], as many as a call will get.
        peaks: what the machine does at best (``peaks.measure_peaks``).
        calls: timed calls.
        known: what else is known: ``accuracy``, ``size_kib``, ``int8_loss_points``.

    Raises:
        ValueError: a model whose layers cannot be told apart or belong to none of the families.
    """
    return reduce_roofline(place_layers(model, images, peaks, calls=calls), batch=len(images), **known)


def reduce_roofline(table: pd.DataFrame, *, batch: int, **known: Any) -> NetworkProfile:
    """Reduce the layers' table of ``roofline.place_layers`` to a profile."""
    spent = table.groupby("bound")["ms"].sum() / table["ms"].sum()
    told = {"latency_ms": float(table["ms"].sum()), **known}
    return NetworkProfile(_kind(table), {str(bound): float(share) for bound, share in spent.items()}, batch, **told)


def _kind(table: pd.DataFrame) -> str:
    if table["layer_type"].str.contains("Attention").any():
        return "attention"
    spent: dict[str, float] = {}
    for layer_type, ms in table.groupby("layer_type")["ms"].sum().items():
        for beginning, family in FAMILIES.items():
            if str(layer_type).startswith(beginning):
                spent[family] = spent.get(family, 0.0) + float(ms)
    if not spent:
        raise ValueError(
            f"the layers ({', '.join(sorted(set(table['layer_type'])))}) are no convolutions, linear, recurrent or "
            "attention layers, and the course has no advice for others; make the NetworkProfile by hand"
        )
    return max(spent, key=lambda family: spent[family])


def _refuse_unknown(what: str, given: str, known: tuple[str, ...]) -> None:
    if given not in known:
        raise ValueError(f"there is no {what} {given!r}; choose one of {', '.join(map(repr, known))}")


def _refuse_not_positive(**numbers: float | None) -> None:
    for name, number in numbers.items():
        if number is not None and not number > 0:
            raise ValueError(f"{name} is {number:g}; give a number above 0, or None where it does not matter")
