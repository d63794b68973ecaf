"""Two ways to a smaller network: without the blocks that are missed least, or with narrower layers."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from deploykit.cost import macs
from deploykit.pruning.blocks import block_importance, prune_blocks
from deploykit.pruning.channels import prune_channels
from deploykit.pruning.planning import plan_pruning
from deploykit.pruning.refit import refit_layers

MOST_OF_THE_MACS = 0.35  # that may go with the blocks: three of ResNet-20's nine
ROUND_TO = 8  # kernels work in blocks of channels
PIXELS_IN_A_BATCH = 128 * 32 * 32
LEAST_BATCH = 16


def without_blocks(model: nn.Module, images: Tensor) -> tuple[nn.Module, str]:
    """Take out the residual blocks that are missed least, one at least, with about a third of the MACs at most.

    Args:
        model: is not changed.
        images: of the training split, float32 [N, 3, H, W].

    Returns:
        The smaller network, refitted on the images and untaught, and what went.

    Raises:
        ValueError: no block can be removed.
    """
    names: list[str] = []
    gone = 0.0
    batches = images.split(batch_size(images.shape[-1]))
    for row in block_importance(model, batches, example_input=images[:1]).itertuples():
        if not names or gone + row.macs_share <= MOST_OF_THE_MACS:
            names.append(str(row.block))
            gone += float(row.macs_share)
    pruned = prune_blocks(model, names, example_input=images[:1])
    return refit_layers(pruned, model, batches), f"without {', '.join(sorted(names))}"


def with_fewer_channels(model: nn.Module, images: Tensor) -> tuple[nn.Module, str]:
    """Take out channels of small weights, where that saves the most, until half of the MACs are left.

    Args:
        model: is not changed.
        images: of the training split, float32 [N, 3, H, W].

    Returns:
        The smaller network, refitted on the images and untaught, and what went.

    Raises:
        ValueError: its channels cannot be removed, or not so many.
        ImportError: Torch-Pruning is missing.
    """
    example = images[:1]
    plan = plan_pruning(model, example, target_macs=macs(model, example) // 2, round_to=ROUND_TO, scope="cost")
    gone = sum(len(removal.channels) for removal in plan.removals)
    channels = sum(removal.group.channels for removal in plan.removals)
    refitted = refit_layers(prune_channels(model, plan), model, images.split(batch_size(images.shape[-1])), plan=plan)
    return refitted, f"without {gone:,} of {channels:,} channels"


SHRINK: dict[str, Callable[[nn.Module, Tensor], tuple[nn.Module, str]]] = {
    "fewer blocks": without_blocks,
    "fewer channels": with_fewer_channels,
}


def batch_size(side: int) -> int:
    """Return how many images of this side, in pixels, are worked on at once."""
    return max(LEAST_BATCH, PIXELS_IN_A_BATCH // side**2)
