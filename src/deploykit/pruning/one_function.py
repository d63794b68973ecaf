"""Channel pruning in one function, for pasting: Torch-Pruning's own pruner, in small steps down to a target."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

STEPS = 200  # towards a tenth of the channels; each then removes less than half a percent of them


def prune_to_macs(
    model: nn.Module, example_input: Tensor, target_macs: int, *, keep: tuple[nn.Module, ...]
) -> nn.Module:
    """Return a copy of ``model`` without channels, the least L2 norm first, until ``target_macs`` are left.

    What hangs together is cut together (Fang et al. 2023, "DepGraph"), and all channels stand in one ranking.
    The statistics of batch norm are those of the full network: estimate them anew with
    ``torch.optim.swa_utils.update_bn`` on training images, or fine-tune, before judging the accuracy.

    Args:
        model: in evaluation mode, every parameter with ``requires_grad``; it is not changed.
        example_input: float32 [1, C, H, W].
        target_macs: multiply-accumulates of one image, half of what ``torch.utils.flop_counter`` counts.
        keep: layers of ``model`` whose outputs stay: the classifier.

    Raises:
        ValueError: the target is not reached: it is too low, or nothing could be pruned.
    """
    import torch_pruning as tp

    pruned = copy.deepcopy(model)
    names = [name for name, module in model.named_modules() if any(module is kept for kept in keep)]
    pruner = tp.pruner.BasePruner(
        pruned,
        example_input,
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        global_pruning=True,
        pruning_ratio=0.9,
        iterative_steps=STEPS,
        ignored_layers=[pruned.get_submodule(name) for name in names],
    )
    macs = 0
    for _ in range(STEPS):
        pruner.step()
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            pruned(example_input)
        macs = counter.get_total_flops() // 2
        if macs <= target_macs:
            return pruned
    raise ValueError(
        f"{macs:,} multiply-accumulates are left and {target_macs:,} were wanted; frozen weights stay whole"
    )
