"""Plans: which channels go, how near the target is met, what is said before anything is cut."""

from __future__ import annotations

import copy

import pandas as pd
import pytest
import torch
from pruning_nets import Flattened, TwoConvs, batches
from small_residual import SmallResidual, images
from torch import nn
from torch.nn.utils import prune

pytest.importorskip("torch_pruning")

from deploykit.cost import macs, parameters
from deploykit.pruning.channels import prune_channels
from deploykit.pruning.costs import Network, macs_cost
from deploykit.pruning.groups import trace
from deploykit.pruning.importance import channel_scores
from deploykit.pruning.planning import plan_pruning
from deploykit.pruning.selection import (
    ByImportance,
    ByMeasurement,
    Ranking,
    SameShare,
    allowed_counts,
    cheapest_cuts,
    lowest,
    nearest_state,
)

TINY = torch.zeros(1, 2, 4, 4)


def removed(plan) -> dict[str, tuple[int, ...]]:
    """Return the channels that a plan removes from each group."""
    return {removal.group.layer: removal.channels for removal in plan.removals}


class TestWhichChannels:
    def test_the_weakest_filters_go(self):
        """Filters of norm 3, 1, 4, 2, read by equal weights: 1 and 2 are the weakest."""
        plan = plan_pruning(TwoConvs(), TINY, ratio=0.5, scope="layer", importance="l2", ignore=["second"])

        assert removed(plan) == {"first": (1, 3)}

    def test_scores_are_worked_out_by_hand(self):
        """A filter's squared norm and that of what reads it (5 filters of 3x3 ones), averaged, over their mean."""
        scores = channel_scores(trace(TwoConvs(), TINY), "l2")["first"]
        by_hand = (torch.tensor([9.0, 1.0, 16.0, 4.0]) + 45) / 2

        torch.testing.assert_close(scores, (by_hand / by_hand.mean()).double(), rtol=1e-6, atol=0)

    def test_l1_sums_magnitudes(self):
        """18 equal entries of norm n sum to n √18."""
        scores = channel_scores(trace(TwoConvs(), TINY), "l1")["first"]
        by_hand = (torch.tensor([3.0, 1.0, 4.0, 2.0]) * 18**0.5 + 45) / 2

        torch.testing.assert_close(scores, (by_hand / by_hand.mean()).double(), rtol=1e-6, atol=0)

    def test_bn_scale_reads_the_scales(self):
        """Group by group; the sign does not matter."""
        model = Flattened()
        model.bn.weight.data = torch.tensor([0.5, -3.0, 1.0, -0.1, 2.0, 0.7])
        plan = plan_pruning(model, torch.zeros(1, 3, 4, 4), ratio=0.5, importance="bn_scale")

        assert removed(plan) == {"conv": (0, 3, 5)}
        assert dict(plan.left)["hidden"] == "it has no batch norm, so 'bn_scale' says nothing of it"

    def test_taylor_is_weight_times_gradient(self):
        """|w ∂loss/∂w|, summed over a filter and over what reads it, averaged over batches."""
        model, given = TwoConvs().double(), [(x.double(), y) for x, y in batches(2, (2, 4, 4), 3)]
        scores = channel_scores(trace(model, TINY.double()), "taylor", batches=given)["first"]
        by_hand = torch.zeros(4, dtype=torch.float64)
        for pictures, labels in given:
            loss = nn.functional.cross_entropy(model(pictures), labels)
            first, second = torch.autograd.grad(loss, [model.first.weight, model.second.weight])
            by_hand += (first * model.first.weight).abs().sum((1, 2, 3))
            by_hand += (second * model.second.weight).abs().sum((0, 2, 3))

        torch.testing.assert_close(scores, by_hand.detach() / by_hand.mean().detach())

    def test_hessian_squares_the_gradient_of_every_image(self):
        """Torch-Pruning's own accumulation keeps the last image only."""
        model, given = TwoConvs().double(), [(x.double(), y) for x, y in batches(1, (2, 4, 4), 3)]
        scores = channel_scores(trace(model, TINY.double()), "hessian", batches=given)["first"]
        by_hand = torch.zeros(4, dtype=torch.float64)
        for picture, label in zip(*given[0], strict=True):
            loss = nn.functional.cross_entropy(model(picture[None]), label[None])
            first, second = torch.autograd.grad(loss, [model.first.weight, model.second.weight])
            by_hand += (first * model.first.weight).square().sum((1, 2, 3))
            by_hand += (second * model.second.weight).square().sum((0, 2, 3))

        torch.testing.assert_close(scores, by_hand.detach() / by_hand.mean().detach())

    def test_another_loss_gives_other_gradients(self):
        """A loss that reads the first logit only."""
        traced, given = trace(TwoConvs(), TINY), batches(1, (2, 4, 4), 3)
        usual = channel_scores(traced, "taylor", batches=given)["second"]
        own = channel_scores(traced, "taylor", batches=given, loss=lambda model, x, _: model(x)[:, 0].sum())["second"]

        assert not torch.allclose(usual, own)

    def test_random_depends_on_the_seed_alone(self):
        """Equal seeds, equal plans."""
        plans = [plan_pruning(SmallResidual(), images(1), ratio=0.5, importance="random", seed=s) for s in (0, 0, 1)]

        assert removed(plans[0]) == removed(plans[1]) != removed(plans[2])


