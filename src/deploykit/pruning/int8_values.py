"""Weights as integers of 8 bits, one step for each output channel: what is left after pruning, four times smaller."""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST = 127  # symmetric: -127 to 127, so that the step is the same on both sides of 0


def to_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the nearest integers and their steps; a 0 stays 0.

    Args:
        weight: float32 [out, ...].

    Returns:
        int8, the shape of ``weight``, and float32 [out], the largest magnitude of each output channel over 127 (or 1,
        where all are 0). Integer times step is within half a step of the weight.
    """
    steps = weight.flatten(1).abs().amax(dim=1) / LARGEST
    steps = torch.where(steps > 0, steps, 1.0)
    return (weight / _along(steps, weight)).round().to(torch.int8), steps


def from_int8(integers: Tensor, steps: Tensor) -> Tensor:
    """Return the weights, float32, the shape of ``integers`` [out, ...]."""
    return integers * _along(steps, integers)


def _along(steps: Tensor, weight: Tensor) -> Tensor:
    return steps.view(-1, *[1] * (weight.ndim - 1))
