"""How much each channel matters: one score per channel of a group, from the weights or from gradients of the loss.

The scores are Torch-Pruning's, over all layers of the group, and divided by their mean, so that groups compare.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name that PyTorch code uses
from torch import Tensor, nn

from .checks import check_split
from .groups import Traced

Batches = Iterable[tuple[Tensor, Tensor]]
Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]
WEIGHTS, GRADIENTS = ("random", "l1", "l2", "bn_scale"), ("taylor", "hessian")
CRITERIA = (*WEIGHTS, *GRADIENTS)


def check_importance(importance: str, batches: Batches | None) -> None:
    """Raise ValueError for an unknown criterion, and where it needs batches and has none, or has the test split."""
    if importance not in CRITERIA:
        raise ValueError(f"importance is {importance!r}; choose one of {', '.join(CRITERIA)}")
    check_split(batches, "pruning")
    if importance in GRADIENTS and batches is None:
        raise ValueError(
            f"importance {importance!r} comes from gradients of the loss; give batches=[(images, labels), …], a few "
            "hundred training images"
        )


def channel_scores(
    traced: Traced, importance: str, *, batches: Batches | None = None, loss: Loss | None = None, seed: int = 0
) -> dict[str, Tensor]:
    """Score every channel of every group; the least goes first.

    - ``random``: uniform numbers, what a criterion has to beat.
    - ``l1``, ``l2``: the sum of |w| or w² over the group's weights that belong to the channel, averaged over its layers
      (Li et al. 2017 for one filter; Fang et al. 2023, section 3.3, for a group).
    - ``bn_scale``: |γ| of the group's batch norms (Liu et al. 2017, "network slimming").
    - ``taylor``: |w · ∂loss/∂w|, summed likewise and averaged over batches (Molchanov et al. 2019, section 3).
    - ``hessian``: w² · (∂loss/∂w)², averaged over images: the loss that removal adds, to second order, with the
      Fisher information as the diagonal of the Hessian (LeCun et al. 1990, "Optimal Brain Damage").

    Args:
        traced: the model's copy takes the gradients.
        importance: one of these.
        batches: images and labels, for ``taylor`` and ``hessian``.
        loss: ``loss(model, images, labels)``, a scalar; cross-entropy of ``model(images)`` when left out.
        seed: for ``random``.

    Returns:
        float64 [channels] for each group. ``bn_scale`` has none for a group without batch norm.

    Raises:
        ValueError: no group has a batch norm, or no gradient reaches the weights of a group.
    """
    if importance == "random":
        generator = torch.Generator().manual_seed(seed)
        return {
            name: torch.rand(group.channels, generator=generator, dtype=torch.float64)
            for name, group in traced.groups.items()
        }
    if importance in GRADIENTS:
        scores = _gradient_scores(traced, importance, batches or (), loss or _cross_entropy)
    else:
        scores = _scores(traced, _criterion(importance))
    if not scores:
        raise ValueError(
            "importance 'bn_scale' reads the scales of batch norms, and no group that can be pruned has one; use 'l2'"
        )
    return {name: score / score.mean() if score.mean() > 0 else score for name, score in scores.items()}


def _criterion(importance: str) -> Callable[[Any], Tensor | None]:
    import torch_pruning as tp

    return {
        "l1": lambda: tp.importance.GroupMagnitudeImportance(p=1, normalizer=None),
        "l2": lambda: tp.importance.GroupMagnitudeImportance(p=2, normalizer=None),
        "bn_scale": lambda: tp.importance.BNScaleImportance(normalizer=None),
        "taylor": lambda: tp.importance.GroupTaylorImportance(normalizer=None),
        "hessian": lambda: tp.importance.GroupHessianImportance(normalizer=None),
    }[importance]()


def _scores(traced: Traced, criterion: Callable[[Any], Tensor | None]) -> dict[str, Tensor]:
    found = {name: criterion(group) for name, group in traced.coupled.items()}
    return {name: score.double().cpu() for name, score in found.items() if score is not None}


def _gradient_scores(traced: Traced, importance: str, batches: Batches, loss: Loss) -> dict[str, Tensor]:
    model, criterion = traced.model, _criterion(importance)
    totals: dict[str, Tensor] = {}
    seen = 0
    for images, labels in batches:
        seen += 1
        _square_gradients(model, images, labels, loss) if importance == "hessian" else _gradients(
            model, images, labels, loss
        )
        _check_gradients(traced, importance)
        for name, score in _scores(traced, criterion).items():
            totals[name] = totals.get(name, 0) + score
    if not seen:
        raise ValueError(f"importance {importance!r} got no batch; give batches=[(images, labels), …]")
    return {name: total / seen for name, total in totals.items()}


def _cross_entropy(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(model(images), labels)


def _gradients(model: nn.Module, images: Tensor, labels: Tensor, loss: Loss) -> None:
    model.zero_grad()
    with torch.enable_grad():
        value = loss(model, images, labels)
        if not (isinstance(value, Tensor) and value.requires_grad):
            raise ValueError(
                "the loss has no gradient: loss(model, images, labels) must return a scalar tensor that is computed "
                "from model(images)"
            )
        value.backward()


def _square_gradients(model: nn.Module, images: Tensor, labels: Tensor, loss: Loss) -> None:
    """Leave in ``.grad`` the mean over images of the squared gradient.

    GroupHessianImportance.accumulate_grad of Torch-Pruning 1.6.1 would keep that of the last image only.
    """
    squares: dict[nn.Parameter, Tensor] = {}
    for image, label in zip(images.split(1), labels.split(1), strict=True):
        _gradients(model, image, label, loss)
        for parameter in model.parameters():
            if parameter.grad is not None:
                squares[parameter] = squares.get(parameter, torch.zeros_like(parameter)) + parameter.grad**2
    for parameter, square in squares.items():
        parameter.grad = square / len(images)


def _check_gradients(traced: Traced, importance: str) -> None:
    for group in traced.groups.values():
        for cut in group.cuts:
            for name, parameter in traced.model.get_submodule(cut.layer).named_parameters(prefix=cut.layer):
                if parameter.grad is None:
                    raise ValueError(
                        f"importance {importance!r} comes from gradients, and none reaches {name}: the loss must "
                        "depend on the whole model"
                    )
        if not any(p.grad.any() for p in traced.model.get_submodule(group.layer).parameters() if p.grad is not None):
            raise ValueError(f"importance {importance!r} comes from gradients, and those of {group.layer} are all zero")
