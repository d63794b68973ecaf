"""Pruning in steps with training between."""

from __future__ import annotations

import pytest
import torch
from small_residual import SmallResidual, images, state

pytest.importorskip("torch_pruning")

from deploykit.cost import macs
from deploykit.pruning.channels import prune_channels
from deploykit.pruning.iterative import prune_iteratively
from deploykit.pruning.planning import plan_pruning

FULL = 87_584  # multiply-accumulates of the small residual network


def test_macs_fall_by_the_same_factor():
    """Two steps to a quarter: half, and half of that, as near as eight channels allow."""
    seen = []
    pruned = prune_iteratively(
        SmallResidual(),
        images(1),
        target_macs=FULL // 4,
        steps=2,
        fine_tune=lambda model: seen.append(macs(model, images(1))),
    )

    assert seen[0] == pytest.approx(FULL / 2, rel=0.15)
    assert seen[1] == macs(pruned, images(1)) == pytest.approx(FULL / 4, rel=0.15)


def test_one_step_is_pruning_at_once():
    """Then fine-tuning."""
    torch.manual_seed(0)
    model = SmallResidual()
    once = prune_channels(model, plan_pruning(model, images(1), target_macs=40_000, importance="l1"))
    steps = prune_iteratively(model, images(1), target_macs=40_000, steps=1, fine_tune=lambda _: None, importance="l1")

    assert all(torch.equal(value, steps.state_dict()[name]) for name, value in once.state_dict().items())


def test_scores_are_taken_anew():
    """Training between the steps turns the order round: then filters go that would have stayed."""
    model = SmallResidual()
    with torch.no_grad():
        model.conv1.weight.normal_().mul_(torch.arange(1.0, 9.0).view(8, 1, 1, 1))
        model.bn1.bias.copy_(torch.arange(8.0))  # no criterion reads it: the number of each filter

    def turn_round(pruned):
        with torch.no_grad():
            pruned.conv1.weight.mul_((8 - pruned.bn1.bias.view(-1, 1, 1, 1)) ** 2)

    options = {"target_macs": 30_000, "steps": 2, "ignore": ["stem"]}
    kept = prune_iteratively(model, images(1), fine_tune=lambda _: None, **options)
    turned = prune_iteratively(model, images(1), fine_tune=turn_round, **options)

    assert kept.bn1.bias.tolist() == [6, 7]
    assert max(turned.bn1.bias.tolist()) < 6


def test_the_model_is_not_changed():
    """Fine-tuning gets a copy each time."""
    model = SmallResidual()
    before = state(model)

    def zero(pruned):
        for parameter in pruned.parameters():
            parameter.data.zero_()

    prune_iteratively(model, images(1), target_macs=40_000, steps=1, fine_tune=zero)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_macs": 40_000, "steps": 0}, r"steps is 0; give at least 1"),
        ({"target_macs": FULL, "steps": 2}, r"target_macs is 87,584; give a number below the 87,584 of the model"),
        ({"target_macs": 0, "steps": 2}, r"target_macs is 0; give a number below"),
        ({"target_macs": 9, "steps": 2}, r"cannot be reached: every group keeps at least 1"),
    ],
)
def test_refused(options, message):
    """Before any training, but for a target that a later step cannot reach."""
    with pytest.raises(ValueError, match=message):
        prune_iteratively(SmallResidual(), images(1), fine_tune=lambda _: None, **options)
