"""Refitting a pruned network by least squares: the right numbers, and nothing else touched."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from pruning_nets import Flattened, TwoConvs, batches
from small_residual import SmallResidual, images
from torch import Tensor, nn
from torch.nn import functional
from torch.testing import assert_close

pytest.importorskip("torch_pruning")

from deploykit.models import resnet
from deploykit.pruning.blocks import prune_blocks
from deploykit.pruning.channels import prune_channels
from deploykit.pruning.planning import plan_pruning
from deploykit.pruning.refit import refit_layers

EVERYWHERE = 10_000  # more places than any layer here has
HARDLY = 1e-12  # a ridge that is not felt
TINY = torch.zeros(1, 2, 4, 4)


class Uneven(nn.Module):
    """A convolution that is read by one with stride, dilation and uneven padding; images [N, 2, 9, 8], 3 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 6, 3, bias=False)
        self.second = nn.Conv2d(6, 5, (3, 2), stride=(1, 2), padding=(2, 1), dilation=(2, 1))
        self.fc = nn.Linear(5, 3)

    def forward(self, pictures: Tensor) -> Tensor:
        """Map float [N, 2, 9, 8] to logits [N, 3]."""
        return self.fc(self.second(self.first(pictures).relu()).relu().mean(dim=(2, 3)))


