"""The optimizers that the course trains with, each a function of the model, and the schedules of the learning rate.

This file needs nothing else of deploykit: copy it into a project and it works.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

SCHEDULES = ("cosine", "one-cycle")
CONVOLUTION_DIMENSIONS = 4  # a weight is [out, in, height, width]


def sgd(
    model: nn.Module, *, peak_lr: float = 0.1, momentum: float = 0.9, weight_decay: float = 5e-4
) -> torch.optim.SGD:
    """SGD with Nesterov momentum, the field's default for small residual networks."""
    return torch.optim.SGD(model.parameters(), lr=peak_lr, momentum=momentum, nesterov=True, weight_decay=weight_decay)


def muon(
    model: nn.Module,
    *,
    peak_lr: float = 0.02,
    momentum: float = 0.95,
    weight_decay: float = 0.01,
    other_lr: float = 2e-3,
) -> torch.optim.Optimizer:
    """Muon for the convolutions and AdamW for the rest, in one optimizer (timm's).

    Muon orthogonalises the momentum of each convolution, flattened to a matrix, before it is applied (Jordan et al.
    2024, https://kellerjordan.github.io/posts/muon/). Where epochs are few it reaches the accuracy of SGD in fewer.

    Args:
        model: its parameters with four dimensions go to Muon.
        peak_lr: learning rate of the convolutions.
        momentum: of the convolutions, Nesterov.
        weight_decay: decoupled, for both parts.
        other_lr: AdamW's learning rate for biases, normalisation and linear layers.

    Raises:
        ImportError: timm is missing; the message names the extra.
    """
    try:
        from timm.optim import Muon
    except ImportError as error:
        raise ImportError("the Muon optimizer is timm's: pip install 'deploykit[training]'") from error
    convolutions = [p for p in model.parameters() if p.ndim == CONVOLUTION_DIMENSIONS]
    others = [p for p in model.parameters() if p.ndim != CONVOLUTION_DIMENSIONS]
    groups: list[dict[str, Any]] = [{"params": convolutions}, {"params": others, "use_fallback": True}]
    return Muon(
        groups,
        lr=peak_lr, momentum=momentum, nesterov=True, weight_decay=weight_decay,
        conv_mode="flatten", fallback_lr_scale=other_lr / peak_lr,
    )  # fmt: skip


def adamw(model: nn.Module, *, peak_lr: float = 1e-3, weight_decay: float = 0.05) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019), the field's default for transformers, MLP-mixers and LSTMs.

    Only matrices and filters decay: a bias or the gain of a normalisation is no source of overfitting (He et al. 2019,
    "Bag of Tricks", section 3.1, "no bias decay").
    """
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=peak_lr, weight_decay=weight_decay)


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {"sgd": sgd, "muon": muon, "adamw": adamw}


def schedule_factor(progress: float, *, schedule: str = "cosine", warmup: float = 0.0) -> float:
    """Return the learning rate at ``progress`` in [0, 1] of training, as a share of the peak.

    "cosine" falls as (1 + cos(pi t)) / 2 (Loshchilov & Hutter 2017, eq. 5, one period), "one-cycle" linearly (after
    Smith & Topin 2018); both rise linearly during the first ``warmup`` share of training and end at 0.
    """
    if progress < warmup:
        return progress / warmup
    t = (progress - warmup) / (1 - warmup)
    return (1 + math.cos(math.pi * t)) / 2 if schedule == "cosine" else 1 - t
