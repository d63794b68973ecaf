"""What a network waits for as it is given, told beside what was found so that it can be understood; decides nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from deploykit.advisor.steps import BINDS
from deploykit.peaks import measure_peaks
from deploykit.roofline import place_layers
from deploykit.rows import words_for

CALLS = 10
SLOWEST = 3


@dataclass(frozen=True)
class Bottleneck:
    """Where the time of a call goes, in PyTorch and float32 on the CPU.

    Attributes:
        status: "ok", or why it was not measured.
        shares: "compute", "memory" and "overhead", as far as they bind a layer, to the share of the time, 0 to 1.
        slowest: the layers that take longest, to their share of the time; "(model)" is what it does between them.
    """

    status: str = "ok"
    shares: Mapping[str, float] = field(default_factory=dict)
    slowest: Mapping[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        """Say what binds, for how much of the time, and which layers are slow."""
        if not self.shares:
            return f"What the network waits for was not measured: {self.status}."
        bound = max(self.shares, key=lambda name: self.shares[name])
        layers = ", ".join(f"{name} {share:.0%}" for name, share in self.slowest.items())
        return (
            f"As it was given, {BINDS[bound]} ({self.shares[bound]:.0%} of the time). The slowest layers, with their "
            f"share of the time: {layers}."
        )


def find_bottleneck(model: nn.Module, images: Tensor, *, budget_s: float) -> Bottleneck:
    """Measure what the layers of ``model(images)`` wait for; whatever prevents that is the status.

    Args:
        model: float32, in evaluation mode on the CPU.
        images: float32 [N, C, H, W], as many as a call will get.
        budget_s: seconds for this machine's peaks; the layers are timed on top.
    """
    try:
        peaks = measure_peaks(threads=torch.get_num_threads(), dtypes=["fp32"], budget_s=budget_s)
        table = place_layers(model, images, peaks, calls=CALLS)
    except (MemoryError, OSError):
        raise
    except Exception as error:  # noqa: BLE001 - of the reader's own module, under hooks; the forms can be tried all the same
        return Bottleneck(words_for(error))
    whole = float(table["ms"].sum())
    shares = table.groupby("bound")["ms"].sum().sort_values(ascending=False) / whole
    slowest = table.nlargest(SLOWEST, "ms").set_index("layer")["ms"] / whole
    return Bottleneck("ok", *({str(name): float(share) for name, share in one.items()} for one in (shares, slowest)))
