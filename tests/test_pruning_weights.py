"""Pruning single weights: masks as computed by hand and by PyTorch, and zeros that no training revives."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.testing import assert_close

from deploykit.models import resnet
from deploykit.pruning.masks import make_permanent, masked_layers, rewind
from deploykit.pruning.weights import prune_weights

OPTIMIZERS = {
    "SGD": lambda model: torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.1, nesterov=True),
    "Adam": lambda model: torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=0.1),
}


@pytest.fixture
def by_hand() -> nn.Module:
    """Two linear layers of four weights each: ±1 to ±4, and ±10 to ±40."""
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    model[0].weight.data = torch.tensor([[1.0, -2.0], [-3.0, 4.0]])
    model[2].weight.data = torch.tensor([[-10.0, 20.0], [30.0, -40.0]])
    return model


@pytest.fixture
def tiny() -> nn.Module:
    """Convolution, batch norm, ReLU and a linear layer, random, in channels_last as ``fit`` leaves them."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    )  # fmt: skip
    return model.to(memory_format=torch.channels_last)


def zeros(model: nn.Module) -> dict[str, Tensor]:
    """Return where each masked layer's weight is 0, bool."""
    return {name: layer.weight.detach() == 0 for name, (layer, _) in masked_layers(model).items()}


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 5) -> None:
    """Take a few steps on noise."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(4, 3, 8, 8, generator=generator)).square().mean().backward()
        optimizer.step()


class TestSelection:
    def test_global_pruning_takes_the_smallest_of_all(self, by_hand):
        """Three of eight: all in the first layer; without that layer, two of the second's four."""
        both = prune_weights(by_hand, sparsity=3 / 8)
        second = prune_weights(by_hand, sparsity=0.5, ignore=["0"])

        assert both[0].weight.tolist() == [[0, 0], [0, 4]]
        assert both[2].weight.tolist() == by_hand[2].weight.tolist()
        assert second[2].weight.tolist() == [[0, 0], [30, -40]]

    def test_layerwise_pruning_takes_the_same_share_of_each(self, by_hand):
        """The two smallest of four, in both layers."""
        pruned = prune_weights(by_hand, sparsity=0.5, scope="layer")

        assert pruned[0].weight.tolist() == [[0, 0], [-3, 4]]
        assert pruned[2].weight.tolist() == [[0, 0], [30, -40]]

    def test_a_threshold_keeps_what_reaches_it(self, by_hand):
        """Magnitude 3 stays at a threshold of 3, the sign does not matter."""
        pruned = prune_weights(by_hand, threshold=3)

        assert pruned[0].weight.tolist() == [[0, 0], [-3, 4]]
        assert not bool((pruned[2].weight == 0).any())

    def test_a_threshold_by_layer_is_in_standard_deviations(self, by_hand):
        """Those are √7.5 and √750: 1 and 2 are below one, and so are 10 and 20 (Han et al. 2015, section 4)."""
        pruned = prune_weights(by_hand, threshold=1.0, scope="layer")

        assert by_hand[0].weight.std(correction=0).item() == pytest.approx(7.5**0.5)
        assert pruned[0].weight.tolist() == [[0, 0], [-3, 4]]
        assert pruned[2].weight.tolist() == [[0, 0], [30, -40]]

    @pytest.mark.parametrize("scope", ["global", "layer"])
    def test_pytorch_masks_the_same(self, tiny, scope):
        """``torch.nn.utils.prune``, global and layer by layer."""
        pruned = prune_weights(tiny, sparsity=0.6, scope=scope)
        other = copy.deepcopy(tiny).to(memory_format=torch.contiguous_format)  # it refuses channels_last
        pairs = [(other[place], "weight") for place in (0, 3, 6)]
        if scope == "global":
            prune.global_unstructured(pairs, pruning_method=prune.L1Unstructured, amount=0.6)
        else:
            for pair in pairs:
                prune.l1_unstructured(*pair, amount=0.6)

        for place in (0, 3, 6):
            assert_close(pruned[place].weight, other[place].weight, rtol=0, atol=0)

    @pytest.mark.parametrize("sparsity", [0.001, 0.333, 0.8, 0.85])
    def test_the_sparsity_is_exact(self, tiny, sparsity):
        """To the nearest whole number of weights, also where many are equal."""
        tiny[3].weight.data = tiny[3].weight.data.round(decimals=2) + 0.005
        found = zeros(prune_weights(tiny, sparsity=sparsity))
        count, total = sum(int(z.sum()) for z in found.values()), sum(z.numel() for z in found.values())

        assert count == round(sparsity * total)

    def test_the_model_is_not_changed(self, tiny):
        """Its weights and classes stay; the copy shares no tensor with it, and keeps the memory's order."""
        before = copy.deepcopy(tiny.state_dict())
        pruned = prune_weights(tiny, sparsity=0.5)

        assert_close(tiny.state_dict(), before, rtol=0, atol=0)
        assert type(tiny[0]) is nn.Conv2d
        assert not {p.data_ptr() for p in tiny.parameters()} & {p.data_ptr() for p in pruned.parameters()}
        assert pruned[0].weight.is_contiguous(memory_format=torch.channels_last)

    def test_a_layer_within_an_ignored_module_is_ignored(self):
        """The name of a block stands for all its layers, and not for one whose name merely begins alike."""
        network = resnet(8)
        pruned = prune_weights(network, sparsity=0.5, ignore=["blocks.0", "conv"])

        assert set(masked_layers(pruned)) == {
            "blocks.1.conv1", "blocks.1.conv2", "blocks.1.shortcut.0",
            "blocks.2.conv1", "blocks.2.conv2", "blocks.2.shortcut.0", "fc",
        }  # fmt: skip