class TestSelection:
    def test_widths_are_multiples_or_full(self):
        """12 channels in eights: none goes, or four; never all."""
        assert allowed_counts(12, 8) == [0, 4]
        assert allowed_counts(16, 8) == [0, 8]
        assert allowed_counts(3, 1) == [0, 1, 2]
        assert allowed_counts(8, 8) == [0]

    def test_of_equal_scores_the_first_go(self):
        """So that plans repeat."""
        assert lowest(torch.tensor([1.0, 0.5, 0.5, 0.5, 2.0]), 2) == (1, 2)

    def test_a_ranking_keeps_one_of_each_group(self):
        """However weak a group is."""
        ranking = Ranking({"weak": torch.tensor([0.1, 0.2]), "strong": torch.tensor([1.0, 2.0, 3.0])}, 1)

        assert [ranking[step] for step in range(len(ranking))] == [
            {"weak": 0, "strong": 0},
            {"weak": 1, "strong": 0},
            {"weak": 1, "strong": 1},
            {"weak": 1, "strong": 2},
        ]

    def test_the_same_share_of_each_group(self):
        """Half of four and of eight, rounded to what is allowed."""
        scores = {"a": torch.rand(4), "b": torch.rand(8)}

        assert SameShare(scores, 1)[6] == {"a": 2, "b": 4}
        assert SameShare(scores, 4)[9] == {"a": 0, "b": 4}

    def test_by_cost_a_channel_counts_once_for_each_layer_that_it_touches(self):
        """A channel of the stream saves 10,948 MACs in four layers, an inner one 9,216 in two: the inner one goes."""
        traced = trace(SmallResidual(), images(1))
        network, cost = Network(traced.model, traced.groups), macs_cost(traced.model, images(1))
        options = {name: ByImportance(torch.ones(8), 1, len(network.touched[name])) for name in traced.groups}
        states = cheapest_cuts(options, network, cost)

        assert next(states) == {"stem": 0, "conv1": 0}
        assert next(states) == {"stem": 0, "conv1": 1}

    def test_by_measurement_the_price_is_that_of_the_lower_convex_hull(self):
        """Worked out by hand: 4 for 1.5 is the best of 2 for 1, 4 for 1.5 and 6 for 6; a channel goes at a time."""
        options = ByMeasurement(8, 1, {2: 1.0, 4: 1.5, 6: 6.0})

        assert options.best(0, float) == (1.5 / 4, 1)
        assert options.best(3, float) == (0.25, 4)  # 1.25 were lost: half way from 1 to 1.5
        assert options.best(4, float) == ((6.0 - 1.5) / 2, 5)
        assert options.best(6, float) is None  # nothing beyond was measured
        # One that saves nothing is passed over.
        assert options.best(0, lambda fewer: 4.0 * (fewer >= 4)) == (1.5 / 4, 4)

    @pytest.mark.parametrize(("target", "expected"), [(100, 0), (96, 0), (94, 1), (70, 2), (68.4, 2), (0, None)])
    def test_the_nearest_state_of_a_path(self, target, expected):
        """Above or below the target, whichever is nearer."""
        path = Ranking({"a": torch.arange(4.0)}, 1)
        found = nearest_state(path, lambda state: 100 - 10 * state["a"] if state["a"] < 2 else 70 - state["a"], target)

        assert (found and found["a"]) == expected


