"""The portable quantizer: where integers go, in which range, and what stays in float."""

from __future__ import annotations

import pytest
import torch
from small_residual import SmallResidual
from torch import nn
from torch.testing import assert_close

from deploykit.quantization.graphs import export_graph, layers_of

pytest.importorskip("torchao")

from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from deploykit.quantization.quantizer import IntegerQuantizer


def converted(model: nn.Module, *, size: int = 8, **options: object) -> torch.fx.GraphModule:
    """Quantize a model on 16 images by the plain calls of the library."""
    inputs = torch.randn(16, 3, size, size, generator=torch.Generator().manual_seed(0))
    prepared = prepare_pt2e(export_graph(model.eval(), inputs), IntegerQuantizer(**options))
    with torch.no_grad():
        prepared(inputs)
    return convert_pt2e(prepared)


def activation_ranges(graph: torch.fx.GraphModule) -> set[tuple]:
    """Collect zero point 0 or not, range and dtype of all activations."""
    nodes = [node for node in graph.graph.nodes if str(node.target).startswith("quantized_decomposed.quantize_per_t")]
    return {(node.args[2] == 0, *node.args[3:6]) for node in nodes}


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """A small residual network in evaluation mode."""
    torch.manual_seed(0)
    return SmallResidual().eval()


class TestRanges:
    def test_scales_of_one_layer_by_hand(self):
        """A row up to 2.54 gets steps of 2.54 / 127; images from -1 to 3 get 4 / 255 and the zero point 64."""
        model = nn.Sequential(nn.Conv2d(3, 2, 1, bias=False))
        model[0].weight.data = torch.tensor([[2.54, -0.5, 0.1], [0.3, -1.27, 0.2]]).reshape(2, 3, 1, 1)
        inputs = torch.linspace(-1, 3, 3 * 64).reshape(1, 3, 8, 8)
        prepared = prepare_pt2e(export_graph(model.eval(), inputs), IntegerQuantizer())
        prepared(inputs)

        graph = convert_pt2e(prepared)

        (weight,) = [
            getattr(graph, n.args[0].target) for n in graph.graph.nodes if "dequantize_per_channel" in str(n.target)
        ]
        (taken,) = [n for n in graph.graph.nodes if str(n.target).startswith("quantized_decomposed.quantize_per_t")]
        assert weight.dtype == torch.int8
        assert weight.flatten(1).tolist() == [[127, -25, 5], [30, -127, 20]]
        assert_close(taken.args[1], 4 / 255, rtol=0.02, atol=0)  # the histogram may cut a little off
        assert taken.args[2] == pytest.approx(64, abs=1)

    @pytest.mark.parametrize(
        ("options", "expected"),
        [({}, (0, 255, torch.uint8)), ({"activation_bits": 4}, (0, 15, torch.uint8)),
         ({"symmetric": True}, (-128, 127, torch.int8)),
         ({"symmetric": True, "activation_bits": 4}, (-8, 7, torch.int8))],
    )  # fmt: skip
    def test_activations_are_in_the_range_asked_for(self, model, options, expected):
        """Unsigned with a zero point or signed without one, of as many bits as asked for."""
        found = activation_ranges(converted(model, **options))

        assert {range_[1:] for range_ in found} == {expected}
        assert all(range_[0] for range_ in found) == ("symmetric" in options)

    def test_four_bit_weights_reach_from_minus_7_to_7(self, model):
        """They are stored as int8 and use 15 of its values."""
        graph = converted(model, weight_bits=4)

        weights = [value for value in graph.buffers() if value.dtype == torch.int8]
        assert len(weights) == 4
        assert {int(weight.abs().max()) for weight in weights} == {7}

    @pytest.mark.parametrize("options", [{"weight_bits": 9}, {"activation_bits": 1}])
    def test_other_bits_are_refused(self, options):
        """int8 holds 2 to 8 bits."""
        with pytest.raises(ValueError, match=r"_bits is [91]; choose a whole number from 2 to 8"):
            IntegerQuantizer(**options)


class TestPlacement:
    def test_every_convolution_stands_between_two_quantizations(self, model):
        """Also the one whose result is added to the shortcut: after batch norm and ReLU comes a quantization."""
        graph = converted(model)

        for node in graph.graph.nodes:
            if "conv2d" not in str(node.target):
                continue
            (user,) = node.users
            after = next(iter(user.users)) if "relu" in str(user.target) else user
            assert "dequantize_per_tensor" in str(node.args[0].target)
            assert ".quantize_per_tensor" in str(after.target)

    def test_a_pool_shares_the_grid_of_what_it_pools(self, model):
        """The largest of integers is one of them: scale and zero point before and after are equal."""
        graph = converted(model)

        (pool,) = [node for node in graph.graph.nodes if "max_pool2d" in str(node.target)]
        assert pool.args[0].args[1:] == next(iter(pool.users)).args[1:]

    def test_the_sums_of_a_transformer_stay_in_float(self):
        """A sum of linear layers is not quantized, its linear layers are."""

        class Residual(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.fc = nn.Linear(8, 8)

            def forward(self, images: torch.Tensor) -> torch.Tensor:
                return images + self.fc(images)

        graph = converted(Residual())

        (sum_,) = [node for node in graph.graph.nodes if "add" in str(node.target)]
        assert not any("quantize" in str(given.target) for given in sum_.all_input_nodes)
        assert [layer.quantized for layer in layers_of(graph, quantizer="portable", skip=())] == [True]

    def test_skipping_a_module_leaves_all_in_it(self):
        """A container's name stands for its layers."""
        model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)), nn.Conv2d(4, 4, 1))

        layers = layers_of(converted(model, skip=["0"]), quantizer="portable", skip=["0"])

        assert [(layer.name, layer.quantized) for layer in layers] == [("0.0", False), ("0.1", False), ("1", True)]

    def test_an_unknown_name_is_refused_with_those_near_it(self, model):
        """The reader sees what it is called."""
        with pytest.raises(ValueError, match=r"skip names 'conv_1', and the model has no such layer; near it: conv1"):
            converted(model, skip=["conv_1"])
        with pytest.raises(TypeError, match=r"skip is the text 'conv1'; give a list"):
            converted(model, skip="conv1")
