"""Which groups suffer from pruning: one group at a time loses channels, and the whole network is looked at."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .channels import cut
from .checks import check_fraction, check_split
from .costs import answers, count_macs
from .groups import Group, require_groups, trace
from .importance import channel_scores, check_importance
from .selection import lowest

if TYPE_CHECKING:
    import pandas as pd


def pruning_sensitivity(
    model: nn.Module,
    example_input: Tensor,
    validation: Iterable[tuple[Tensor, Tensor]],
    *,
    ratios: Sequence[float] = (0.25, 0.5, 0.75),
    importance: str = "l2",
    mend: Callable[[nn.Module], nn.Module] | None = None,
    **options: Any,
) -> pd.DataFrame:
    """Remove a share of the channels of each group alone, without training, and measure what the network loses.

    Args:
        model: is not changed; it is measured in evaluation mode.
        example_input: what it processes, images float32 [N, C, H, W] as a rule.
        validation: batches of images and labels, not the test split, because the table is there to choose by.
        ratios: shares of a group's channels, each 0 < ratio < 1; at least one channel goes, and one stays.
        importance: the criterion by which they go: see :func:`~.importance.channel_scores`.
        mend: what is done to each pruned copy before it is measured: new statistics for its batch norms, which
            otherwise are a good part of what is lost. Nothing when left out.
        options: batches, loss and seed, as there.

    Returns:
        A row for each group and ratio: layer (the one that leads the group), ratio, channels, kept, macs_share (of the
        network's MACs that goes), accuracy_drop (in points, against the full model) and agreement (share of images with
        the full model's answer).

    Raises:
        ValueError: the test split, no image, a ratio out of range, or a model without a channel that can go.
    """
    import pandas as pd

    check_split(validation, "pruning_sensitivity")
    for ratio in ratios:
        check_fraction("ratio", ratio)
    pairs = list(validation)
    if not pairs:
        raise ValueError("pruning_sensitivity got no image; a few hundred validation images are usual")
    check_importance(importance, options.get("batches"))
    traced = trace(model, example_input)
    require_groups(traced, "pruning_sensitivity")
    scores = channel_scores(traced, importance, **options)
    images, labels = [images for images, _ in pairs], torch.cat([labels for _, labels in pairs])
    full, macs = answers(traced.model, images), count_macs(traced.model, example_input)
    rows = []
    for name, score in scores.items():
        for ratio in ratios:
            pruned, kept = _without(traced.model, traced.groups[name], score, ratio)
            found = answers(pruned if mend is None else mend(pruned), images)
            drop = 100 * ((full == labels).double().mean() - (found == labels).double().mean()).item()
            share = 1 - count_macs(pruned, example_input) / macs
            rows.append((name, ratio, len(score), kept, share, drop, (found == full).double().mean().item()))
    columns = ["layer", "ratio", "channels", "kept", "macs_share", "accuracy_drop", "agreement"]
    return pd.DataFrame(rows, columns=columns)


def _without(model: nn.Module, group: Group, score: Tensor, ratio: float) -> tuple[nn.Module, int]:
    count = min(max(round(ratio * group.channels), 1), group.channels - 1)
    gone = lowest(score, count)
    pruned = copy.deepcopy(model)
    cut(pruned, ((one, [entry for channel in gone for entry in one.entries[channel]]) for one in group.cuts))
    return pruned, group.channels - count
