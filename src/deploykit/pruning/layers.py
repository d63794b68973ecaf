"""Single layers: how wide they are on either side, and the same layer with fewer channels."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

Weighted = (nn.modules.conv._ConvNd, nn.Linear)  # noqa: SLF001 - the only base of all convolutions
Channelwise = (
    nn.modules.batchnorm._BatchNorm,  # noqa: SLF001 - the only base of all batch norms
    nn.modules.instancenorm._InstanceNorm,  # noqa: SLF001
    nn.LayerNorm,
    nn.PReLU,
)
OUTPUTS, INPUTS, CHANNELS = "output channels", "input channels", "channels"
WIDTHS = ("num_features", "num_parameters")  # how channel-wise layers call theirs


def is_depthwise(layer: nn.Module) -> bool:
    """Tell whether a layer is a convolution with one filter for each channel, which has as many outputs as inputs."""
    return isinstance(layer, Weighted[0]) and 1 < layer.groups == layer.out_channels == layer.in_channels


def sizes(layer: Any) -> tuple[int, int]:
    """Return how many channels each filter reads and how many outputs there are: (1, C) for a depthwise convolution."""
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    return layer.in_channels // layer.groups, layer.out_channels


def width(layer: nn.Module, side: str) -> int:
    """Return the channels that a layer has on one side; 0 for a layer without channels."""
    if isinstance(layer, Weighted):
        return sizes(layer)[side != INPUTS]
    if isinstance(layer, nn.LayerNorm):
        return layer.normalized_shape[-1]
    return next((getattr(layer, name) for name in WIDTHS if hasattr(layer, name)), 0)


def refusal(layer: nn.Module) -> str | None:
    """Say why channels cannot be taken from a layer that is no plain one; None where they can."""
    groups = getattr(layer, "groups", getattr(layer, "num_groups", 1))
    if groups > 1 and not is_depthwise(layer):
        return f"{type(layer).__name__} with {groups} groups, which would all have to stay of one size"
    if isinstance(layer, nn.LayerNorm) and len(layer.normalized_shape) > 1:
        return f"LayerNorm over the shape {tuple(layer.normalized_shape)}, in which channels cannot be told apart"
    if not isinstance(layer, (*Weighted, *Channelwise)):
        return f"{type(layer).__name__}, a kind of layer that channels cannot be taken from"
    return None


def keep(layer: nn.Module, side: str, kept: Tensor) -> None:
    """Cut a layer down to the channels ``kept`` (int64, ascending) on one side, in place.

    Args:
        layer: a convolution, a linear layer, a norm or a PReLU.
        side: "output channels", "input channels" or, where these are the same, "channels".
        kept: entries of that side.
    """
    if isinstance(layer, Weighted):
        transposed = bool(getattr(layer, "transposed", False))
        dimension = int((side == INPUTS) != transposed)  # convolutions hold [out, in, …], transposed ones [in, out, …]
        if side == CHANNELS:
            dimension = 0  # depthwise, [channels, 1, …] in both
        _shrink(layer, "weight", dimension, kept)
        if side != INPUTS:
            _shrink(layer, "bias", 0, kept)
    else:
        for name in ("weight", "bias", "running_mean", "running_var"):
            _shrink(layer, name, 0, kept)
    _resize(layer, side, len(kept))


def _shrink(layer: nn.Module, name: str, dimension: int, kept: Tensor) -> None:
    tensor = getattr(layer, name, None)
    if tensor is None:
        return
    smaller = tensor.detach().index_select(dimension, kept.to(tensor.device))
    if isinstance(tensor, nn.Parameter):
        smaller = nn.Parameter(smaller, requires_grad=tensor.requires_grad)
    setattr(layer, name, smaller)


def _resize(layer: nn.Module, side: str, width: int) -> None:
    if isinstance(layer, nn.Linear):
        setattr(layer, "in_features" if side == INPUTS else "out_features", width)
    elif isinstance(layer, Weighted):
        if side != OUTPUTS:
            layer.in_channels = width
        if side != INPUTS:
            layer.out_channels = width
        if side == CHANNELS:
            layer.groups = width
    elif isinstance(layer, nn.LayerNorm):
        layer.normalized_shape = (width,)
    else:
        setattr(layer, next(name for name in WIDTHS if hasattr(layer, name)), width)


def resized(layer: Any, inputs: int, outputs: int) -> Any:
    """Return a copy of a convolution or linear layer with its first ``outputs`` filters of ``inputs`` channels each."""
    layer = copy.deepcopy(layer)
    if is_depthwise(layer):
        keep(layer, CHANNELS, torch.arange(outputs))
    else:
        keep(layer, INPUTS, torch.arange(inputs))
        keep(layer, OUTPUTS, torch.arange(outputs))
    return layer
