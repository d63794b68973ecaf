"""The two functions for pasting choose the weights that the library chooses, and keep them at 0."""

from __future__ import annotations

import pytest
import torch
from small_residual import SmallResidual, images
from torch import nn

from deploykit.pruning.magnitude_masks import apply_masks, magnitude_masks
from deploykit.pruning.masks import make_permanent
from deploykit.pruning.weights import prune_weights


def test_the_smallest_of_all_layers_go():
    """Worked out by hand: of 6 weights the 3 smallest, two of them in the second layer."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
    model[0].weight.data = torch.tensor([[3.0, -0.5], [2.0, 1.5]])
    model[1].weight.data = torch.tensor([[-1.0, 0.25]])

    masks = magnitude_masks(model, 0.5)

    assert masks["0.weight"].tolist() == [[True, False], [True, True]]
    assert masks["1.weight"].tolist() == [[False, False]]


@pytest.mark.parametrize("sparsity", [0.3, 0.8])
def test_they_choose_what_the_library_chooses(sparsity):
    """The same weights are 0 as with prune_weights."""
    model = SmallResidual().eval()
    expected = make_permanent(prune_weights(model, sparsity=sparsity)).state_dict()

    apply_masks(model, magnitude_masks(model, sparsity))

    assert all(torch.equal(expected[name], value) for name, value in model.state_dict().items())


def test_zeros_stay_zeros_while_the_sparsity_rises():
    """Momentum and weight decay move every weight; masks of before the step prune again what was pruned, and more."""
    torch.manual_seed(0)
    model = SmallResidual().eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    first = magnitude_masks(model, 0.3)
    for sparsity in (0.3, 0.3, 0.6):
        masks = magnitude_masks(model, sparsity)
        model(images(8)).square().mean().backward()
        optimizer.step()
        apply_masks(model, masks)

    assert all((model.get_parameter(name)[~kept] == 0).all() for name, kept in first.items())
    assert sum(int((~kept).sum()) for kept in masks.values()) == round(0.6 * sum(m.numel() for m in masks.values()))
