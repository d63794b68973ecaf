"""CSR on a CPU computes what the dense layer does."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from deploykit.pruning.masks import make_permanent
from deploykit.pruning.sparse_kernels import SparseLinear, sparse_layers, sparse_linear
from deploykit.pruning.weights import prune_weights


@pytest.fixture
def pruned() -> nn.Module:
    """Two linear layers with nine of ten weights 0."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10, bias=False))
    return make_permanent(prune_weights(model, sparsity=0.9)).eval()


@pytest.mark.parametrize("shape", [(64,), (1, 64), (7, 64), (2, 3, 64), (0, 64)])
def test_it_computes_what_the_dense_layer_does(pruned, shape):
    """Within rounding of the sum in float64; any number of leading dimensions, as nn.Linear."""
    inputs = torch.randn(shape)
    exact = copy.deepcopy(pruned[0]).double()(inputs.double())

    assert_close(sparse_linear(pruned[0])(inputs).double(), exact, rtol=0, atol=1e-5)


def test_only_what_is_not_zero_is_stored(pruned):
    """Which it prints."""
    layer = sparse_linear(pruned[0])
    count = int(pruned[0].weight.count_nonzero())

    assert layer.weight.values().numel() == count
    assert f"out_features=48, {count:,} of 3,072 weights stored" in repr(layer)


def test_all_linear_layers_of_a_network_are_replaced(pruned):
    """In a copy, by modules of the same names; a linear layer by itself is one, too."""
    converted = sparse_layers(pruned)
    inputs = torch.randn(5, 64)

    assert [type(module) for module in converted] == [SparseLinear, nn.ReLU, SparseLinear]
    assert type(pruned[0]) is nn.Linear
    assert_close(converted(inputs), pruned(inputs), rtol=0, atol=1e-5)
    assert type(sparse_layers(pruned[0])) is SparseLinear


def test_layers_whose_weights_others_read_stay_dense():
    """Attention takes the weight of its output layer, and multiplies by itself."""
    attention = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    model = nn.ModuleDict({"attention": attention, "head": nn.Linear(8, 2)})
    model["head"].weight.data[0] = 0
    converted = sparse_layers(model)
    tokens = torch.randn(1, 3, 8)

    assert type(converted["head"]) is SparseLinear
    assert_close(converted["attention"](tokens, tokens, tokens), attention(tokens, tokens, tokens))


def test_no_warning_of_pytorch_is_passed_on(pruned):
    """It would say, once a process, that the format may change: nothing a reader could act upon."""
    try:
        torch.set_warn_always(True)
        with pytest.warns(UserWarning, match="Sparse CSR tensor support is in beta state"):
            pruned[0].weight.detach().to_sparse_csr()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            sparse_linear(pruned[0])(torch.randn(2, 64))
    finally:
        torch.set_warn_always(False)


class TestErrors:
    def test_masks(self, pruned):
        """They would be computed at every call."""
        masked = prune_weights(pruned, sparsity=0.95)
        with pytest.raises(ValueError, match=r"a sparse network takes plain weights: give it make_permanent\(model\)"):
            sparse_layers(masked)
        with pytest.raises(ValueError, match=r"a sparse linear layer takes plain weights"):
            sparse_linear(masked[0])

    def test_nothing_to_gain(self):
        """A dense layer would only get slower; a layer of nothing but zeros has another trouble."""
        with pytest.raises(ValueError, match="Sequential has no Linear with zeros among its weights; call prune_wei"):
            sparse_layers(nn.Sequential(nn.Linear(4, 2)))
        empty = nn.Linear(4, 2)
        nn.init.zeros_(empty.weight)
        with pytest.raises(ValueError, match="every weight of the layer is 0, so its output is its bias"):
            sparse_linear(empty)

    def test_another_layer(self):
        """PyTorch has no such kernel."""
        with pytest.raises(TypeError, match=r"takes an nn.Linear, not Conv2d; PyTorch has no CSR convolution"):
            sparse_linear(nn.Conv2d(3, 4, 3))
