"""Masks: which weights of a layer are kept. A masked weight computes as 0, whatever an optimizer does to it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .checks import check_model

WEIGHT = "weight"
ORIGINAL, OF_MASK = f"parametrizations.{WEIGHT}.original", f"parametrizations.{WEIGHT}.0."


class Mask(nn.Module):
    """The parametrization that computes a layer's weight: what is kept as it is, and 0 elsewhere.

    ``torch.nn.utils.prune`` does the same with a hook, and leaves the product of weight and mask in the layer, a tensor
    with a history, which ``copy.deepcopy`` refuses: such a model cannot be averaged (EMA) or given to a function that
    works on a copy. Nor does it take weights in channels_last.

    Attributes:
        kept: floating-point, the shape of the weight; a weight is kept where this is exactly 1. Averages of models
            (EMA, several processes) average buffers, too: a weight that one of the averaged has lost stays lost.
        calls: int64 scalar, steps of a gradual pruning so far. It is here so that a training can be resumed.
    """

    kept: Tensor
    calls: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("kept", torch.ones_like(weight))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64, device=weight.device))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight with 0 where it is masked; those have no gradient."""
        # A product with 0 would be -0 for negative weights, which is stored as another number.
        return torch.where(self.keeps(), weight, 0.0)

    def keeps(self) -> Tensor:
        """Return bool, the shape of the weight: True where it is kept."""
        return self.kept.eq(1)


def mask_of(layer: nn.Module) -> Mask | None:
    """Return the mask of a single layer, if it has one."""
    if not parametrize.is_parametrized(layer, WEIGHT):
        return None
    first = cast("Any", layer).parametrizations[WEIGHT][0]
    return first if isinstance(first, Mask) else None


def masked_layers(model: nn.Module) -> dict[str, tuple[nn.Module, Mask]]:
    """Return each masked layer and its mask, by the layer's name."""
    found = ((name, layer, mask_of(layer)) for name, layer in model.named_modules())
    return {name: (layer, mask) for name, layer, mask in found if mask is not None}


def require_masks(model: nn.Module, purpose: str, remedy: str) -> dict[str, tuple[nn.Module, Mask]]:
    """Return :func:`masked_layers`, or raise ValueError if there is none."""
    if not (found := masked_layers(model)):
        raise ValueError(f"{type(model).__name__} has no masks, and {purpose} needs them; {remedy}")
    return found


def refuse_masks(model: nn.Module, purpose: str) -> None:
    """Raise ValueError if the model has masks.

    ``torch.nn.utils.parametrize.remove_parametrizations`` is no remedy: it takes the weight from the class, which the
    layer shares with its copies.
    """
    if found := masked_layers(model):
        raise ValueError(
            f"{next(iter(found))!r} and {len(found) - 1} other layers are masked; {purpose} takes plain weights: "
            "give it make_permanent(model)"
        )


def with_masks(model: nn.Module, keep: Mapping[str, Tensor]) -> nn.Module:
    """Return a copy with masks.

    Args:
        model: some of its layers may have masks; they are kept, or replaced where ``keep`` has another.
        keep: layer's name to bool, the shape of its weight: True where it is kept.
    """
    masked = copy.deepcopy(model)
    for name, kept in keep.items():
        layer = masked.get_submodule(name)
        if mask_of(layer) is None:
            parametrize.register_parametrization(layer, WEIGHT, Mask(cast("Tensor", layer.weight).detach()))
        cast("Mask", mask_of(layer)).kept.copy_(kept)
    return masked


def make_permanent(model: nn.Module) -> nn.Module:
    """Return a copy without masks, whose weights are 0 where they were masked.

    It has the classes and the ``state_dict`` of the model before pruning, and forgets what was masked: trained on, its
    zeros become other numbers.

    Args:
        model: from ``prune_weights``, ``prune_2_4`` or ``prepare_gradual_pruning``, trained or not.

    Raises:
        ValueError: nothing is masked.
    """
    require_masks(model, "make_permanent", "call prune_weights or prune_2_4 first")
    plain = copy.deepcopy(model)
    for layer, _ in masked_layers(plain).values():
        _unmask(layer)
    return plain


def rewind(model: nn.Module, earlier: Mapping[str, Tensor]) -> nn.Module:
    """Return a copy with the masks of ``model`` and everything else as it was at an earlier time.

    The network found by pruning, trained again from there: from the start it is the lottery ticket (Frankle & Carbin
    2019, section 1), from an early epoch the form that works for larger networks (Frankle et al. 2020; Renda et al.
    2020, section 2, "weight rewinding"). Learning-rate rewinding (same section) needs no function: train the pruned
    network on with the schedule of the first training.

    Args:
        model: with masks.
        earlier: a ``state_dict`` of the same network, with masks or from before it had any.

    Raises:
        ValueError: nothing is masked; ``earlier`` lacks a tensor or has one of another shape.
    """
    require_masks(model, "rewind", "prune the trained network first")
    rewound = copy.deepcopy(model)
    state = rewound.state_dict()
    for name, now in state.items():
        if OF_MASK in name:
            continue
        plain = name.replace(ORIGINAL, WEIGHT)
        then = earlier.get(name, earlier.get(plain))
        if then is None or then.shape != now.shape:
            has = "lacks it" if then is None else f"has {list(then.shape)}"
            raise ValueError(
                f"{plain} has the shape {list(now.shape)}, and the earlier state {has}; "
                "give a state_dict of the same network"
            )
        state[name] = then
    rewound.load_state_dict(state)
    return rewound


def check_unless_masked(model: nn.Module, purpose: str) -> None:
    """Check a model as ``check_model`` does, except that it may have masks."""
    check_model(make_permanent(model) if isinstance(model, nn.Module) and masked_layers(model) else model, purpose)


def _unmask(layer: nn.Module) -> None:
    weight = cast("Tensor", layer.weight).detach().clone()
    trained = cast("Any", layer).parametrizations[WEIGHT].original.requires_grad
    del layer.parametrizations
    layer.__class__ = type(layer).__bases__[0]
    others = dict(layer.named_parameters(recurse=False))
    for name in others:
        delattr(layer, name)
    # An optimizer's state goes by the order of the parameters, in which the weight comes first.
    for name, parameter in {WEIGHT: nn.Parameter(weight, requires_grad=trained), **others}.items():
        layer.register_parameter(name, parameter)