class TestStayingZero:
    @pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
    def test_no_optimizer_revives_a_weight(self, tiny, optimizer):
        """Momentum from before the mask, and weight decay: zeros stay, the others move."""
        pruned = prune_weights(tiny, sparsity=0.1)
        stepper = optimizer(pruned)
        train(pruned, stepper)
        sparser = prune_weights(pruned, sparsity=0.7)
        for name, (_, mask) in masked_layers(pruned).items():
            mask.kept.copy_(masked_layers(sparser)[name][1].kept)
        before, values = zeros(pruned), pruned[3].weight.detach().clone()
        train(pruned, stepper)

        assert all(bool((found == before[name]).all()) for name, found in zeros(pruned).items())
        assert bool((pruned[3].weight != values)[~before["3"]].all())

    def test_a_masked_weight_has_no_gradient(self, tiny):
        """Which is why clipping by the norm of the gradient counts what is left only."""
        pruned = prune_weights(tiny, sparsity=0.7)
        pruned(torch.randn(2, 3, 8, 8)).square().sum().backward()

        assert not bool(pruned[3].parametrizations.weight.original.grad[zeros(pruned)["3"]].any())

    def test_a_trained_model_can_be_copied(self, tiny):
        """What ``torch.nn.utils.prune`` leaves in the layer cannot: averaging and every recipe here would fail."""
        other = nn.Sequential(nn.Linear(4, 4))
        prune.l1_unstructured(other[0], "weight", amount=0.5)
        with pytest.raises(RuntimeError, match="Only Tensors created explicitly by the user"):
            copy.deepcopy(other)
        pruned = prune_weights(tiny, sparsity=0.7)
        train(pruned, OPTIMIZERS["SGD"](pruned))

        assert_close(copy.deepcopy(pruned).state_dict(), pruned.state_dict(), rtol=0, atol=0)

    def test_an_average_of_models_has_the_zeros_of_all(self, tiny):
        """EMA averages buffers, too: a mask between 0 and 1 masks; where all kept, the weight is kept."""
        sparser = prune_weights(prune_weights(tiny, sparsity=0.5), sparsity=0.7)
        average = AveragedModel(
            prune_weights(tiny, sparsity=0.5), multi_avg_fn=get_ema_multi_avg_fn(0.999), use_buffers=True
        )
        for model in (average.module, sparser, sparser, sparser):
            average.update_parameters(copy.deepcopy(model))

        found = zeros(average.module)
        assert all(bool((found[name] == zero).all()) for name, zero in zeros(sparser).items())


