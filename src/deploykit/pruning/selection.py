"""Which channels go: from scores to a number of channels for each group, towards a target."""

from __future__ import annotations

import bisect
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from .costs import LayerCost, Network

State = dict[str, int]  # channels removed from each group, by its leading layer


def allowed_counts(channels: int, round_to: int) -> list[int]:
    """Return how many channels of a group may go, ascending, so that a multiple of ``round_to`` stays, at least one.

    Removing nothing is always allowed, also where the full width is no multiple.
    """
    largest = (channels - 1) // round_to * round_to
    return [0, *(channels - width for width in range(largest, 0, -round_to))]


def lowest(scores: Tensor, count: int) -> tuple[int, ...]:
    """Return the ``count`` channels with the lowest scores, ascending; of equals the first."""
    return tuple(sorted(torch.argsort(scores, stable=True)[:count].tolist()))


class Path:
    """States of falling cost, from the full network on, each made when it is asked for."""

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, step: int) -> State:
        raise NotImplementedError


class Ranking(Path):
    """All channels of the network in one row, the least important first: a state for each length of that row.

    A group keeps ``round_to`` channels whatever their rank, and its width is the nearest multiple of ``round_to``.

    Args:
        scores: float64 [channels] for each group.
        round_to: every width is a multiple of it.
    """

    def __init__(self, scores: Mapping[str, Tensor], round_to: int) -> None:
        self.counts = {name: allowed_counts(len(score), round_to) for name, score in scores.items()}
        ranked = [(value, name) for name, score in scores.items() for value in score.sort().values.tolist()]
        ranked.sort(key=lambda pair: pair[0])
        left = {name: counts[-1] for name, counts in self.counts.items()}
        self.row = []
        for _, name in ranked:
            if left[name]:
                left[name] -= 1
                self.row.append(name)

    def __len__(self) -> int:
        return len(self.row) + 1

    def __getitem__(self, step: int) -> State:
        """Return the state when the first ``step`` of the row are gone."""
        state = dict.fromkeys(self.counts, 0)
        for name in itertools.islice(self.row, step):
            state[name] += 1
        return {name: _nearest_count(self.counts[name], count) for name, count in state.items()}


class SameShare(Path):
    """The same share of every group: a state for each share.

    Args:
        scores: float64 [channels] for each group.
        round_to: every width is a multiple of it.
    """

    def __init__(self, scores: Mapping[str, Tensor], round_to: int) -> None:
        self.counts = {name: allowed_counts(len(score), round_to) for name, score in scores.items()}
        self.channels = {name: len(score) for name, score in scores.items()}
        self.steps = sum(self.channels.values())

    def __len__(self) -> int:
        return self.steps + 1

    def __getitem__(self, step: int) -> State:
        """Return the state when a share of ``step / (len(self) - 1)`` of each group is gone."""
        wanted = {name: channels * step / self.steps for name, channels in self.channels.items()}
        return {name: _nearest_count(self.counts[name], count) for name, count in wanted.items()}


def _nearest_count(counts: Sequence[int], wanted: float) -> int:
    return min(counts, key=lambda count: abs(count - wanted))


def nearest_state(path: Path, value: Callable[[State], float], target: float) -> State | None:
    """Return the state whose value, which falls along the path, is nearest to the target; None if all lie above it."""
    first = bisect.bisect_left(range(len(path)), -target, key=lambda index: -value(path[index]))
    if first == len(path):
        return None
    candidates = [path[index] for index in (first - 1, first) if index >= 0]
    return min(candidates, key=lambda state: abs(value(state) - target))


def first_near(states: Iterator[State], value: Callable[[State], float], target: float) -> tuple[State | None, State]:
    """Follow states down to the target; return the nearer of the two around it (None if all lie above) and the last."""
    before: State | None = None
    for state in states:
        if value(state) <= target:
            nearer = state if before is None or abs(value(state) - target) <= abs(value(before) - target) else before
            return nearer, state
        before = state
    return None, before or {}


