"""Gradual pruning: the sparsity rises while the network trains, so that it can make up for each loss."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import cast

import torch.nn.functional as F  # noqa: N812 - the name that PyTorch code uses
from torch import Tensor, nn

from .checks import check_fraction
from .masks import Mask, check_unless_masked, mask_of, require_masks, with_masks
from .prunable import PRUNABLE, layers_to_prune
from .weights import SCOPES, keep_largest, magnitudes


@dataclass(frozen=True)
class SparsitySchedule:
    """Sparsity as a function of the share of training that is over: steep at first, flat at the end.

    s = final + (initial - final) (1 - (t - begin) / (end - begin))^3 (Zhu & Gupta 2017, "To prune, or not to prune",
    equation 1), with t the share of training. Early, when many weights are superfluous, many go; later few, and from
    ``end`` on none, so that the network can settle.

    Attributes:
        final: sparsity from ``end`` on, in [0, 1).
        initial: sparsity at ``begin``.
        begin: share of training before which nothing is pruned.
        end: share of training at which ``final`` is reached.
    """

    final: float
    initial: float = 0.0
    begin: float = 0.0
    end: float = 0.75

    def __post_init__(self) -> None:
        """Refuse what is no schedule."""
        check_fraction("final", self.final)
        check_fraction("initial", self.initial)
        if self.initial >= self.final:
            raise ValueError(f"initial is {self.initial} and final {self.final}; a schedule rises: give a final above")
        if not 0 <= self.begin < self.end <= 1:
            raise ValueError(
                f"begin is {self.begin} and end {self.end}; give shares of training with 0 <= begin < end <= 1"
            )

    def __call__(self, share: float) -> float:
        """Return the sparsity after ``share`` of the training, 0 to 1."""
        if share < self.begin:
            return 0.0
        left = max(0.0, 1 - (share - self.begin) / (self.end - self.begin))
        return self.final + (self.initial - self.final) * left**3


def prepare_gradual_pruning(
    model: nn.Module, *, layers: tuple[type[nn.Module], ...] = PRUNABLE, ignore: Collection[str] = ()
) -> nn.Module:
    """Return a copy with masks that keep every weight, for a training with :class:`GradualPruning`.

    Args:
        model: float; where it has masks already, these stay.
        layers: classes of layers whose ``weight`` will be pruned.
        ignore: names of modules that are left alone, with all that is in them.

    Raises:
        TypeError: the model is no ``torch.nn.Module``.
        ValueError: a name of no module; no layer to prune; NaN.
    """
    check_unless_masked(model, "gradual pruning")
    sizes = magnitudes(layers_to_prune(model, layers=layers, ignore=ignore))
    prepared = with_masks(model, {name: size >= 0 for name, size in sizes.items()})
    for name in sizes:
        cast("Mask", mask_of(prepared.get_submodule(name))).calls.zero_()
    return prepared


@dataclass(frozen=True, repr=False)
class GradualPruning:
    """A loss that raises the sparsity of the model as it trains; a training loop needs to know nothing else.

    Each call in training mode is a step. Every few steps the smallest of the weights that are left are masked, until
    the schedule's sparsity is reached; none returns. The count of steps is kept in the masks, with the model, so a
    training that is interrupted goes on exactly. It prints its settings, which tell one training from another.

    Attributes:
        schedule: from the share of training to sparsity.
        steps: of the whole training, epochs times batches. Where it is shorter, the final sparsity is not reached:
            ``sparsity_report`` tells.
        loss: ``(model, images, labels) -> scalar``, the loss proper; the mean cross-entropy when not given.
        every: steps between two updates of the masks.
        scope: "global" or "layer", as in ``prune_weights``.
    """

    schedule: SparsitySchedule
    steps: int
    loss: Callable[[nn.Module, Tensor, Tensor], Tensor] | None = None
    every: int = 20
    scope: str = "global"

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if not isinstance(self.schedule, SparsitySchedule):
            raise TypeError(f"schedule is {self.schedule!r}; give a SparsitySchedule, SparsitySchedule(0.8) for 80 %")
        if self.steps < 1 or self.every < 1:
            raise ValueError(f"steps is {self.steps} and every {self.every}; both are whole numbers from 1 on")
        if self._last <= self._first:
            raise ValueError(
                f"of {self.steps} steps the schedule uses {self._first} to {self._last}, too few to raise the sparsity "
                "in; train longer, or let it end later"
            )
        if self.scope not in SCOPES:
            raise ValueError(f"scope {self.scope!r} is unknown; use 'global' or 'layer'")

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """Update the masks if it is time, and return the loss of the batch, a scalar.

        Raises:
            ValueError: the model has no masks, or a layer would lose all weights.
        """
        found = require_masks(model, "gradual pruning", "call prepare_gradual_pruning first")
        if model.training:
            step = int(next(iter(found.values()))[1].calls)
            if self._first <= step <= self._last and ((step - self._first) % self.every == 0 or step == self._last):
                share = self.schedule.end if step == self._last else step / self.steps
                sizes = magnitudes({name: layer for name, (layer, _) in found.items()})
                keep = keep_largest(sizes, self.schedule(share), scope=self.scope)
                for name, (_, mask) in found.items():
                    mask.kept.copy_(keep[name])
            for _, mask in found.values():
                mask.calls += 1
        return F.cross_entropy(model(images), labels) if self.loss is None else self.loss(model, images, labels)

    def __repr__(self) -> str:
        """Say the settings in the same words in every process: no addresses."""
        loss = re.sub(r" at 0x[0-9a-f]+", "", repr(self.loss or F.cross_entropy))
        return (
            f"GradualPruning({self.schedule}, steps={self.steps}, loss={loss}, every={self.every}, "
            f"scope={self.scope!r})"
        )

    @property
    def _first(self) -> int:
        return math.ceil(self.schedule.begin * self.steps)

    @property
    def _last(self) -> int:
        # The loss is asked for the last time before the last step.
        return min(math.ceil(self.schedule.end * self.steps), self.steps - 1)