class TestPermanent:
    def test_it_is_the_plain_network(self, tiny):
        """Classes, names, their order and shapes as before, and the outputs of the masked model, bit for bit."""
        pruned = prune_weights(tiny, sparsity=0.7).eval()
        plain = make_permanent(pruned)
        images = torch.randn(2, 3, 8, 8)

        assert [type(module) for module in plain] == [type(module) for module in tiny]
        assert [(n, v.shape) for n, v in plain.state_dict().items()] == [
            (n, v.shape) for n, v in tiny.state_dict().items()
        ]
        assert_close(plain(images), pruned(images), rtol=0, atol=0)

    def test_the_masked_model_goes_on_working(self, tiny):
        """PyTorch's ``remove_parametrizations`` of a copy takes the weight from the original, too."""
        pruned = prune_weights(tiny, sparsity=0.7)
        averaged = copy.deepcopy(pruned)
        make_permanent(averaged)
        train(pruned, OPTIMIZERS["SGD"](pruned))
        torch.nn.utils.parametrize.remove_parametrizations(averaged[0], "weight")

        with pytest.raises(AttributeError, match="no attribute 'weight'"):
            pruned(torch.randn(2, 3, 8, 8))

    def test_there_is_no_negative_zero(self, tiny):
        """It would be stored as a number of its own."""
        weight = make_permanent(prune_weights(tiny, sparsity=0.7))[3].weight

        assert not bool(torch.signbit(weight[weight == 0]).any())

    def test_a_frozen_weight_stays_frozen(self, tiny):
        """Pruning needs no gradient."""
        tiny[3].weight.requires_grad_(False)  # noqa: FBT003 - torch has it so
        plain = make_permanent(prune_weights(tiny, sparsity=0.7))

        assert [plain[0].weight.requires_grad, plain[3].weight.requires_grad] == [True, False]


class TestIterating:
    def test_what_is_lost_stays_lost(self, tiny):
        """A weight that was masked at 50 % is masked at 80 %, whatever became of it under its mask."""
        once = prune_weights(tiny, sparsity=0.5)
        with torch.no_grad():
            once[3].parametrizations.weight.original[zeros(once)["3"]] = 100.0
        twice = prune_weights(once, sparsity=0.8)

        assert all(bool(zero[zeros(once)[name]].all()) for name, zero in zeros(twice).items())
        assert sum(int(z.sum()) for z in zeros(twice).values()) == round(0.8 * (216 + 576 + 40))

    def test_a_layer_sparser_than_wished_stays_as_it_is(self, by_hand):
        """Three of the first layer's four are gone; half of each layer adds two in the second, and gives none back."""
        pruned = prune_weights(prune_weights(by_hand, sparsity=3 / 8), sparsity=0.5, scope="layer")

        assert pruned[0].weight.tolist() == [[0, 0], [0, 4]]
        assert pruned[2].weight.tolist() == [[0, 0], [30, -40]]

    def test_zeros_of_a_plain_network_can_be_masked_again(self, tiny):
        """To train on what a file held: its zeros are the smallest."""
        plain = make_permanent(prune_weights(tiny, sparsity=0.5))
        again = prune_weights(plain, sparsity=0.5)

        assert all(bool((zero == (plain.get_submodule(n).weight == 0)).all()) for n, zero in zeros(again).items())

    @pytest.mark.parametrize("with_masks", [True, False])
    def test_rewinding_keeps_masks_and_takes_the_rest_back(self, tiny, with_masks):
        """Weights, biases and batch norm of an earlier state; the state may be from before the masks."""
        pruned = prune_weights(tiny, sparsity=0.7)
        earlier = copy.deepcopy((pruned if with_masks else tiny).state_dict())
        train(pruned, OPTIMIZERS["SGD"](pruned))
        trained = pruned[3].weight.detach().clone()
        back = rewind(pruned, earlier)

        assert bool(torch.equal(back[3].weight, tiny[3].weight.masked_fill(zeros(pruned)["3"], 0)))
        assert_close(back[1].state_dict(), tiny[1].state_dict(), rtol=0, atol=0)
        assert bool(torch.equal(pruned[3].weight, trained))


