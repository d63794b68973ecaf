"""Channels really gone: smaller tensors, the same logits where they should be, and the trap that removes nothing."""

from __future__ import annotations

import copy

import pytest
import torch
from pruning_nets import Flattened, TwoConvs, silence
from small_residual import SmallResidual, images, state
from torch import nn
from torch.nn.utils import prune
from torch.testing import assert_close

pytest.importorskip("torch_pruning")

from deploykit.cost import macs, parameters
from deploykit.pruning.channel_masks import mask_channels
from deploykit.pruning.channels import prune_channels
from deploykit.pruning.planning import plan_pruning

TINY = torch.zeros(1, 2, 4, 4)
SMALL = torch.zeros(1, 3, 4, 4)
PICTURES = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(0))


class Concatenated(nn.Module):
    """Two convolutions side by side, a norm over both and a reader; images [N, 3, 4, 4], two classes."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 6, 3, padding=1)
        self.norm, self.reader = nn.BatchNorm2d(10), nn.Conv2d(10, 2, 4)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Map float32 [N, 3, 4, 4] to logits [N, 2]."""
        return self.reader(self.norm(torch.cat([self.left(pictures), self.right(pictures)], 1)).relu()).flatten(1)


@pytest.fixture(scope="module")
def residual():
    """A residual network and a plan that halves it; tests copy what they change."""
    torch.manual_seed(0)
    model = SmallResidual().eval()
    return model, plan_pruning(model, images(1), ratio=0.5, scope="layer")


class TestRemoval:
    def test_shapes_shrink_consistently(self, residual):
        """Weights, biases, norms and the numbers that layers print."""
        pruned = prune_channels(*residual)

        assert pruned.stem.weight.shape == (4, 3, 3, 3)
        assert pruned.conv2.weight.shape == (4, 4, 3, 3)
        assert pruned.conv2.bias.shape == pruned.bn2.weight.shape == pruned.bn2.running_var.shape == (4,)
        assert pruned.fc.weight.shape == (4, 4)
        assert repr(pruned.conv1) == "Conv2d(4, 4, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), bias=False)"
        assert repr(pruned.bn2).startswith("BatchNorm2d(4,")

    def test_what_stays_is_what_was(self, residual):
        """The kept filters, read on the kept channels."""
        model, plan = residual
        stem, inner = ([i for i in range(8) if i not in removal.channels] for removal in plan.removals)
        pruned = prune_channels(model, plan)

        assert torch.equal(pruned.conv1.weight, model.conv1.weight[inner][:, stem])
        assert torch.equal(pruned.conv2.weight, model.conv2.weight[stem][:, inner])
        assert torch.equal(pruned.bn1.running_mean, model.bn1.running_mean[inner])

    def test_channels_that_nobody_reads_go_without_a_trace(self, residual):
        """Same logits: the right entries of every layer went, along the residual too."""
        model, plan = copy.deepcopy(residual[0]), residual[1]
        silence(model, plan)

        assert_close(prune_channels(model, plan)(images(5)), model(images(5)))

    def test_channels_that_are_zero_go_without_a_trace(self):
        """A batch norm with scale and shift of zero makes a channel zero, and magnitudes find it."""
        model = SmallResidual().eval()
        for norm in (model.stem_bn, model.bn2, model.bn1):
            norm.weight.data[::2], norm.bias.data[::2] = 0, 0
        plan = plan_pruning(model, images(1), ratio=0.5, scope="layer", importance="bn_scale")

        assert [removal.channels for removal in plan.removals] == [(0, 2, 4, 6), (0, 2, 4, 6)]
        assert_close(prune_channels(model, plan)(images(5)), model(images(5)))

    def test_depthwise_and_flattened_layers(self):
        """Depthwise filters go with their channel, and 16 inputs of the linear layer."""
        torch.manual_seed(0)
        model = Flattened().eval()
        plan = plan_pruning(model, SMALL, ratio=0.5, scope="layer")
        silence(model, plan)
        pruned = prune_channels(model, plan)

        assert (pruned.depthwise.groups, pruned.depthwise.weight.shape) == (3, (3, 1, 3, 3))
        assert pruned.hidden.in_features == 48
        assert_close(pruned(PICTURES), model(PICTURES))

    def test_concatenated_channels(self):
        """Two convolutions into one norm and one reader: each loses its own part."""
        torch.manual_seed(0)
        model = Concatenated().eval()
        plan = plan_pruning(model, SMALL, ratio=0.5)
        silence(model, plan)
        pruned = prune_channels(model, plan)

        assert pruned.norm.num_features == pruned.left.out_channels + pruned.right.out_channels
        assert_close(pruned(PICTURES), model(PICTURES))

    def test_transposed_convolutions(self):
        """They keep their weights the other way round."""
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 6, 1), nn.ConvTranspose2d(6, 4, 2, stride=2), nn.PReLU(4), nn.Conv2d(4, 2, 1)
        )
        plan = plan_pruning(model, SMALL, ratio=0.5, scope="layer")
        silence(model, plan)
        pruned = prune_channels(model, plan)

        assert pruned[1].weight.shape == (3, 2, 2, 2)
        assert pruned[2].weight.shape == (2,)
        assert macs(pruned, SMALL) == plan.macs[1]
        assert_close(pruned(PICTURES), model(PICTURES))

    def test_instance_norm_without_parameters(self):
        """It has no tensor at all, and still a width."""
        model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.InstanceNorm2d(6), nn.Conv2d(6, 2, 4), nn.Flatten())
        pruned = prune_channels(model, plan_pruning(model, SMALL, ratio=0.5))

        assert pruned[1].num_features == 3
        assert pruned(PICTURES).shape == (5, 2)

    def test_layer_norm_and_linear_layers(self):
        """A group through a layer norm shrinks it; parameters are counted."""
        model = nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.Linear(8, 3))
        plan = plan_pruning(model, torch.zeros(1, 5), ratio=0.5)
        pruned = prune_channels(model, plan)

        assert pruned[1].normalized_shape == (4,)
        assert parameters(pruned) == plan.parameters[1] == (5 * 4 + 4) + 2 * 4 + (4 * 3 + 3)


