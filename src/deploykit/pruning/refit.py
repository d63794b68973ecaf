"""Healing without training: each layer of a pruned network is fitted, by least squares, to what it said before."""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .channels import check_belongs, kept_entries
from .checks import check_model, check_split, images_of
from .costs import evaluating
from .layers import CHANNELS, INPUTS, OUTPUTS, Weighted, is_depthwise, width
from .plan import PruningPlan

USUAL = "some hundreds of training images"
Said = tuple[Tensor, Tensor]  # of a batch: places, int64 [N, P], and what a layer says there, float [N, P, outputs]


def refit_layers(
    pruned: nn.Module,
    model: nn.Module,
    batches: Iterable[Any],
    *,
    plan: PruningPlan | None = None,
    places: int = 32,
    ridge: float = 1e-3,
    seed: int = 0,
) -> nn.Module:
    """Give the layers of a pruned network new weights, without labels and without gradients.

    One layer after the other, in the order in which they run: given what reaches it in the *pruned* network, it is to
    say what the same layer says in the full one, as nearly as a linear map can (He et al. 2017, "Channel Pruning for
    Accelerating Very Deep Neural Networks", section 3.1; that each fit sees the errors of those before it is from Zhang
    et al. 2016, "Accelerating Very Deep Convolutional Networks", section 3.3). So the channels that are left take over
    what those that are gone have contributed, and the statistics of batch norm are right again as they are.

    Args:
        pruned: what :func:`~.channels.prune_channels` or :func:`~.blocks.prune_blocks` made of ``model``, in any mode;
            it is not changed.
        model: the full network; it is not changed.
        batches: images of the training split, float32 [N, C, H, W], or pairs of images and labels, on the device of the
            networks. Some hundreds of images do for CIFAR-10.
        plan: from the one to the other; left out where blocks were removed and all other layers are whole.
        places: of a layer's output that are looked at in each image, drawn at random; all where there are fewer.
        ridge: how strongly weights are held to what pruning left of them, over the mean square of the layer's inputs;
            above 0.
        seed: for the places.

    Returns:
        A copy of ``pruned``. Refitted are, from the first layer on that is given something else than before, linear
        layers and convolutions in two dimensions without groups; frozen layers and those that run more than once are as
        they were.

    Raises:
        ValueError: no image, images of the test split, an option out of range, a plan that belongs to another model, or
            a network that was not pruned by this plan, or not without one.
    """
    check_split(batches, "refit_layers")
    if places < 1 or ridge <= 0:
        raise ValueError(f"places is {places} and ridge {ridge}; give at least 1 place and a ridge above 0")
    for network in (pruned, model):
        check_model(network, "refit_layers")
    kept = {}
    if plan is not None:
        check_belongs(model, plan)
        kept = kept_entries(plan.cuts())
    _check_leads_to(pruned, model, kept)
    images = images_of(batches, "refit_layers", usual=USUAL)
    return refitted_copy(pruned, model, images, kept, places=places, ridge=ridge, seed=seed)


def refitted_copy(
    pruned: nn.Module,
    model: nn.Module,
    images: Sequence[Tensor],
    kept: Mapping[tuple[str, str], Tensor],
    *,
    places: int = 32,
    ridge: float = 1e-3,
    seed: int = 0,
) -> nn.Module:
    """Do the work of :func:`refit_layers`; ``kept`` has the entries that stayed, by (layer, side)."""
    refitted = copy.deepcopy(pruned)
    with evaluating(model), evaluating(refitted):
        names = _to_refit(refitted, model, images[0])
        wanted = _wanted(model, names, images, most=places, generator=torch.Generator().manual_seed(seed))
        for name in names:
            layer, rows = refitted.get_submodule(name), kept.get((name, OUTPUTS), slice(None))
            _fit(
                layer,
                (
                    (_at(_inputs(layer, _reaching(refitted, layer, batch)), where), said[..., rows])
                    for batch, (where, said) in zip(images, wanted[name], strict=True)
                ),
                ridge,
            )
    return refitted


def _check_leads_to(pruned: nn.Module, model: nn.Module, kept: Mapping[tuple[str, str], Tensor]) -> None:
    """Raise ValueError unless the layers of ``pruned`` are those of ``model`` with the entries that are to be kept."""
    layers = dict(model.named_modules())
    for name, layer in pruned.named_modules():
        if not isinstance(layer, Weighted):
            continue
        full = layers.get(name, nn.Identity())
        for side in (CHANNELS,) if is_depthwise(full) else (INPUTS, OUTPUTS):
            wanted = len(kept.get((name, side), range(width(full, side))))
            if width(layer, side) != wanted:
                raise ValueError(
                    f"this {type(pruned).__name__} is not the {type(model).__name__} as the plan prunes it: {name} has "
                    f"{width(layer, side)} {side}, not {wanted}; give the plan by which channels were removed, and "
                    "none where blocks were"
                )