def cheapest_cuts(options: Mapping[str, Options], network: Network, cost: LayerCost) -> Iterator[State]:
    """Cut one group at a time, always where the least is lost for what is saved, and yield each state.

    This is the greedy choice of NetAdapt (Yang et al. 2018, section 3) with what the options say in the place of
    accuracy. A width that saves nothing (a kernel works in blocks of channels) is passed over for a lower one.

    Args:
        options: the cuts that each group is open to.
        network: the widths.
        cost: of a layer, in whatever unit.
    """
    state, now = dict.fromkeys(options, 0), dict(network.full)
    best: dict[str, tuple[float, int] | None] = {}
    yield dict(state)
    while True:
        for name in options.keys() - best.keys():
            best[name] = options[name].best(state[name], functools.partial(network.saved, cost, now, name))
        open_to_cut = [(price, name, count) for name, cut in best.items() if cut for price, count in [cut]]
        if not open_to_cut:
            return
        _, chosen, count = min(open_to_cut)
        state[chosen] = count
        now |= {layer: network.size(layer, state) for layer in network.touched[chosen]}
        for name in options:
            if not set(network.touched[name]).isdisjoint(network.touched[chosen]):
                best.pop(name, None)  # what it saves depends on the widths of its layers
        yield dict(state)


class Options:
    """The cuts that one group is open to."""

    def best(self, gone: int, saved_by: Callable[[int], float]) -> tuple[float, int] | None:
        """Return the price of the cut to make next (what is lost for each unit saved), and the channels gone after it.

        Args:
            gone: channels removed so far.
            saved_by: what so many channels fewer save.
        """
        raise NotImplementedError


class ByImportance(Options):
    """Cuts that lose importance.

    What a cut loses is the fall of the log of the importance that its group has left, once for each layer that the
    group touches: relative to what is left as in LAMP (Lee et al. 2021, section 3), so that no group is emptied, and
    summed over layers, so that a residual stream is not taken for one cheap layer.

    Args:
        scores: float64 [channels].
        round_to: every width is a multiple of it.
        layers: how many layers the group touches.
    """

    def __init__(self, scores: Tensor, round_to: int, layers: int) -> None:
        self.counts = allowed_counts(len(scores), round_to)
        self.left = scores.sort(descending=True).values.cumsum(0).tolist()[::-1]  # importance, by channels removed
        self.layers = layers

    def best(self, gone: int, saved_by: Callable[[int], float]) -> tuple[float, int] | None:
        """Return the first lower width that saves any."""
        for count in self.counts[self.counts.index(gone) + 1 :]:
            if (saved := saved_by(count - gone)) > 0:
                lost = math.log(self.left[gone] / self.left[count]) if self.left[count] > 0 else 0.0
                return self.layers * lost / saved, count
        return None


class ByMeasurement(Options):
    """Cuts that lose what a measurement says, in a straight line between the widths that were measured.

    The price is the lowest of all lower widths', so that a group goes along the lower convex hull of its curve (Shoham
    and Gersho 1988, "Efficient bit allocation for an arbitrary set of quantizers"), and is paid a channel at a time.

    Args:
        channels: of the group.
        round_to: every width is a multiple of it.
        measured: channels removed -> what that loses. None go beyond the most that were measured.
    """

    def __init__(self, channels: int, round_to: int, measured: Mapping[int, float]) -> None:
        removed = sorted(measured)
        self.counts = [count for count in allowed_counts(channels, round_to) if count <= removed[-1]]
        lost = np.interp(self.counts, [0, *removed], [0.0, *(measured[count] for count in removed)])
        self.lost = dict(zip(self.counts, lost.tolist(), strict=True))

    def best(self, gone: int, saved_by: Callable[[int], float]) -> tuple[float, int] | None:
        """Return the price of the lower width that loses the least for what it saves, and the first that saves any."""
        saving = {count: saved for count in self.counts if count > gone and (saved := saved_by(count - gone)) > 0}
        if not saving:
            return None
        price = min((self.lost[count] - self.lost[gone]) / saved for count, saved in saving.items())
        return price, next(iter(saving))
