"""A plan of what to remove, which prints itself, so that it can be looked at before anything is cut."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

from .groups import Cut, Group
from .layers import INPUTS

if TYPE_CHECKING:
    import pandas as pd

TOLERANCE = 0.02  # how near a target is met where single channels can go


@dataclasses.dataclass(frozen=True)
class Removal:
    """The channels that go from one group.

    Attributes:
        group: its layers.
        channels: the indexes that go, ascending; () where all stay.
    """

    group: Group
    channels: tuple[int, ...]

    @property
    def kept(self) -> int:
        """How many stay."""
        return self.group.channels - len(self.channels)

    @property
    def follows(self) -> tuple[str, ...]:
        """The other layers that change: "name" where outputs go or a norm shrinks, "name (in)" where inputs go."""
        return tuple(
            f"{cut.layer} (in)" if cut.side == INPUTS else cut.layer
            for cut in self.group.cuts
            if (cut.layer, cut.side) != (self.group.cuts[0].layer, self.group.cuts[0].side)
        )

    def cuts(self) -> Iterator[tuple[Cut, list[int]]]:
        """Yield each side of a layer that loses something, with the entries that go; a side may come twice."""
        for cut in self.group.cuts if self.channels else ():
            yield cut, [entry for channel in self.channels for entry in cut.entries[channel]]


@dataclasses.dataclass(frozen=True, repr=False)
class PruningPlan:
    """What :func:`~.channels.prune_channels` is going to remove; prints itself.

    Attributes:
        model: class of the model.
        wanted: the target, the criterion and the scope, in words.
        removals: one for each group that can be pruned, in the model's order.
        left: (layer, reason) for every other layer.
        input_shape: of one example, [1, C, H, W] as a rule.
        macs: multiply-accumulates of one image, before and after.
        parameters: before and after.
        latency_ms: where the target is one: of the layers together for the example's batch, before and after.
        missed: how far from the target the nearest reachable state is, a share of the target; negative when below.
    """

    model: str
    wanted: str
    removals: tuple[Removal, ...]
    left: tuple[tuple[str, str], ...]
    input_shape: tuple[int, ...]
    macs: tuple[int, int]
    parameters: tuple[int, int]
    latency_ms: tuple[float, float] | None
    missed: float

    def cuts(self) -> Iterator[tuple[Cut, list[int]]]:
        """Yield each side of a layer that loses something, with the entries that go; a side may come twice."""
        for removal in self.removals:
            yield from removal.cuts()

    def table(self) -> pd.DataFrame:
        """Return a row for each group: layer, channels, kept, removed_share, follows (layers that change with it)."""
        import pandas as pd

        return pd.DataFrame(
            {
                "layer": [removal.group.layer for removal in self.removals],
                "channels": [removal.group.channels for removal in self.removals],
                "kept": [removal.kept for removal in self.removals],
                "removed_share": [len(removal.channels) / removal.group.channels for removal in self.removals],
                "follows": [", ".join(removal.follows) for removal in self.removals],
            }
        )

    def __repr__(self) -> str:
        gone = sum(len(removal.channels) for removal in self.removals)
        channels = sum(removal.group.channels for removal in self.removals)
        lines = [f"Plan for {self.model}: remove {gone} of {channels} channels ({self.wanted})", *self._groups()]
        lines.append(_change("MACs", *self.macs, "{:,}"))
        lines.append(_change("parameters", *self.parameters, "{:,}"))
        if self.latency_ms:
            lines.append(_change("milliseconds", *self.latency_ms, "{:.3g}"))
        if abs(self.missed) > TOLERANCE:
            side = "above" if self.missed > 0 else "below"
            lines.append(f"the nearest that can be reached is {abs(self.missed):.1%} {side} the target")
        reasons: dict[str, list[str]] = {}
        for layer, reason in self.left:
            reasons.setdefault(reason, []).append(layer)
        lines += [f"left alone: {', '.join(layers)}: {reason}" for reason, layers in reasons.items()]
        return "\n".join(lines)

    def _groups(self) -> list[str]:
        width = max(len(removal.group.layer) for removal in self.removals)
        return [
            f"  {removal.group.layer:<{width}}  {removal.group.channels:>4} -> {removal.kept:<4}  with "
            f"{', '.join(removal.follows) or 'nothing else'}"
            for removal in self.removals
        ]


def _change(what: str, before: float, after: float, form: str) -> str:
    return f"{what} {form.format(before)} -> {form.format(after)} ({before / after:.2f}x fewer)"
