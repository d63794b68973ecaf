"""Pruning in steps, with training between: each step removes as large a share of the MACs as the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from .channels import prune_channels
from .checks import check_model, check_runs
from .costs import count_macs
from .planning import plan_pruning


def prune_iteratively(
    model: nn.Module,
    example_input: Tensor,
    *,
    target_macs: int,
    steps: int,
    fine_tune: Callable[[nn.Module], None],
    **options: Any,
) -> nn.Module:
    """Plan, prune and fine-tune ``steps`` times; MACs fall by the same factor each time, and scores are taken anew.

    Args:
        model: is not changed.
        example_input: what it processes, images float32 [N, C, H, W] as a rule.
        target_macs: multiply-accumulates of one image at the end.
        steps: at least 1, which is pruning at once and fine-tuning.
        fine_tune: trains the module that it is given, in place; called after every step, the last one too.
        options: of :func:`~.planning.plan_pruning`: importance, ignore, round_to, scope, batches, loss, seed.

    Returns:
        The pruned and fine-tuned module, in the mode that ``fine_tune`` left it in.

    Raises:
        ValueError: no step, a target that is not below the model's MACs, or what the plan refuses; the last also from
            a later step, whose groups ``round_to`` may leave without a lower width.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}; give at least 1")
    check_model(model, "pruning")
    check_runs(model, example_input)
    macs = count_macs(model, example_input)
    if not 1 <= target_macs < macs:
        raise ValueError(f"target_macs is {target_macs:,}; give a number below the {macs:,} of the model")
    for step in range(1, steps + 1):
        target = round(macs * (target_macs / macs) ** (step / steps))
        plan = plan_pruning(model, example_input, target_macs=target, **options)
        model = prune_channels(model, plan)
        fine_tune(model)
    return model
