"""The sparsity report counts zeros, masked or not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from deploykit.pruning.masks import make_permanent
from deploykit.pruning.semi_structured import prune_2_4
from deploykit.pruning.sparsity import sparsity_report
from deploykit.pruning.weights import prune_weights


@pytest.fixture
def model() -> nn.Module:
    """A convolution of 108 weights and a linear layer of 40, random."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(8, 5))


def test_zeros_are_counted_by_layer_and_in_all(model):
    """Half of each layer; masks and plain zeros count alike, batch norm and biases do not."""
    masked = prune_weights(model, sparsity=0.5, scope="layer")
    for pruned in (masked, make_permanent(masked)):
        rows = sparsity_report(pruned).table().to_dict("records")

        assert [(row["name"], row["kind"], row["weights"], row["zeros"], row["sparsity"]) for row in rows] == [
            ("0", "Conv2d", 108, 54, 0.5), ("3", "Linear", 40, 20, 0.5), ("total", "", 148, 74, 0.5),
        ]  # fmt: skip


def test_a_dense_network_has_none(model):
    """And a report all the same."""
    assert sparsity_report(model).sparsity == 0


def test_it_prints_a_line_a_layer(model):
    """With the pattern where there is one: three inputs are no group of four."""
    text = str(sparsity_report(prune_2_4(model)))

    assert [" ".join(line.split()) for line in text.splitlines()] == [
        "0 0 of 108 weights are 0, 0.0%", "3 20 of 40 weights are 0, 50.0% 2:4",
        "total 20 of 148 weights are 0, 13.5%",
    ]  # fmt: skip


def test_a_network_without_such_layers():
    """There is nothing to report, and it says so."""
    with pytest.raises(ValueError, match="ReLU has no Conv2d or Linear whose zeros could be counted; see layers"):
        sparsity_report(nn.ReLU())
    with pytest.raises(TypeError, match=r"takes a torch.nn.Module, not dict"):
        sparsity_report({})
