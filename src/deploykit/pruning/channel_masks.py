"""The trap: filters set to zero. The shapes, the MACs and the time stay; only the accuracy goes."""

from __future__ import annotations

import copy

from torch import nn
from torch.nn.utils import prune

from .checks import check_fraction, check_model
from .layers import Weighted


def mask_channels(model: nn.Module, ratio: float, *, n: int = 2) -> nn.Module:
    """Return a copy in which the weakest filters of every convolution are zero, as articles call structured pruning.

    It is ``torch.nn.utils.prune.ln_structured(dim=0)`` and ``prune.remove`` on each convolution. Nothing is removed: a
    kernel multiplies zeros like other numbers. For a model that is smaller, see :func:`~.channels.prune_channels`.

    Args:
        model: is not changed.
        ratio: share of each convolution's filters, 0 < ratio < 1.
        n: of the norm by which filters are compared: 1 or 2.

    Raises:
        ValueError: a ratio out of range, or so small that no filter is zeroed; no convolution; a model that
            :func:`~.checks.check_model` refuses.
    """
    check_fraction("ratio", ratio)
    check_model(model, "mask_channels")
    masked = copy.deepcopy(model)
    layers = [layer for layer in masked.modules() if isinstance(layer, Weighted[0])]
    if not layers:
        raise ValueError(f"{type(model).__name__} has no convolution: there is no filter to mask")
    if not any(round(ratio * layer.out_channels) for layer in layers):
        raise ValueError(f"ratio {ratio} is less than one filter of any convolution: nothing would be masked")
    for layer in layers:
        prune.ln_structured(layer, "weight", amount=ratio, n=n, dim=0)
        prune.remove(layer, "weight")
    return masked
