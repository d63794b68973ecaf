"""Graphs that torch.export makes: independent of the model, for any batch size, and every node knows its module."""

from __future__ import annotations

import copy

import pytest
import torch
from small_residual import Branching, SmallResidual, images
from torch import nn
from torch.testing import assert_close

from deploykit.quantization.graphs import export_graph, is_within, module_of


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """A small residual network in evaluation mode."""
    torch.manual_seed(0)
    return SmallResidual().eval()


def test_the_graph_does_not_share_the_models_weights(model):
    """torch.export alone would."""
    given = copy.deepcopy(model)
    graph = export_graph(given, images(1))

    for parameter in graph.parameters():
        parameter.data.zero_()

    assert_close(given.state_dict(), model.state_dict(), rtol=0, atol=0)


def test_any_batch_size_goes_through(model):
    """One image, which is what a careless export refuses, and many."""
    graph = export_graph(model, images(1))

    for number in (1, 3, 1025):
        assert_close(graph(images(number)), model(images(number)))


def test_nodes_know_their_module(model):
    """Name and class, and the container of a part."""
    graph = export_graph(nn.Sequential(model).eval(), images(1))

    (node,) = [node for node in graph.graph.nodes if "linear" in str(node.target)]
    assert module_of(node) == ("0.fc", "Linear")
    assert is_within(node, ["0"])
    assert not is_within(node, ["0.conv1"])


def test_a_branch_on_values_is_refused_by_name():
    """Not the network is named, but the module in it whose code cannot be followed."""
    with pytest.raises(ValueError, match=r"torch\.export cannot follow gate \(Gate\) \(.*\); a graph has no branch"):
        export_graph(Branching().eval(), images(2))


def test_a_fixed_batch_size_is_refused():
    """A network that was written for batches of 2 has no graph for others."""

    class Fixed(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.reshape(2, -1)

    with pytest.raises(ValueError, match=r"torch\.export cannot follow Fixed"):
        export_graph(Fixed().eval(), images(2))
