"""The networks of the course by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from deploykit.models.mlp_mixer import MLPMixer, MLPMixerConfig
from deploykit.models.network import Network
from deploykit.models.resnet import resnet
from deploykit.models.row_lstm import RowLSTM, RowLSTMConfig


def _row_lstm(*, classes: int) -> RowLSTM:
    return RowLSTM(RowLSTMConfig(classes=classes))


def _mlp_mixer(*, classes: int) -> MLPMixer:
    return MLPMixer(MLPMixerConfig(classes=classes))


# "x4": four times the channels, 64 in the first stage.
ARCHITECTURES: dict[str, Callable[..., Network]] = {
    "resnet8": partial(resnet, 8),
    "resnet20": partial(resnet, 20),
    "resnet32": partial(resnet, 32),
    "resnet56": partial(resnet, 56),
    "resnet20x4": partial(resnet, 20, width=4),
    "row-lstm": _row_lstm,
    "mlp-mixer": _mlp_mixer,
}


def build(name: str, *, classes: int = 10) -> Network:
    """Build a network of :data:`ARCHITECTURES`, randomly initialised from torch's global generator, in training mode.

    Args:
        name: "resnet8", "resnet20", "resnet32", "resnet56", "resnet20x4", "row-lstm" or "mlp-mixer".
        classes: number of logits.

    Returns:
        A module from float32 [N, 3, 32, 32] to logits [N, classes]; the ResNets take images of any size.

    Raises:
        ValueError: another name; or fewer classes than 1.
    """
    if name not in ARCHITECTURES:
        raise ValueError(
            f"there is no network {name!r}; use {', '.join(ARCHITECTURES)}, or build another ResNet with "
            "deploykit.models.resnet(depth, width=…)"
        )
    return ARCHITECTURES[name](classes=classes)
