"""Dependency groups: what has to go together, and why a layer can have none."""

from __future__ import annotations

import copy

import pytest
import torch
from pruning_nets import Flattened
from small_residual import SmallResidual, images
from torch import nn

pytest.importorskip("torch_pruning")

from deploykit.pruning.groups import dependency_group, trace

SMALL = torch.zeros(1, 3, 4, 4)


class Attention(nn.Module):
    """An attention written by hand, on tokens [N, 5, 3], and what can go wrong around it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 8)
        self.position = nn.Parameter(torch.zeros(1, 5, 8))
        self.qkv, self.mix = nn.Linear(8, 24), nn.Linear(8, 8)
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)
        self.head = nn.Linear(8, 2)
        self.unused = nn.Linear(8, 8)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Map float32 [N, 5, 3] to logits [N, 2]."""
        tokens = self.embed(tokens) + self.position
        query, key, value = self.qkv(tokens).reshape(-1, 5, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = (query @ key.transpose(-2, -1)).softmax(-1) @ value
        tokens = tokens + self.mix(mixed.transpose(1, 2).reshape(-1, 5, 8))
        return self.head((tokens + self.down(self.up(tokens).relu())).mean(1))


def test_a_residual_stream_is_one_group():
    """The stem and the last convolution of a block are added: they lose the same channels, with all that reads them."""
    found = dependency_group(SmallResidual(), images(2), "conv2")

    assert set(zip(found.layer, found.cut, strict=True)) == {
        ("stem", "output channels"),
        ("stem_bn", "channels"),
        ("conv1", "input channels"),
        ("conv2", "output channels"),
        ("bn2", "channels"),
        ("fc", "input channels"),
    }
    assert (found.channels == 8).all()
    assert (found.per_channel == 1).all()


def test_a_flatten_takes_a_place_for_each_pixel():
    """A channel of 4x4 pixels is 16 inputs of the linear layer behind the flatten; the depthwise layer follows."""
    found = dependency_group(Flattened(), SMALL, "conv").set_index("layer")

    assert found.per_channel.to_dict() == {"conv": 1, "bn": 1, "depthwise": 1, "hidden": 16}
    assert found.loc["hidden", "channels"] == 96
    assert found.loc["depthwise", ["kind", "cut"]].tolist() == ["Conv2d", "channels"]


def test_the_entries_of_a_flattened_channel_are_its_pixels():
    """Channel 2 of a 4x4 map lies at inputs 32 to 47."""
    (read,) = [cut for cut in trace(Flattened(), SMALL).groups["conv"].cuts if cut.layer == "hidden"]

    assert read.entries[2] == tuple(range(32, 48))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_may_be_switched_off(mode):
    """Torch-Pruning follows autograd's graph, and would stop there with an assertion."""
    with mode():
        assert list(trace(SmallResidual(), images(1)).groups) == ["stem", "conv1"]


def test_the_model_is_left_as_it_was():
    """Mode, gradients and weights."""
    model = SmallResidual().train()
    model.conv1.weight.requires_grad_(requires_grad=False)
    before = copy.deepcopy(model.state_dict())
    trace(model, images(1))

    assert all(module.training for module in model.modules())
    assert not model.conv1.weight.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class TestWhatIsLeft:
    def test_the_classifier(self):
        """A class is not a channel."""
        with pytest.raises(ValueError, match=r"fc cannot be pruned: its outputs are the model's outputs"):
            dependency_group(SmallResidual(), images(1), "fc")

    def test_outputs_through_a_pool_are_outputs_as_well(self):
        """A fully convolutional classifier ends in a mean; a softmax behind the classifier changes nothing either."""
        model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Softmax(1))
        traced = trace(model, SMALL)

        assert list(traced.groups) == ["0"]
        assert traced.left == {"2": "its outputs are the model's outputs"}

    def test_attention_and_parameters_of_no_layer(self):
        """Only the feed-forward part of a transformer has channels of its own."""
        traced = trace(Attention(), torch.zeros(1, 5, 3))

        assert list(traced.groups) == ["up"]
        assert traced.left["qkv"] == "it feeds an attention, which splits its channels into heads"
        assert traced.left["embed"].startswith("the parameter position would be cut too, which belongs to no layer")
        assert traced.left["down"] == traced.left["embed"]
        assert traced.left["unused"].startswith("it takes no part in the forward pass")

    def test_frozen_layers(self):
        """Torch-Pruning would miss a frozen stem in silence; here the parameter is named, and the rest is pruned."""
        model = SmallResidual()
        model.stem.requires_grad_(requires_grad=False)
        model.stem_bn.requires_grad_(requires_grad=False)
        traced = trace(model, images(1))

        assert traced.left["stem"] == traced.left["conv2"] == "stem.weight is frozen (requires_grad is False)"
        assert list(traced.groups) == ["conv1"]

    def test_grouped_convolutions(self):
        """Their groups have to stay of one size; the layer before one is left as well."""
        model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 8, 1, groups=2), nn.Conv2d(8, 2, 1), nn.Conv2d(2, 3, 4))
        traced = trace(model, SMALL)

        assert list(traced.groups) == ["2"]
        assert traced.left["0"] == "1 would be cut too: Conv2d with 2 groups, which would all have to stay of one size"
        assert traced.left["1"] == traced.left["0"]

    def test_layers_that_share_a_weight(self):
        """Cutting one would cut the other."""
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
        model[1].weight = model[0].weight
        traced = trace(model, torch.zeros(1, 4))

        assert traced.left["0"] == "0.weight is one tensor with 1.weight"
        assert not traced.groups

    def test_channels_that_are_split(self):
        """A gated unit multiplies one half of its channels by the other: they are no single channels."""

        class Gated(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.both, self.fc = nn.Linear(4, 8), nn.Linear(4, 2)

            def forward(self, features: torch.Tensor) -> torch.Tensor:
                half, gate = self.both(features).chunk(2, dim=1)
                return self.fc(half * gate.sigmoid())

        assert trace(Gated(), torch.zeros(1, 4)).left["both"] == "fc uses only a part of its channels"

    def test_other_kinds_of_layer(self):
        """A recurrent layer is named with its parameter."""

        class Recurrent(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.embed, self.lstm, self.fc = nn.Linear(3, 6), nn.LSTM(6, 5, batch_first=True), nn.Linear(5, 2)

            def forward(self, steps: torch.Tensor) -> torch.Tensor:
                return self.fc(self.lstm(self.embed(steps))[0][:, -1])

        traced = trace(Recurrent(), torch.zeros(1, 7, 3))

        assert not traced.groups
        assert "lstm" in traced.left["embed"]


class TestNames:
    def test_ignored_containers_keep_their_layers(self):
        """A name of a container stands for all layers in it."""
        model = nn.Sequential(
            nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 6)), nn.Linear(6, 7), nn.Linear(7, 2)
        )
        traced = trace(model, torch.zeros(1, 4), ignore=["0"])

        assert list(traced.groups) == ["1"]
        assert traced.left["0.2"] == "0.2 is ignored, as asked"

    @pytest.mark.parametrize(
        ("ignore", "error", "message"),
        [
            (["conv3"], ValueError, r"ignore names 'conv3', and SmallResidual has no such layer; did you mean 'conv"),
            (["pool"], ValueError, r"ignore names 'pool', which has no convolution and no linear layer: nothing to ke"),
            ("conv1", TypeError, r"ignore is the text 'conv1'; give a list of names: \['conv1'\]"),
        ],
    )
    def test_unusable_names_to_ignore(self, ignore, error, message):
        """A misspelt name would be pruned after all."""
        with pytest.raises(error, match=message):
            trace(SmallResidual(), images(1), ignore=ignore)

    def test_an_unknown_layer(self):
        """The nearest name is offered."""
        with pytest.raises(ValueError, match=r"there is no layer 'conv11' with channels; did you mean 'conv1'\?"):
            dependency_group(SmallResidual(), images(1), "conv11")
