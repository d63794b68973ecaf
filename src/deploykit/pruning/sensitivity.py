"""Which groups suffer from pruning: one group at a time loses channels, and the whole network is looked at."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .channels import cut, kept_entries
from .checks import check_fraction, check_split, images_of
from .costs import answers, count_macs
from .groups import require_groups, trace
from .importance import channel_scores, check_importance
from .plan import Removal
from .refit import USUAL, refitted_copy
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
    refit: Iterable[Any] | None = None,
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
        refit: training images, or pairs of images and labels, on which the layers of each pruned copy are refitted
            before it is measured: see :func:`~.refit.refit_layers`.
        mend: what else is done to each pruned copy before it is measured: new statistics for its batch norms, which
            otherwise are a good part of what is lost. Nothing when left out.
        options: batches, loss and seed, as there.

    Returns:
        A row for each group and ratio: layer (the one that leads the group), ratio, channels, kept, macs_share (of the
        network's MACs that goes), accuracy_drop (in points, against the full model), agreement (share of images with
        the full model's answer) and divergence (the mean over images of KL(full || pruned), in nats).

    Raises:
        ValueError: the test split, no image, a ratio out of range, or a model without a channel that can go.
    """
    import pandas as pd

    for split in (validation, refit):
        check_split(split, "pruning_sensitivity")
    for ratio in ratios:
        check_fraction("ratio", ratio)
    pairs = list(validation)
    if not pairs:
        raise ValueError("pruning_sensitivity got no image; a few hundred validation images are usual")
    shown = None if refit is None else images_of(refit, "pruning_sensitivity", usual=USUAL)
    check_importance(importance, options.get("batches"))
    traced = trace(model, example_input)
    require_groups(traced, "pruning_sensitivity")
    scores = channel_scores(traced, importance, **options)
    images, labels = [images for images, _ in pairs], torch.cat([labels for _, labels in pairs])
    full, macs = answers(traced.model, images), count_macs(traced.model, example_input)
    rows = []
    for name, score in scores.items():
        for ratio in ratios:
            gone = lowest(score, min(max(round(ratio * len(score)), 1), len(score) - 1))
            cuts = list(Removal(traced.groups[name], gone).cuts())
            pruned: nn.Module = copy.deepcopy(traced.model)
            cut(pruned, cuts)
            share = 1 - count_macs(pruned, example_input) / macs
            if shown is not None:
                pruned = refitted_copy(pruned, traced.model, shown, kept_entries(cuts))
            found = answers(pruned if mend is None else mend(pruned), images)
            rows.append((name, ratio, len(score), len(score) - len(gone), share, *_lost(full, found, labels)))
    columns = ["layer", "ratio", "channels", "kept", "macs_share", "accuracy_drop", "agreement", "divergence"]
    return pd.DataFrame(rows, columns=columns)


def _lost(full: Tensor, found: Tensor, labels: Tensor) -> tuple[float, float, float]:
    """Return what logits lose against those of the full model: points of accuracy, agreement and divergence."""
    before, after = full.argmax(1), found.argmax(1)
    drop = 100 * ((before == labels).double().mean() - (after == labels).double().mean()).item()
    agreement = (after == before).double().mean().item()
    said, wanted = (logits.double().log_softmax(1) for logits in (found, full))
    return drop, agreement, functional.kl_div(said, wanted, log_target=True, reduction="batchmean").item()
