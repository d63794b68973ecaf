"""Gradual magnitude pruning in two functions, for pasting: masks by magnitude, and a line after each step."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def magnitude_masks(model: nn.Module, sparsity: float) -> dict[str, Tensor]:
    """Return which weights of convolutions and linear layers to keep: all but the smallest of the network.

    Call it with a sparsity that rises while the network trains, ``final * (1 - (1 - share) ** 3)`` after a
    share of the steps (Zhu & Gupta 2017, equation 1), and *before* the step of the optimizer: there a weight
    that was pruned is still 0, among the smallest, and stays pruned. Momentum moves it in the step.

    Args:
        model: is not changed.
        sparsity: share of these weights that go, in [0, 1).

    Returns:
        Name of the parameter to bool, its shape.
    """
    weights = {
        f"{name}.weight": layer.weight.detach().abs()
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Conv2d | nn.Linear)
    }
    order = torch.cat([weight.flatten() for weight in weights.values()]).argsort(stable=True)
    kept = torch.ones(len(order), dtype=torch.bool, device=order.device)
    kept[order[: round(sparsity * len(order))]] = False
    parts = kept.split([weight.numel() for weight in weights.values()])
    return {name: part.view_as(weight) for part, (name, weight) in zip(parts, weights.items(), strict=True)}


def apply_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Set what is not kept to 0, in place; after each step of the optimizer: its momentum would revive it."""
    with torch.no_grad():
        for name, kept in masks.items():
            model.get_parameter(name).masked_fill_(~kept, 0)
