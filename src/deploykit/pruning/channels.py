"""Removing channels for good: a copy of the model whose tensors are smaller."""

from __future__ import annotations

import collections
import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from .checks import check_model
from .costs import count_macs
from .groups import Cut
from .layers import keep, width
from .plan import PruningPlan


def prune_channels(model: nn.Module, plan: PruningPlan) -> nn.Module:
    """Return a copy of the model without the channels that the plan removes.

    Args:
        model: the one that the plan was made for, or a copy; it is not changed.
        plan: from :func:`~.planning.plan_pruning`.

    Returns:
        A module of the same class, in the same mode, with the same ``requires_grad``. Its weights are new parameters:
        make the optimizer afterwards.

    Raises:
        ValueError: the plan removes nothing or belongs to another model, or the smaller model does not run or has
            other MACs than planned, because something in its forward counts on the old number of channels.
    """
    check_model(model, "pruning")
    if not any(removal.channels for removal in plan.removals):
        raise ValueError(f"the plan removes nothing ({plan.wanted}); plan a larger ratio or a lower target")
    check_belongs(model, plan)
    pruned = copy.deepcopy(model)
    cut(pruned, plan.cuts())
    like = next(pruned.parameters())
    try:
        macs = count_macs(pruned, torch.zeros(plan.input_shape, dtype=like.dtype, device=like.device))
    except (RuntimeError, ValueError, IndexError) as error:
        raise ValueError(
            f"{type(model).__name__} does not run with fewer channels, because its forward counts on the old number: "
            f"{error}"
        ) from error
    if macs != plan.macs[1]:
        raise ValueError(
            f"the pruned {type(model).__name__} has {macs:,} MACs and {plan.macs[1]:,} were planned: a part of it "
            "computes with weights outside of its layers"
        )
    return pruned


def cut(model: nn.Module, cuts: Iterable[tuple[Cut, list[int]]]) -> None:
    """Remove entries from layers of ``model``, in place; all positions are those of the full layers."""
    for (name, side), stay in kept_entries(cuts).items():
        keep(model.get_submodule(name), side, stay)


def kept_entries(cuts: Iterable[tuple[Cut, list[int]]]) -> dict[tuple[str, str], Tensor]:
    """Return the entries that stay of each side of a layer that loses some, by (layer, side), int64, ascending."""
    gone: dict[tuple[str, str], set[int]] = collections.defaultdict(set)
    size: dict[tuple[str, str], int] = {}
    for one, entries in cuts:
        gone[one.layer, one.side].update(entries)
        size[one.layer, one.side] = one.size
    return {
        side: torch.tensor([entry for entry in range(size[side]) if entry not in entries])
        for side, entries in gone.items()
    }


def check_belongs(model: nn.Module, plan: PruningPlan) -> None:
    """Raise ValueError unless every layer that a plan cuts is there, of the kind and size that the plan knows."""
    layers = dict(model.named_modules())
    for one, _ in plan.cuts():
        layer = layers.get(one.layer)
        found = None if layer is None else (type(layer).__name__, width(layer, one.side))
        if found != (one.kind, one.size):
            has = "none" if found is None else f"a {found[0]} with {found[1]}"
            raise ValueError(
                f"the plan belongs to another model: it was made for a {one.kind} {one.layer!r} with {one.size} "
                f"{one.side}, and this {type(model).__name__} has {has}"
            )