def met(model: nn.Module, layer: nn.Module, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Return what a layer is given and what it says."""
    found = []
    hook = layer.register_forward_hook(lambda _, given, said: found.append((given[0].detach(), said.detach())))
    model(pictures)
    hook.remove()
    return found[0]


@pytest.fixture
def twins():
    """Two convolutions of which the first has filter 1 twice; the plan removes the smaller of the two."""
    torch.manual_seed(0)
    model = TwoConvs().eval()
    with torch.no_grad():
        model.first.weight.normal_()
        model.second.weight.normal_()
        model.first.weight[1] = 0.01 * model.first.weight[3]
        model.second.weight[:, 1] *= 0.01
    plan = plan_pruning(model, TINY, ratio=1 / 9, scope="global")
    assert [removal.channels for removal in plan.removals] == [(1,), ()]
    return model, plan


class TestNumbers:
    def test_what_a_twin_said_is_taken_over(self, twins):
        """The channel that is left can say all that is missing, so the network answers as it did before."""
        model, plan = twins
        pictures = torch.randn(6, 2, 4, 4)
        with torch.no_grad():
            model.second.weight[:, 1] *= 3e4  # such that the loss is felt
            pruned = prune_channels(model, plan)

        refitted = refit_layers(pruned, model, [torch.randn(64, 2, 4, 4)], plan=plan, places=EVERYWHERE, ridge=HARDLY)

        assert (pruned(pictures) - model(pictures)).abs().max() > 0.1
        assert_close(refitted(pictures), model(pictures), atol=1e-4, rtol=1e-4)

    def test_a_linear_layer_as_numpy_fits_it(self):
        """Weights and bias behind a cut, against numpy.linalg.lstsq."""
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)).double()
        plan = plan_pruning(model, torch.zeros(1, 5, dtype=torch.float64), ratio=0.5)
        pruned, rows = prune_channels(model, plan), torch.randn(200, 5, dtype=torch.float64)

        refitted = refit_layers(pruned, model, [rows[:120], rows[120:]], plan=plan, ridge=HARDLY)

        hidden = pruned[1](pruned[0](rows)).detach().numpy()
        best = np.linalg.lstsq(np.c_[hidden, np.ones(200)], model(rows).detach().numpy(), rcond=None)[0]
        assert_close(refitted[2].weight, torch.from_numpy(best[:-1].T), atol=1e-8, rtol=1e-8)
        assert_close(refitted[2].bias, torch.from_numpy(best[-1]), atol=1e-8, rtol=1e-8)

    @pytest.mark.parametrize(("make", "shape"), [(Uneven, (2, 9, 8)), (SmallResidual, (3, 8, 8))])
    def test_no_other_weights_do_better_on_what_reaches_the_layer_now(self, make, shape):
        """The gradient of the squared distance is zero, for each layer on what the refitted layers before hand it."""
        torch.manual_seed(0)
        model = make().double().eval()
        pictures = torch.randn(60, *shape, dtype=torch.float64)
        plan = plan_pruning(model, pictures, ratio=0.3, scope="layer")
        kept = {removal.group.layer: [i for i in range(removal.group.channels) if i not in removal.channels]
                for removal in plan.removals}  # fmt: skip

        pruned = prune_channels(model, plan)
        refitted = refit_layers(pruned, model, pictures.split(25), plan=plan, places=EVERYWHERE, ridge=HARDLY)

        names = ("second", "fc") if make is Uneven else ("conv1", "conv2", "fc")
        for name in names:
            layer, rows = copy.deepcopy(refitted.get_submodule(name)), kept.get(name, slice(None))
            rows = kept["stem"] if name == "conv2" else rows  # the residual: one group with the stem
            given, _ = met(refitted, refitted.get_submodule(name), pictures)
            wanted = met(model, model.get_submodule(name), pictures)[1][:, rows]
            distance = functional.mse_loss(layer(given), wanted, reduction="sum")
            before = functional.mse_loss(pruned.get_submodule(name)(given), wanted, reduction="sum")
            distance.backward()
            assert distance < 0.9 * before, name
            assert all(parameter.grad.abs().max() < 1e-6 * before for parameter in layer.parameters()), name

    def test_layers_behind_a_removed_block_make_up_for_it(self):
        """Without a plan: all widths are whole, and the first layer that is fitted is the one behind the gap."""
        torch.manual_seed(0)
        model = resnet(14, width=0.5).eval()
        pictures, others = torch.randn(200, 3, 16, 16), torch.randn(50, 3, 16, 16)
        pruned = prune_blocks(model, ["blocks.1"], example_input=pictures)

        refitted = refit_layers(pruned, model, [pictures])

        distances = [functional.mse_loss(network(others), model(others)) for network in (pruned, refitted)]
        assert distances[1] < 0.5 * distances[0]
        assert torch.equal(refitted.blocks[0].conv2.weight, model.blocks[0].conv2.weight)
        assert not torch.equal(refitted.blocks[2].conv1.weight, model.blocks[2].conv1.weight)

    def test_a_strong_ridge_leaves_the_weights(self, twins):
        """It holds them to what pruning left, not to zero."""
        model, plan = twins
        pruned = prune_channels(model, plan)

        refitted = refit_layers(pruned, model, [torch.randn(64, 2, 4, 4)], plan=plan, ridge=1e9)

        assert_close(refitted.state_dict(), pruned.state_dict(), atol=1e-6, rtol=1e-6)

    def test_the_seed_decides_the_places(self, twins):
        """Few places of each image are looked at: the same ones again, or others."""
        model, plan = twins
        pruned, pictures = prune_channels(model, plan), [torch.randn(64, 2, 4, 4)]
        once, again, other = (
            refit_layers(pruned, model, pictures, plan=plan, places=2, seed=seed).second.weight for seed in (0, 0, 1)
        )

        assert torch.equal(once, again)
        assert not torch.equal(once, other)


class TestNothingElse:
    def test_arguments_stay_as_they_are(self):
        """Weights, statistics, modes and hooks of both networks."""
        model = SmallResidual().train()
        plan = plan_pruning(model, images(1), ratio=0.5, scope="layer")
        pruned = prune_channels(model, plan)
        before = [copy.deepcopy(network.state_dict()) for network in (model, pruned)]

        refitted = refit_layers(pruned, model, [images(8)], plan=plan)

        assert_close([network.state_dict() for network in (model, pruned)], before, atol=0, rtol=0)
        assert all(network.training for network in (model, pruned, refitted))
        modules = [*model.modules(), *pruned.modules(), *refitted.modules()]
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in modules)

    def test_statistics_and_layers_before_the_first_cut_input_stay(self):
        """The stem lost outputs only; batch norms go on with what the full network knew."""
        model = SmallResidual().eval()
        plan = plan_pruning(model, images(1), ratio=0.5, scope="layer")
        pruned = prune_channels(model, plan)

        refitted = refit_layers(pruned, model, [images(32)], plan=plan)

        same = [name for name, value in pruned.state_dict().items() if torch.equal(value, refitted.state_dict()[name])]
        changed = set(pruned.state_dict()) - set(same)
        assert changed == {"conv1.weight", "conv2.weight", "conv2.bias", "fc.weight", "fc.bias"}

    def test_frozen_and_depthwise_layers_stay(self):
        """The one must not change, the other has nothing to take over: each filter reads one channel."""
        model = Flattened().eval()
        plan = plan_pruning(model, torch.zeros(1, 3, 4, 4), ratio=0.3, scope="layer")
        pruned = prune_channels(model, plan)
        pruned.fc.requires_grad_(requires_grad=False)

        refitted = refit_layers(pruned, model, batches(4, (3, 4, 4), classes=4), plan=plan)

        assert torch.equal(refitted.fc.weight, pruned.fc.weight)
        assert torch.equal(refitted.depthwise.weight, pruned.depthwise.weight)
        assert not torch.equal(refitted.hidden.weight, pruned.hidden.weight)


class TestRefusals:
    def test_no_image(self, twins):
        """An empty list, or a generator that was used up."""
        model, plan = twins
        with pytest.raises(ValueError, match="got no image; some hundreds of training images are usual"):
            refit_layers(prune_channels(model, plan), model, [], plan=plan)

    def test_the_test_split(self, twins):
        """What is fitted to it cannot be reported on it."""

        class OfTest(list):
            split = "test"

        model, plan = twins
        with pytest.raises(ValueError, match="refit_layers was given the test split"):
            refit_layers(prune_channels(model, plan), model, OfTest([torch.randn(4, 2, 4, 4)]), plan=plan)

    @pytest.mark.parametrize("options", [{"places": 0}, {"ridge": 0.0}])
    def test_options_out_of_range(self, twins, options):
        """Without a ridge the equations may have no single solution."""
        model, plan = twins
        with pytest.raises(ValueError, match="give at least 1 place and a ridge above 0"):
            refit_layers(prune_channels(model, plan), model, [torch.randn(4, 2, 4, 4)], plan=plan, **options)

    def test_a_network_that_the_plan_does_not_lead_to(self, twins):
        """No plan, the full network in the place of the pruned one, and the other way round."""
        model, plan = twins
        pruned, pictures = prune_channels(model, plan), [torch.randn(4, 2, 4, 4)]
        with pytest.raises(ValueError, match="first has 3 output channels, not 4; give the plan by which channels"):
            refit_layers(pruned, model, pictures)
        with pytest.raises(ValueError, match="as the plan prunes it: first has 4 output channels, not 3"):
            refit_layers(model, model, pictures, plan=plan)
        with pytest.raises(ValueError, match="the plan belongs to another model"):
            refit_layers(pruned, pruned, pictures, plan=plan)