class TestWhatIsKept:
    def test_the_model_is_not_changed(self, residual):
        """Nor does it share tensors with what comes out."""
        model, plan = residual
        before = state(model)
        pruned = prune_channels(model, plan)
        with torch.no_grad():
            for parameter in pruned.parameters():
                parameter.zero_()

        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    @pytest.mark.parametrize("training", [True, False])
    def test_mode_gradients_and_dtype(self, training):
        """A frozen classifier stays frozen, a training model in training mode, float64 float64."""
        model = SmallResidual().double().train(training)
        model.fc.bias.requires_grad_(requires_grad=False)
        model.fc.weight.requires_grad_(requires_grad=True)
        plan = plan_pruning(model, images(1).double(), ratio=0.5, scope="layer", ignore=["conv2"])
        pruned = prune_channels(model, plan)

        assert all(module.training is training for module in pruned.modules())
        assert not pruned.fc.bias.requires_grad
        assert pruned.conv1.weight.requires_grad
        assert pruned.conv1.weight.dtype == torch.float64

    def test_it_trains(self, residual):
        """A gradient reaches every parameter."""
        pruned = prune_channels(*residual).train()
        pruned(images(4)).square().sum().backward()

        assert all(parameter.grad is not None for parameter in pruned.parameters())

    def test_a_plan_can_be_used_twice_and_pruned_models_be_pruned_again(self, residual):
        """A plan holds positions in the full model; the smaller one needs a plan of its own."""
        once = prune_channels(*residual)
        again = prune_channels(once, plan_pruning(once, images(1), ratio=0.5, scope="layer"))

        assert torch.equal(once.fc.weight, prune_channels(*residual).fc.weight)
        assert again.fc.in_features == 2


class TestRefused:
    def test_a_plan_that_removes_nothing(self, residual):
        """Returning the same model would look like success."""
        model, _ = residual
        with pytest.raises(ValueError, match=r"the plan removes nothing \(target 16 channels.*; plan a larger ratio"):
            prune_channels(model, plan_pruning(model, images(1), ratio=0))

    def test_a_plan_of_another_model(self, residual):
        """By name and by width: a model that was pruned already, too."""
        model, plan = residual
        with pytest.raises(
            ValueError, match=r"the plan belongs to another model: .* Conv2d 'stem' .* TwoConvs has none"
        ):
            prune_channels(TwoConvs(), plan)
        with pytest.raises(ValueError, match=r"for a Conv2d 'stem' with 8 output channels, and .* has a Conv2d with 4"):
            prune_channels(prune_channels(model, plan), plan)

    def test_a_forward_that_counts_on_the_width(self):
        """Its number of channels stands in its code; the message repeats what torch says."""

        class Fixed(Flattened):
            def forward(self, pictures: torch.Tensor) -> torch.Tensor:
                return self.fc(self.hidden(self.conv(pictures).reshape(-1, 96)).relu())

        model = Fixed()
        plan = plan_pruning(model, SMALL, ratio=0.5, scope="layer", ignore=["hidden"])
        with pytest.raises(ValueError, match=r"Fixed does not run with fewer channels, because its forward counts on"):
            prune_channels(model, plan)

    def test_masked_after_planning(self, residual):
        """What the plan refuses is refused here as well."""
        model, plan = copy.deepcopy(residual[0]), residual[1]
        prune.random_unstructured(model.stem, "weight", amount=0.5)
        with pytest.raises(ValueError, match=r"'stem' is masked already"):
            prune_channels(model, plan)


class TestMasking:
    def test_nothing_becomes_smaller(self):
        """Half of each convolution's filters are zero; shapes, parameters and MACs are as before."""
        model = SmallResidual()
        masked = mask_channels(model, 0.5)

        zeroed = [
            (conv.weight.flatten(1).norm(dim=1) == 0).sum().item() for conv in (masked.stem, masked.conv1, masked.conv2)
        ]
        assert zeroed == [4, 4, 4]
        assert parameters(masked) == parameters(model)
        assert macs(masked, images(1)) == macs(model, images(1))
        assert masked.state_dict().keys() == model.state_dict().keys()

    def test_the_weakest_filters_are_zeroed(self):
        """Norms 3, 1, 4, 2: the second and the fourth."""
        masked = mask_channels(TwoConvs(), 0.5)

        assert (masked.first.weight.flatten(1).norm(dim=1) == 0).tolist() == [False, True, False, True]

    def test_the_model_is_not_changed(self):
        """It works on a copy."""
        model = TwoConvs()
        mask_channels(model, 0.5)

        assert model.first.weight.all()

    @pytest.mark.parametrize(
        ("model", "ratio", "message"),
        [
            (TwoConvs(), 1.0, r"ratio is 1\.0; give a share"),
            (TwoConvs(), 0.05, r"ratio 0\.05 is less than one filter of any convolution: nothing would be masked"),
            (nn.Linear(3, 2), 0.5, r"Linear has no convolution: there is no filter to mask"),
        ],
    )
    def test_refused(self, model, ratio, message):
        """A call that would change nothing says so."""
        with pytest.raises(ValueError, match=message):
            mask_channels(model, ratio)
