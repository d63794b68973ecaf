"""2:4 sparsity: the pattern is that of PyTorch's own tools, and what cannot have it is named."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.sparse._semi_structured_conversions import (
    sparse_semi_structured_from_dense_cutlass,
    sparse_semi_structured_to_dense_cutlass,
)
from torch.testing import assert_close

from deploykit.models import resnet
from deploykit.pruning.masks import make_permanent, masked_layers
from deploykit.pruning.semi_structured import (
    is_2_4,
    keep_2_4,
    prune_2_4,
    to_semi_structured,
    unsuited_for_2_4,
)
from deploykit.pruning.weights import prune_weights

AMPERE = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)


@pytest.fixture
def linear() -> nn.Module:
    """Two linear layers of shapes that the kernels take."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 64))


class TestPattern:
    def test_of_four_the_two_largest_stay(self):
        """By magnitude; among equals the later ones."""
        weight = torch.tensor([[1.0, -4.0, 3.0, 2.0, 5.0, 5.0, 5.0, 5.0]])

        assert keep_2_4(weight).tolist() == [[False, True, True, False, False, False, True, True]]

    def test_a_convolution_is_grouped_along_its_input_channels(self):
        """At each place of the kernel: what TensorRT asks for, and not neighbours within a filter."""
        weight = torch.randn(2, 8, 3, 3)
        kept = keep_2_4(weight)

        assert bool((kept.unflatten(1, (2, 4)).sum(dim=2) == 2).all())
        assert_close(kept[:, :, 1, 2], keep_2_4(weight[:, :, 1, 2]))

    def test_pytorch_sparsifies_the_same(self, linear):
        """``WeightNormSparsifier`` with blocks of four and two zeros in each."""
        from torch.ao.pruning import WeightNormSparsifier

        pruned = prune_2_4(linear)
        sparsifier = WeightNormSparsifier(sparsity_level=1.0, sparse_block_shape=(1, 4), zeros_per_block=2)
        sparsifier.prepare(linear, [{"tensor_fqn": "0.weight"}, {"tensor_fqn": "2.weight"}])
        sparsifier.step()

        for place in (0, 2):
            assert bool(((pruned[place].weight == 0) == (linear[place].weight == 0)).all())

    def test_the_format_of_the_kernels_holds_it_without_loss(self, linear):
        """Two of four numbers and their places (CUTLASS, computed on the CPU) give back the weight."""
        weight = make_permanent(prune_2_4(linear))[0].weight.detach().half()
        values, places = sparse_semi_structured_from_dense_cutlass(weight)

        assert values.shape == (64, 64)
        assert_close(sparse_semi_structured_to_dense_cutlass(values, places), weight, rtol=0, atol=0)

    @pytest.mark.parametrize(
        ("weight", "answer"),
        [
            ([[0, 1, 0, 1, 0, 0, 0, 1]], True),
            ([[0, 1, 1, 1, 0, 0, 0, 1]], False),
            # Four zeros of eight, and three numbers in one group of four.
            ([[1, 1, 1, 0, 0, 0, 0, 1]], False),
            ([[0, 0, 0]], False),
            ([0, 0, 0, 0], False),
        ],
    )
    def test_the_pattern_is_recognised(self, weight, answer):
        """Two zeros in every group of four; three inputs have no groups, a bias no inputs."""
        assert is_2_4(torch.tensor(weight)) is answer


class TestPruning:
    def test_zeros_stay_in_training(self, linear):
        """The same masks as of ``prune_weights``."""
        pruned = prune_2_4(linear)
        optimizer = torch.optim.SGD(pruned.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
        for _ in range(3):
            pruned(torch.randn(4, 128)).square().mean().backward()
            optimizer.step()

        assert is_2_4(make_permanent(pruned)[0].weight)
        assert not is_2_4(linear[0].weight)

    def test_what_is_left_is_named(self):
        """The first convolution of a network for colour images has three inputs."""
        network = resnet(8)
        pruned = prune_2_4(network, ignore=["fc"])

        assert unsuited_for_2_4(network, ignore=["fc"]) == {"conv": "3 inputs, no multiple of four"}
        assert len(masked_layers(pruned)) == 8
        assert not {"conv", "fc"} & set(masked_layers(pruned))


class TestErrors:
    def test_no_layer_can_have_the_pattern(self):
        """Each with its inputs."""
        with pytest.raises(ValueError, match=r"no layer of Sequential can be pruned 2:4: 0 has 3 inputs, no multiple"):
            prune_2_4(nn.Sequential(nn.Linear(3, 8)))

    def test_masked_already(self, linear):
        """Two masks on one weight; the message says what to call."""
        pruned = prune_weights(linear, sparsity=0.5)
        with pytest.raises(ValueError, match=r"'0' and 1 other layers are masked; 2:4 pruning takes plain weights: "):
            prune_2_4(pruned)

    def test_an_unknown_name(self, linear):
        """As everywhere."""
        with pytest.raises(ValueError, match="ignore has 'head', and Sequential has no such module"):
            prune_2_4(linear, ignore=["head"])

    def test_on_a_cpu(self, linear):
        """It says what is needed; the layers compute the same without it."""
        with pytest.raises(ValueError, match=r"is on cpu; 2:4 .* compute capability 8.0 or newer only: move"):
            to_semi_structured(make_permanent(prune_2_4(linear)))


@pytest.mark.skipif(not AMPERE, reason="needs a CUDA GPU of compute capability 8.0 or newer")
class TestGpu:
    def test_it_computes_the_same(self, linear):
        """As the dense layer of the same weights, in float16."""
        plain = make_permanent(prune_2_4(linear)).half().cuda()
        images = torch.randn(64, 128, dtype=torch.float16, device="cuda")
        with torch.inference_mode():
            assert_close(to_semi_structured(plain)(images), plain(images), rtol=1e-2, atol=1e-2)

    def test_float32(self, linear):
        """The kernels take two bytes a number."""
        with pytest.raises(ValueError, match=r"0 is float32; sparse tensor cores take float16 or bfloat16"):
            to_semi_structured(make_permanent(prune_2_4(linear)).cuda())

    def test_without_the_pattern(self, linear):
        """A dense network would run as before, and not be faster."""
        with pytest.raises(ValueError, match="has no Linear with the 2:4 pattern; call prune_2_4"):
            to_semi_structured(linear.half().cuda())
