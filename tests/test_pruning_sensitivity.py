"""Sensitivity: each group alone loses channels, and the answers are counted."""

from __future__ import annotations

import pytest
import torch
from small_residual import SmallResidual, images, state
from torch import nn

pytest.importorskip("torch_pruning")

from deploykit.cost import macs
from deploykit.pruning.channels import prune_channels
from deploykit.pruning.planning import plan_pruning
from deploykit.pruning.refit import refit_layers
from deploykit.pruning.sensitivity import pruning_sensitivity

LABELS = torch.arange(32) % 4
VALIDATION = [(images(32, seed=1)[:16], LABELS[:16]), (images(32, seed=1)[16:], LABELS[16:])]


@pytest.fixture
def model():
    """The small residual network."""
    torch.manual_seed(0)
    return SmallResidual().eval()


def test_one_row_for_each_group_and_ratio(model):
    """In the model's order, with the widths; MACs as counted by hand: conv1's inner channels are 9 * 8 * 64 twice."""
    table = pruning_sensitivity(model, images(1), VALIDATION, ratios=(0.25, 0.5))

    assert table[["layer", "ratio", "channels", "kept"]].to_numpy().tolist() == [
        ["stem", 0.25, 8, 6],
        ["stem", 0.5, 8, 4],
        ["conv1", 0.25, 8, 6],
        ["conv1", 0.5, 8, 4],
    ]
    assert table.macs_share[3] == pytest.approx(4 * 2 * 9 * 8 * 64 / macs(model, images(1)))


def test_the_numbers_are_those_of_a_model_with_this_group_pruned(model):
    """Pruned by a plan that leaves the other group alone."""
    row = pruning_sensitivity(model, images(1), VALIDATION, ratios=(0.5,)).set_index("layer").loc["conv1"]
    pruned = prune_channels(model, plan_pruning(model, images(1), ratio=0.5, ignore=["stem"]))
    with torch.no_grad():
        full, answers = (net(images(32, seed=1)).argmax(1) for net in (model, pruned))

    assert row.agreement == (full == answers).double().mean().item()
    drop = (full == LABELS).double().mean() - (answers == LABELS).double().mean()
    assert row.accuracy_drop == pytest.approx(100 * drop.item())


def test_a_group_that_nobody_reads_is_not_sensitive(model):
    """Its outputs are zeroed on the way."""
    nn.init.zeros_(model.conv2.weight)
    table = pruning_sensitivity(model, images(1), VALIDATION).set_index("layer")

    assert (table.loc["conv1", "agreement"] == 1).all()
    assert (table.loc["conv1", "accuracy_drop"] == 0).all()


def test_one_channel_goes_and_one_stays(model):
    """Whatever the ratio."""
    table = pruning_sensitivity(model, images(1), VALIDATION, ratios=(0.01, 0.99))

    assert table.kept.tolist() == [7, 1, 7, 1]


def test_what_is_measured_was_mended(model):
    """A network that is put in the place of each pruned one is the one that is measured."""
    table = pruning_sensitivity(model, images(1), VALIDATION, ratios=(0.5,), mend=lambda _: model)

    assert (table.agreement == 1).all()
    assert (table.accuracy_drop == 0).all()


def test_divergence_is_worked_out_in_float64(model):
    """The mean over images of sum p log(p / q); what is not pruned has none."""
    row = pruning_sensitivity(model, images(1), VALIDATION, ratios=(0.5,)).set_index("layer").loc["conv1"]
    pruned = prune_channels(model, plan_pruning(model, images(1), ratio=0.5, ignore=["stem"]))
    with torch.no_grad():
        p, q = (net(images(32, seed=1)).double().softmax(1) for net in (model, pruned))

    assert row.divergence == pytest.approx((p * (p / q).log()).sum(1).mean().item(), rel=1e-4)
    same = pruning_sensitivity(model, images(1), VALIDATION, ratios=(0.5,), mend=lambda _: model)
    assert same.divergence.tolist() == [0, 0]


def test_copies_are_refitted_as_by_hand(model):
    """On the images that are given, which leaves less of the divergence; the model is not touched."""
    shown, before = [images(64, seed=2)], state(model)
    plain = pruning_sensitivity(model, images(1), VALIDATION, ratios=(0.5,)).set_index("layer")
    table = pruning_sensitivity(model, images(1), VALIDATION, ratios=(0.5,), refit=shown).set_index("layer")
    plan = plan_pruning(model, images(1), ratio=0.5, ignore=["stem"])
    by_hand = refit_layers(prune_channels(model, plan), model, shown, plan=plan)
    with torch.no_grad():
        full, answers = (net(images(32, seed=1)).argmax(1) for net in (model, by_hand))

    assert (table.divergence < 0.8 * plain.divergence).all()
    assert table.loc["conv1", "agreement"] == (full == answers).double().mean().item()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_model_is_not_changed(model):
    """Each group is cut in a copy, from the full model."""
    before = state(model)
    pruning_sensitivity(model, images(1), VALIDATION, ratios=(0.5,))

    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class OfTestSplit(list):
    """Batches of the test split."""

    split = "test"


@pytest.mark.parametrize(
    ("validation", "options", "message"),
    [
        (OfTestSplit(VALIDATION), {}, r"pruning_sensitivity was given the test split, which is only for reporting"),
        (VALIDATION, {"refit": OfTestSplit(VALIDATION)}, r"pruning_sensitivity was given the test split"),
        (VALIDATION, {"refit": []}, r"pruning_sensitivity got no image; some hundreds of training images are usual"),
        ([], {}, r"pruning_sensitivity got no image; a few hundred validation images are usual"),
        (VALIDATION, {"ratios": (0.5, 1.5)}, r"ratio is 1\.5; give a share from 0"),
        (VALIDATION, {"importance": "taylor"}, r"importance 'taylor' comes from gradients of the loss; give batches="),
    ],
)
def test_refused(model, validation, options, message):
    """Before anything is measured."""
    with pytest.raises(ValueError, match=message):
        pruning_sensitivity(model, images(1), validation, **options)