class TestSensitivity:
    def table(self, stem: float, conv1: float, *, channels: int = 8) -> pd.DataFrame:
        """Return what was measured with half of each group gone."""
        rows = [("stem", channels, channels // 2, stem), ("conv1", channels, channels // 2, conv1)]
        return pd.DataFrame(rows, columns=["layer", "channels", "kept", "divergence"])

    @pytest.mark.parametrize(("stem", "conv1", "whole"), [(9.0, 0.1, "stem"), (0.1, 9.0, "conv1")])
    def test_the_group_that_loses_less_goes(self, stem, conv1, whole):
        """Whatever importance would say of it."""
        model = SmallResidual()
        target = round(0.8 * macs(model, images(1)))
        plan = plan_pruning(model, images(1), target_macs=target, sensitivity=self.table(stem, conv1))
        gone = {name: len(channels) for name, channels in removed(plan).items()}

        assert gone.pop(whole) == 0
        assert 0 < next(iter(gone.values())) <= 4
        assert "importance 'l2', divided by sensitivity" in plan.wanted

    def test_nothing_goes_beyond_what_was_measured(self):
        """The message has the nearest that can be reached."""
        model = SmallResidual()
        with pytest.raises(ValueError, match=r"cannot be reached: every group keeps at least the fewest channels that"):
            plan_pruning(model, images(1), target_macs=1, sensitivity=self.table(1.0, 1.0))

    def test_refused(self):
        """A table of another model, and another way to divide the cuts."""
        with pytest.raises(ValueError, match=r"no row for stem with 8 channels: it belongs to another model; measure"):
            plan_pruning(SmallResidual(), images(1), ratio=0.5, sensitivity=self.table(1.0, 1.0, channels=6))
        with pytest.raises(ValueError, match=r"scope is 'layer', and a sensitivity divides the cuts itself; leave sc"):
            plan_pruning(SmallResidual(), images(1), ratio=0.5, sensitivity=self.table(1.0, 1.0), scope="layer")


class TestTargets:
    @pytest.mark.parametrize("scope", ["global", "layer", "cost"])
    def test_the_macs_are_those_of_the_pruned_model(self, scope):
        """Counted by the library's own counter, before and after; parameters too."""
        model = SmallResidual()
        full = macs(model, images(1))
        plan = plan_pruning(model, images(1), target_macs=full // 2, scope=scope)
        pruned = prune_channels(model, plan)

        assert plan.macs == (full, macs(pruned, images(1)))
        assert plan.parameters == (parameters(model), parameters(pruned))
        assert plan.macs[1] == pytest.approx(full / 2, rel=0.2)

    def test_a_network_of_some_size_is_met_within_two_percent(self):
        """Each channel is a small part of the whole."""
        model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Conv2d(64, 9, 1))
        for share in (0.2, 0.5, 0.9):
            full = macs(model, images(1))
            plan = plan_pruning(model, images(1), target_macs=round(share * full))

            assert abs(plan.missed) < 0.02
            assert "nearest" not in str(plan)

    def test_a_ratio_is_a_share_of_the_channels(self):
        """Of all that can go: 8 + 8 of the residual network's, not of its four classes."""
        plan = plan_pruning(SmallResidual(), images(1), ratio=0.25)

        assert sum(map(len, removed(plan).values())) == 4

    def test_the_same_share_of_each_layer(self):
        """A quarter of each group of eight."""
        plan = plan_pruning(SmallResidual(), images(1), ratio=0.25, scope="layer")

        assert {name: len(gone) for name, gone in removed(plan).items()} == {"stem": 2, "conv1": 2}

    def test_rounded_widths_that_miss_the_target_say_so(self):
        """In eights there is no width between 8 and 16."""
        model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 1))
        plan = plan_pruning(model, images(1), target_macs=round(0.6 * macs(model, images(1))), round_to=8)

        assert plan.removals[0].kept == 8
        assert plan.missed == pytest.approx(0.5 / 0.6 - 1, rel=1e-3)
        assert "the nearest that can be reached is 16.7% below the target" in str(plan)

    def test_cost_keeps_every_group_alive(self):
        """A residual stream, which many layers share, is not emptied for being cheap."""
        model = SmallResidual()
        plan = plan_pruning(model, images(1), target_macs=macs(model, images(1)) // 3, scope="cost")

        assert min(removal.kept for removal in plan.removals) > 1

    def test_the_model_is_not_changed(self):
        """Nor are its gradients or its mode."""
        model = SmallResidual().train()
        before = copy.deepcopy(model.state_dict())
        plan_pruning(model, images(1), ratio=0.5, importance="taylor", batches=batches(1, (3, 8, 8), 4))

        assert model.training
        assert all(parameter.grad is None for parameter in model.parameters())
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class TestPrinting:
    def test_a_plan_says_what_goes_and_what_stays(self):
        """Group by group, the totals, what was left alone: 3*4*9 + 2 * 4*4*9 products on 64 pixels, and 4*4."""
        text = str(plan_pruning(SmallResidual(), images(1), ratio=0.5, scope="layer"))

        assert text.startswith("Plan for SmallResidual: remove 8 of 16 channels (target 8 channels; importance 'l2'")
        assert "  stem      8 -> 4     with stem_bn, conv1 (in), bn2, fc (in), conv2" in text
        assert "  conv1     8 -> 4     with bn1, conv2 (in)" in text
        assert "MACs 87,584 -> 25,360 (3.45x fewer)" in text
        assert text.endswith("left alone: fc: its outputs are the model's outputs")

    def test_the_table(self):
        """For a data frame in a notebook."""
        table = plan_pruning(SmallResidual(), images(1), ratio=0.5, scope="layer").table()

        assert table.columns.tolist() == ["layer", "channels", "kept", "removed_share", "follows"]
        assert table.kept.tolist() == [4, 4]
        assert table.follows[1] == "bn1, conv2 (in)"


class TestRefused:
    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({}, ValueError, r"give one of ratio, target_macs, target_latency; given: none"),
            ({"ratio": 0.5, "target_macs": 9}, ValueError, r"give one of .*; given: ratio and target_macs"),
            ({"ratio": 1.0}, ValueError, r"ratio is 1\.0; give a share from 0 up to, but not including, 1"),
            ({"ratio": -0.1}, ValueError, r"ratio is -0\.1; give a share from 0"),
            ({"ratio": float("nan")}, ValueError, r"ratio is nan; give a share from 0"),
            ({"ratio": "half"}, TypeError, r"ratio is 'half'; give a number from 0"),
            ({"ratio": 0.99}, ValueError, r"target 0 channels cannot be reached: every group keeps at least 1 of its"),
            ({"target_macs": 0.5}, ValueError, r"target_macs is 0\.5; give a number of multiply-accumulates, such as"),
            ({"target_macs": 90_000}, ValueError, r"target 90,000 MACs is more than what the model has, 87,584 MACs"),
            (
                {"target_macs": 9},
                ValueError,
                r"target 9 MACs cannot be reached: .* nearest that can be reached is 2,884 MACs",
            ),
            ({"target_macs": 9, "scope": "cost"}, ValueError, r"target 9 MACs cannot be reached: .* is 2,884 MACs"),
            (
                {"ratio": 0.5, "latency": max},
                ValueError,
                r"latency is measured for target_latency only; give t",
            ),
            ({"target_latency": 0}, ValueError, r"target_latency is 0; give milliseconds above 0"),
            ({"target_latency": 1, "scope": "global"}, ValueError, r"scope is 'global', and target_latency goes"),
            ({"ratio": 0.5, "round_to": 0}, ValueError, r"round_to is 0; give 1, or the block size of the kernels"),
            ({"ratio": 0.5, "scope": "all"}, ValueError, r"scope is 'all'; choose one of global, layer, cost"),
            ({"ratio": 0.5, "importance": "l3"}, ValueError, r"importance is 'l3'; choose one of random, l1, l2, bn_"),
            ({"ratio": 0.5, "importance": "taylor"}, ValueError, r"importance 'taylor' comes from gradients of the l"),
            ({"ratio": 0.5, "importance": "hessian", "batches": []}, ValueError, r"'hessian' got no batch; give"),
            (
                {"ratio": 0.5, "ignore": ["stem", "conv1"]},
                ValueError,
                r"finds no channel that can go \(stem: stem is ig",
            ),
        ],
    )
    def test_options(self, options, error, message):
        """What was given, what is needed, and the nearest that can be had."""
        with pytest.raises(error, match=message):
            plan_pruning(SmallResidual(), images(1), **options)

    def test_everything_frozen(self):
        """Torch-Pruning returns without a word; here every layer has its reason."""
        model = SmallResidual().requires_grad_(requires_grad=False)
        with pytest.raises(ValueError, match=r"no channel that can go \(stem: stem\.weight is frozen"):
            plan_pruning(model, images(1), ratio=0.5)

    def test_the_test_split(self):
        """Choosing by it would make its accuracy too good."""

        class Test(list):
            split = "test"

        with pytest.raises(ValueError, match=r"pruning was given the test split, which is only for reporting"):
            plan_pruning(SmallResidual(), images(1), ratio=0.5, importance="taylor", batches=Test())

    def test_a_loss_without_gradient(self):
        """Scores of zero would prune at random."""
        given = batches(1, (3, 8, 8), 4)
        options = {"ratio": 0.5, "importance": "taylor", "batches": given}
        with pytest.raises(ValueError, match=r"the loss has no gradient: loss\(model, images, labels\) must return"):
            plan_pruning(SmallResidual(), images(1), loss=lambda model, x, _: model(x).detach().sum(), **options)
        with pytest.raises(ValueError, match=r"comes from gradients, and none reaches stem_bn\.weight: the loss must"):
            plan_pruning(SmallResidual(), images(1), loss=lambda model, x, _: model.stem(x).sum(), **options)
        with pytest.raises(ValueError, match=r"comes from gradients, and those of stem are all zero"):
            plan_pruning(SmallResidual(), images(1), loss=lambda model, x, _: 0 * model(x).sum(), **options)

    def test_no_batch_norm_anywhere(self):
        """There is no scale to read."""
        with pytest.raises(ValueError, match=r"'bn_scale' reads the scales of batch norms, and no group .* use 'l2'"):
            plan_pruning(TwoConvs(), TINY, ratio=0.5, importance="bn_scale")


