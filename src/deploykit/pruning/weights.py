"""Unstructured pruning: the single weights of smallest magnitude become 0, one at a time, wherever they are."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import cast

import torch
from torch import Tensor, nn

from .checks import check_fraction
from .masks import check_unless_masked, mask_of, with_masks
from .prunable import PRUNABLE, layers_to_prune

SCOPES = ("global", "layer")
LOST = -1.0  # the magnitude of a masked weight: below every other, so that it is the first to go again


def prune_weights(
    model: nn.Module,
    *,
    sparsity: float | None = None,
    threshold: float | None = None,
    scope: str = "global",
    layers: tuple[type[nn.Module], ...] = PRUNABLE,
    ignore: Collection[str] = (),
) -> nn.Module:
    """Return a copy whose weights of smallest magnitude are masked: 0, and 0 they stay (Han et al. 2015, section 3).

    The masks are parametrizations: each weight is computed from its mask in every forward pass, so no momentum and no
    weight decay revives it, and any training loop will do. ``make_permanent`` turns the result into a plain network.
    A network with masks can be pruned further (iterative pruning); what is lost stays lost.

    Args:
        model: float; it is not changed.
        sparsity: share of the weights of these layers that are 0 in the result, in [0, 1). Give this or ``threshold``.
        threshold: weights below it are masked; with scope "layer", in standard deviations of the layer's weights
            (Han et al. 2015, section 4).
        scope: "global" compares all weights of the network, so that layers end with different sparsities; "layer"
            compares those of a layer, and gives each the same.
        layers: classes of layers whose ``weight`` is pruned. Biases and batch norms are few, and are left.
        ignore: names of modules that are left alone, with all that is in them: "conv", "blocks.0".

    Raises:
        TypeError: the model is no ``torch.nn.Module``.
        ValueError: neither or both of sparsity and threshold, or one out of range; an unknown scope; a name of no
            module; no layer to prune; NaN; nothing would be pruned, or a layer would lose all weights.
    """
    _check_wish(sparsity, threshold, scope)
    check_unless_masked(model, "pruning")
    found = layers_to_prune(model, layers=layers, ignore=ignore)
    sizes = magnitudes(found)
    if sparsity is not None:
        keep = keep_largest(sizes, sparsity, scope=scope)
        _refuse_nothing(keep, sizes, sparsity)
    else:
        keep = _keep_above(found, sizes, cast("float", threshold), scope=scope)
    return with_masks(model, keep)


def magnitudes(found: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Return the magnitude of each weight, with -1 for those that are masked, by the layer's name."""
    sizes = {}
    for name, layer in found.items():
        sizes[name] = cast("Tensor", layer.weight).detach().abs()
        if mask := mask_of(layer):
            sizes[name] = sizes[name].masked_fill(~mask.keeps(), LOST)
    return sizes


def keep_largest(sizes: Mapping[str, Tensor], sparsity: float, *, scope: str) -> dict[str, Tensor]:
    """Return which weights are kept when the smallest are not.

    Args:
        sizes: from :func:`magnitudes`. Among equals, the one that comes first goes first.
        sparsity: share of the weights that go, rounded to a whole number of them, of each layer or of all.
        scope: "global" or "layer".

    Returns:
        Layer's name to bool, the shape of its weight.

    Raises:
        ValueError: a layer would lose all weights.
    """
    if scope == "layer":
        keep = {name: _largest(size.flatten(), sparsity).view(size.shape) for name, size in sizes.items()}
    else:
        flat = _largest(torch.cat([size.flatten() for size in sizes.values()]), sparsity)
        parts = flat.split([size.numel() for size in sizes.values()])
        keep = {name: part.view(size.shape) for part, (name, size) in zip(parts, sizes.items(), strict=True)}
    keep = {name: kept & (sizes[name] > LOST) for name, kept in keep.items()}
    _refuse_empty(keep, f"sparsity {sparsity:g} (scope {scope!r})")
    return keep


def _refuse_empty(keep: Mapping[str, Tensor], wish: str) -> None:
    """Raise ValueError if a layer would have no weight left: it would answer every image with the same."""
    if empty := [name for name, kept in keep.items() if not kept.any()]:
        raise ValueError(
            f"{wish} leaves no weight in {', '.join(empty[:3])}; give less, put the layer into ignore, "
            "or compare within each layer (scope='layer')"
        )


def _largest(sizes: Tensor, sparsity: float) -> Tensor:
    keep = torch.ones_like(sizes, dtype=torch.bool)
    keep[sizes.argsort(stable=True)[: round(sparsity * len(sizes))]] = False
    return keep


def _keep_above(
    found: Mapping[str, nn.Module], sizes: Mapping[str, Tensor], threshold: float, *, scope: str
) -> dict[str, Tensor]:
    # Masked weights do not belong to the distribution whose spread is the unit.
    unmasked = {name: size > LOST for name, size in sizes.items()}
    if scope == "layer":
        spread = {name: cast("Tensor", found[name].weight).detach()[unmasked[name]].std(correction=0) for name in sizes}
        sizes = {name: size.where(~unmasked[name], size / spread[name]) for name, size in sizes.items()}
    keep = {name: size >= threshold for name, size in sizes.items()}
    measured = torch.cat([size[unmasked[name]] for name, size in sizes.items()])
    pruned = measured < threshold
    if bool(pruned.all()) or not bool(pruned.any()):
        what = "everything" if bool(pruned.all()) else "nothing"
        unit = "standard deviations of their layer" if scope == "layer" else "magnitude"
        raise ValueError(
            f"threshold {threshold:g} prunes {what}: the weights go from {float(measured.min()):.3g} to "
            f"{float(measured.max()):.3g} in {unit}, half of them are below {float(measured.median()):.3g}"
        )
    _refuse_empty(keep, f"threshold {threshold:g} (scope {scope!r})")
    return keep


def _refuse_nothing(keep: Mapping[str, Tensor], sizes: Mapping[str, Tensor], sparsity: float) -> None:
    if not any(bool((sizes[name][~kept] > LOST).any()) for name, kept in keep.items()):
        lost = sum(int((size == LOST).sum()) for size in sizes.values())
        share = lost / sum(size.numel() for size in sizes.values())
        raise ValueError(
            f"sparsity {sparsity:g} prunes nothing: {share:.1%} of these weights are masked already, and what is lost "
            "stays lost; give more, or start from the network without masks"
        )


def _check_wish(sparsity: float | None, threshold: float | None, scope: str) -> None:
    if (sparsity is None) == (threshold is None):
        given = "neither" if sparsity is None else "both"
        raise ValueError(f"{given} of sparsity and threshold given; give one: sparsity=0.8, or threshold=0.01")
    if sparsity is not None:
        check_fraction("sparsity", sparsity)
    if threshold is not None and not threshold > 0:
        raise ValueError(f"threshold is {threshold}; give a magnitude above 0: weights below it are pruned")
    if scope not in SCOPES:
        raise ValueError(f"scope {scope!r} is unknown; use 'global' or 'layer'")