def _to_refit(pruned: nn.Module, model: nn.Module, images: Tensor) -> Sequence[str]:
    """Return the names of what can be fitted, as it runs, from the first layer on that is given other values."""
    calls: list[str] = []
    hooks = [
        layer.register_forward_hook(lambda *_, name=name: calls.append(name))
        for name, layer in pruned.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
    ]
    try:
        pruned(images)
    finally:
        for hook in hooks:
            hook.remove()
    networks = (pruned, model)
    same = itertools.takewhile(
        lambda name: torch.equal(*(_reaching(one, one.get_submodule(name), images) for one in networks)), calls
    )
    changed = calls[len(list(same)) :]
    return [
        name
        for name in changed
        if calls.count(name) == 1
        and _is_plain(model.get_submodule(name))
        and all(parameter.requires_grad for parameter in pruned.get_submodule(name).parameters())
    ]


def _is_plain(layer: Any) -> bool:
    """Tell whether each output is a sum over all inputs, in patches that ``unfold`` can make."""
    if isinstance(layer, nn.Linear):
        return True
    return layer.groups == 1 and isinstance(layer.padding, tuple) and layer.padding_mode == "zeros"


def _wanted(
    model: nn.Module, names: Sequence[str], images: Sequence[Tensor], *, most: int, generator: torch.Generator
) -> dict[str, list[Said]]:
    """Run the full model over all images and note what each layer says, in places of its own in each image."""
    noted: dict[str, list[Said]] = {name: [] for name in names}

    def note(name: str, layer: nn.Module, said: Tensor) -> None:
        said = _outputs(layer, said)
        where = torch.rand(said.shape[:2], generator=generator).argsort(dim=1)[:, :most].to(said.device)
        noted[name].append((where, _at(said, where)))

    hooks = [
        model.get_submodule(name).register_forward_hook(lambda layer, _, said, name=name: note(name, layer, said))
        for name in names
    ]
    try:
        for batch in images:
            model(batch)
    finally:
        for hook in hooks:
            hook.remove()
    return noted


class _Reached(Exception):  # noqa: N818 - it is no error
    """Ends a forward pass where nothing more is wanted of it."""


def _reaching(model: nn.Module, layer: nn.Module, images: Tensor) -> Tensor:
    """Return what a layer is given, and run the model no further."""
    found: list[Tensor] = []

    def note(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        found.append(given[0])
        raise _Reached

    hook = layer.register_forward_pre_hook(note)
    try:
        with contextlib.suppress(_Reached):
            model(images)
    finally:
        hook.remove()
    return found[0]


def _inputs(layer: Any, given: Tensor) -> Tensor:
    """Return what is multiplied by the weights, float [N, places, weights of an output]."""
    if isinstance(layer, nn.Linear):
        return _outputs(layer, given)
    return functional.unfold(given, layer.kernel_size, layer.dilation, layer.padding, layer.stride).transpose(1, 2)


def _outputs(layer: nn.Module, said: Tensor) -> Tensor:
    """Return what comes of it, float [N, places, outputs]; a linear layer that is given vectors has one place."""
    if isinstance(layer, nn.Linear):
        return said.reshape(len(said), -1, said.shape[-1])
    return said.flatten(2).transpose(1, 2)


def _at(values: Tensor, where: Tensor) -> Tensor:
    return values.gather(1, where.unsqueeze(2).expand(-1, -1, values.shape[2]))


def _fit(layer: Any, pairs: Iterable[tuple[Tensor, Tensor]], ridge: float) -> None:
    """Set the weights, and the bias where there is one, that map inputs to outputs best; pairs as [N, P, …]."""
    now = layer.weight.flatten(1).T
    if layer.bias is not None:
        now = torch.cat([now, layer.bias.unsqueeze(0)])
    now = now.double()
    squares, products = now.new_zeros(len(now), len(now)), torch.zeros_like(now)
    for given, said in pairs:
        x, y = given.flatten(0, 1), said.flatten(0, 1)
        if layer.bias is not None:
            x = torch.cat([x, x.new_ones(len(x), 1)], dim=1)
        squares += x.T @ x
        products += x.T @ y
    held = ridge * squares.diagonal().mean() * torch.eye(len(now), dtype=now.dtype, device=now.device)
    best = torch.linalg.solve(squares + held, products + held @ now)
    layer.weight.copy_(best[: layer.weight[0].numel()].T.reshape(layer.weight.shape))
    if layer.bias is not None:
        layer.bias.copy_(best[-1])