class TestModelsRefused:
    def test_what_is_no_float_module(self):
        """The message names the place and what to do."""
        with pytest.raises(TypeError, match=r"pruning takes a torch\.nn\.Module, not function"):
            plan_pruning(lambda x: x, images(1), ratio=0.5)
        quantized = nn.Sequential(torch.ao.nn.quantized.dynamic.Linear(4, 3))
        with pytest.raises(ValueError, match=r"'0' \(Linear\) is quantized; pruning comes before quantization"):
            plan_pruning(quantized, torch.zeros(1, 4), ratio=0.5)

    def test_masked_already(self):
        """Torch's masks recompute the weight in every forward pass: a cut would be undone or crash."""
        model = TwoConvs()
        prune.l1_unstructured(model.first, "weight", amount=0.5)
        with pytest.raises(
            ValueError, match=r"'first' is masked already .* torch\.nn\.utils\.prune\.remove\(module, 'we"
        ):
            plan_pruning(model, TINY, ratio=0.5)

    @pytest.mark.parametrize(
        "wrap",
        [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm],
        ids=lambda f: f.__name__,
    )
    def test_computed_weights(self, wrap):
        """Weights that come from others cannot be cut where they are."""
        model = TwoConvs()
        wrap(model.first)
        with pytest.raises(
            ValueError, match=r"'first' computes its weights from others; before pruning, make them plain"
        ):
            plan_pruning(model, TINY, ratio=0.5)

    def test_nan(self):
        """The tensor is named, a statistic too."""
        model = SmallResidual()
        model.conv1.weight.data[0, 0, 0, 0] = float("nan")
        with pytest.raises(ValueError, match=r"conv1\.weight holds NaN or infinite weights; pruning compares numbers"):
            plan_pruning(model, images(1), ratio=0.5)
        model = SmallResidual()
        model.bn1.running_var[0] = float("inf")
        with pytest.raises(ValueError, match=r"bn1\.running_var holds NaN or infinite statistics"):
            plan_pruning(model, images(1), ratio=0.5)

    def test_an_input_that_does_not_fit(self):
        """The shape, and the model's own words."""
        with pytest.raises(ValueError, match=r"TwoConvs cannot process an input of shape \(1, 3, 8, 8\): .*channels"):
            plan_pruning(TwoConvs(), images(1), ratio=0.5)
        with pytest.raises(TypeError, match=r"example_input is list; give one tensor"):
            plan_pruning(TwoConvs(), [TINY], ratio=0.5)