class TestErrors:
    @pytest.mark.parametrize(
        ("wish", "message"),
        [
            ({}, "neither of sparsity and threshold given; give one"),
            ({"sparsity": 0.5, "threshold": 0.1}, "both of sparsity and threshold given; give one"),
            ({"sparsity": 1.0}, "sparsity is 1.0; give a share from 0 up to, but not including, 1"),
            ({"sparsity": -0.1}, "sparsity is -0.1; give a share"),
            ({"sparsity": 0.0}, "sparsity 0 prunes nothing: 0.0% of these weights are masked already"),
            ({"threshold": 0}, "threshold is 0; give a magnitude above 0"),
            ({"threshold": 0.5}, "threshold 0.5 prunes nothing: the weights go from 1 to 40 in magnitude, half"),
            ({"threshold": 41}, "threshold 41 prunes everything: the weights go from 1 to 40"),
            ({"threshold": 9, "scope": "layer"}, "from 0.365 to 1.46 in standard deviations of their layer"),
            ({"threshold": 5}, "threshold 5 .* leaves no weight in 0; give less"),
            ({"sparsity": 0.5}, "sparsity 0.5 .* leaves no weight in 0; give less, put the layer into ignore"),
            ({"sparsity": 0.3, "scope": "rows"}, "scope 'rows' is unknown; use 'global' or 'layer'"),
            ({"sparsity": 0.3, "ignore": ["3"]}, "ignore has '3', and Sequential has no such module"),
            ({"sparsity": 0.3, "ignore": ["0", "2"]}, "Sequential has no Conv2d or Linear whose weights could be"),
        ],
    )  # fmt: skip
    def test_a_wish_that_cannot_be_met(self, by_hand, wish, message):
        """What was given, what is needed, what to do."""
        with pytest.raises(ValueError, match=message):
            prune_weights(by_hand, **wish)

    def test_a_misspelt_layer(self):
        """The message proposes the one that was meant."""
        with pytest.raises(ValueError, match=r"'blocks.0.conv', .* did you mean 'blocks.0.conv[12]'\?"):
            prune_weights(resnet(8), sparsity=0.5, ignore=["blocks.0.conv"])

    def test_less_than_is_masked(self, by_hand):
        """Zeros do not return."""
        pruned = prune_weights(by_hand, sparsity=0.5, scope="layer")
        with pytest.raises(
            ValueError, match=r"sparsity 0.25 prunes nothing: 50.0% of these weights are masked already"
        ):
            prune_weights(pruned, sparsity=0.25, scope="layer")

    def test_nan(self, by_hand):
        """It is neither small nor large."""
        by_hand[0].weight.data[0, 0] = torch.nan
        with pytest.raises(ValueError, match=r"0.weight holds NaN"):
            prune_weights(by_hand, sparsity=0.25)

    def test_masks_of_pytorch(self, by_hand):
        """Another kind of mask; the message says how to make it permanent."""
        prune.l1_unstructured(by_hand[0], "weight", amount=0.5)
        with pytest.raises(ValueError, match=r"masked already .* torch.nn.utils.prune.remove\(module, 'weight'\)"):
            prune_weights(by_hand, sparsity=0.25)

    def test_no_module(self):
        """A state_dict, say."""
        with pytest.raises(TypeError, match=r"pruning takes a torch.nn.Module, not dict"):
            prune_weights({}, sparsity=0.25)

    def test_a_weight_of_two_layers(self):
        """A tied decoder would go on with the weight as it was."""
        tied = nn.ModuleDict({"encode": nn.Linear(4, 4), "decode": nn.Linear(4, 4)})
        tied["decode"].weight = tied["encode"].weight
        with pytest.raises(ValueError, match=r"encode.weight and decode.weight are one tensor; .* into ignore"):
            prune_weights(tied, sparsity=0.5)

    def test_permanent_and_rewound_need_masks(self, by_hand):
        """Of the plain network there is nothing to make permanent."""
        with pytest.raises(ValueError, match="Sequential has no masks, and make_permanent needs them; call prune_wei"):
            make_permanent(by_hand)
        with pytest.raises(ValueError, match="Sequential has no masks, and rewind needs them; prune the trained"):
            rewind(by_hand, {})

    def test_rewinding_to_another_network(self, by_hand):
        """Named by the first tensor that does not fit."""
        pruned = prune_weights(by_hand, sparsity=0.25)
        with pytest.raises(ValueError, match=r"0.bias has the shape \[2\], and the earlier state lacks it"):
            rewind(pruned, {})
        with pytest.raises(ValueError, match=r"0.weight has the shape \[2, 2\], and the earlier state has \[3, 3\]"):
            rewind(pruned, by_hand.state_dict() | {"0.weight": torch.zeros(3, 3)})
