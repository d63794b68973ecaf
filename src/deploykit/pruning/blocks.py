"""Removing whole blocks: where a network adds to what it was given, nothing but the addition has to stay."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .checks import check_model, check_runs, check_split, images_of
from .costs import answers, count_macs, evaluating
from .layers import Weighted

if TYPE_CHECKING:
    import pandas as pd


def removable_blocks(model: nn.Module, example_input: Tensor) -> tuple[str, ...]:
    """Find the residual blocks that an identity could replace.

    With all its weights zero, a residual block hands on its input as it is; a block with a projection, a plain stack of
    layers or a squeeze-and-excitation does not. That is tried on what each block is given in one forward pass.

    Args:
        model: is not changed.
        example_input: what it processes, images float32 [N, C, H, W] as a rule.

    Returns:
        Names in ``model.named_modules()``, in the model's order; the outermost only, so a stage (``nn.Sequential``) of
        blocks is given as its blocks.
    """
    check_model(model, "removable_blocks")
    check_runs(model, example_input)
    model = copy.deepcopy(model)
    given = _inputs(model, example_input)
    found: list[str] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{block}.") for block in found)
        candidate = name in given and not inside and not isinstance(module, nn.Sequential)
        if candidate and _hands_on(module, given[name]):
            found.append(name)
    return tuple(found)


def prune_blocks(model: nn.Module, names: Sequence[str], *, example_input: Tensor) -> nn.Module:
    """Return a copy of the model with ``nn.Identity`` in the place of residual blocks.

    Args:
        model: is not changed.
        names: of blocks among :func:`removable_blocks`.
        example_input: as there.

    Raises:
        ValueError: no name, or one of something that an identity cannot replace.
    """
    if isinstance(names, str):
        raise TypeError(f"names is the text {names!r}; give a list of names: [{names!r}]")
    there = removable_blocks(model, example_input)
    if not names:
        raise ValueError(f"no block is named, so nothing would be removed; there are {', '.join(there) or 'none'}")
    for name in names:
        if name not in there:
            raise ValueError(
                f"{name} cannot be replaced by an identity: it is no residual block without a projection; "
                f"those are {', '.join(there) or 'none'}"
            )
    return _without(model, names)


def block_importance(model: nn.Module, batches: Iterable[Any], *, example_input: Tensor) -> pd.DataFrame:
    """Remove each removable block alone and see on how many images the answer stays the same.

    Args:
        model: is not changed.
        batches: images, float32 [N, C, H, W], or pairs of images and labels; not the test split, because the table is
            there to choose by.
        example_input: as in :func:`removable_blocks`.

    Returns:
        A row for each block, the least important first: block, agreement (share of images with the full model's
        answer), macs_share (of the network's MACs that go with it).

    Raises:
        ValueError: no block can be removed, there is no image, or the images are of the test split.
    """
    import pandas as pd

    check_split(batches, "block_importance")
    images = images_of(batches, "block_importance", usual="a few hundred validation images")
    names = removable_blocks(model, example_input)
    if not names:
        raise ValueError(f"{type(model).__name__} has no residual block without a projection: no block can be removed")
    macs, full = count_macs(model, example_input), answers(model, images).argmax(1)
    rows = []
    for name in names:
        pruned = _without(model, [name])
        agreement = (answers(pruned, images).argmax(1) == full).double().mean().item()
        rows.append((name, agreement, 1 - count_macs(pruned, example_input) / macs))
    table = pd.DataFrame(rows, columns=["block", "agreement", "macs_share"])
    return table.sort_values("agreement", ascending=False, kind="stable", ignore_index=True)


def _without(model: nn.Module, names: Iterable[str]) -> nn.Module:
    pruned = copy.deepcopy(model)
    for name in names:
        pruned.set_submodule(name, nn.Identity().train(model.get_submodule(name).training))
    return pruned


def _inputs(model: nn.Module, example_input: Tensor) -> dict[str, Tensor]:
    """Run the model and keep what each module that maps one tensor to one of the same shape was given."""
    given: dict[str, Tensor] = {}

    def note(name: str, arguments: tuple[Any, ...], result: Any) -> None:
        alone = len(arguments) == 1 and isinstance(arguments[0], Tensor) and isinstance(result, Tensor)
        if alone and arguments[0].shape == result.shape:
            given[name] = arguments[0].clone()  # an activation in place may change it

    hooks = [
        module.register_forward_hook(lambda _, arguments, result, name=name: note(name, arguments, result))
        for name, module in model.named_modules()
        if name and any(isinstance(inner, Weighted) for inner in module.modules())
    ]
    with evaluating(model):
        model(example_input[:1])
    for hook in hooks:
        hook.remove()
    return given


def _hands_on(module: nn.Module, values: Tensor) -> bool:
    silent = copy.deepcopy(module)
    with evaluating(silent):
        for parameter in silent.parameters():
            parameter.zero_()
        return torch.equal(silent(values.clone()), values)
