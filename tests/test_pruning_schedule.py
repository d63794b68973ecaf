"""Gradual pruning: the schedule is the paper's, masks only grow, and an interrupted training goes on exactly."""

from __future__ import annotations

import dataclasses
import functools

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from deploykit.data import Batches, Dataset, load_dataset
from deploykit.identity import describe
from deploykit.models import resnet
from deploykit.pruning.masks import masked_layers
from deploykit.pruning.schedule import GradualPruning, SparsitySchedule, prepare_gradual_pruning
from deploykit.pruning.sparsity import sparsity_report
from deploykit.pruning.weights import prune_weights
from deploykit.training import CrossEntropy, fit


@pytest.fixture(scope="module")
def shapes32() -> Dataset:
    """The embedded pictures."""
    return load_dataset("shapes32")


@pytest.fixture
def tiny() -> nn.Module:
    """A linear layer of 1,000 weights, in training mode, with masks that keep them all."""
    torch.manual_seed(0)
    return prepare_gradual_pruning(nn.Sequential(nn.Linear(100, 10)))


def sparsities(model: nn.Module, loss: GradualPruning, steps: int) -> list[float]:
    """Return the model's sparsity after each of some steps."""
    found = []
    for _ in range(steps):
        loss(model, torch.randn(2, 100), torch.tensor([0, 1]))
        found.append(sparsity_report(model).sparsity)
    return found


class TestSchedule:
    @pytest.mark.parametrize(
        ("share", "sparsity"),
        # 0.8 - 0.8 (1 - t / 0.5)^3: 0, seven eighths of the way at half time, done at the end.
        [(0, 0), (0.125, 0.8 - 0.8 * 0.421875), (0.25, 0.7), (0.5, 0.8), (1, 0.8)],
    )
    def test_it_is_cubic(self, share, sparsity):
        """Equation 1 of Zhu & Gupta, computed by hand."""
        assert SparsitySchedule(0.8, end=0.5)(share) == pytest.approx(sparsity, abs=1e-12)

    def test_it_begins_late_and_not_at_zero(self):
        """Dense before ``begin``, then from ``initial`` on: 0.9 - 0.4 / 8 half way."""
        schedule = SparsitySchedule(0.9, initial=0.5, begin=0.2, end=0.6)

        assert [schedule(share) for share in (0.1, 0.2, 0.4, 0.6)] == pytest.approx([0, 0.5, 0.85, 0.9])

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({"final": 1.0}, "final is 1.0; give a share"),
            ({"initial": -0.1}, "initial is -0.1; give a share"),
            ({"initial": 0.8}, "initial is 0.8 and final 0.8; a schedule rises"),
            ({"begin": 0.5, "end": 0.5}, "begin is 0.5 and end 0.5; give shares of training with 0 <= begin < end"),
            ({"end": 1.5}, "begin is 0.0 and end 1.5"),
        ],
    )
    def test_what_is_no_schedule_is_refused(self, wrong, message):
        """Each with the numbers that were given."""
        with pytest.raises(ValueError, match=message):
            SparsitySchedule(**{"final": 0.8} | wrong)


class TestGradualPruning:
    def test_the_sparsity_follows_the_schedule(self, tiny):
        """Updated every two steps, exact to a weight; final from step ``end`` on."""
        schedule = SparsitySchedule(0.8, begin=0.2, end=0.7)
        found = sparsities(tiny, GradualPruning(schedule, 10, every=2), 10)

        at = {step: round(1000 * schedule(step / 10)) / 1000 for step in (4, 6, 7)}
        assert found == pytest.approx([0, 0, 0, 0, at[4], at[4], at[6], 0.8, 0.8, 0.8])

    @pytest.mark.parametrize(("steps", "every", "end"), [(7, 3, 1.0), (5, 100, 0.75), (2, 1, 1.0), (100, 7, 0.3)])
    def test_the_final_sparsity_is_always_reached(self, tiny, steps, every, end):
        """Also where the last update does not fall on a multiple, or the schedule ends with the training."""
        loss = GradualPruning(SparsitySchedule(0.8, end=end), steps, every=every)

        assert sparsities(tiny, loss, steps)[-1] == pytest.approx(0.8)

    def test_masks_only_grow(self, tiny):
        """A weight that was masked does not return, however large it is under its mask."""
        loss = GradualPruning(SparsitySchedule(0.8), 8, every=1)
        lost = torch.zeros(10, 100, dtype=torch.bool)
        for _ in range(8):
            loss(tiny, torch.randn(2, 100), torch.tensor([0, 1]))
            zero = tiny[0].weight == 0
            assert bool(zero[lost].all())
            lost = zero
            with torch.no_grad():
                tiny[0].parametrizations.weight.original[zero] = 100.0

    def test_more_than_the_schedule_stays(self, tiny):
        """A model that is sparser than the schedule says is left alone until the schedule catches up."""
        pruned = prune_weights(tiny, sparsity=0.5)
        found = sparsities(pruned, GradualPruning(SparsitySchedule(0.8), 10, every=1), 10)

        assert found[0] == 0.5
        assert found[-1] == 0.8

    def test_evaluation_is_no_step(self, tiny):
        """A loss on validation images neither prunes nor counts."""
        found = sparsities(tiny.eval(), GradualPruning(SparsitySchedule(0.8), 4, every=1), 4)

        assert found == [0, 0, 0, 0]
        assert next(iter(masked_layers(tiny).values()))[1].calls == 0

    def test_preparing_again_starts_the_count_anew(self, tiny):
        """For a second training to a higher sparsity, from the masks of the first."""
        sparsities(tiny, GradualPruning(SparsitySchedule(0.5), 4, every=1), 4)
        again = prepare_gradual_pruning(tiny)

        assert sparsity_report(again).sparsity == 0.5
        assert sparsities(again, GradualPruning(SparsitySchedule(0.7), 4, every=1), 4)[-1] == pytest.approx(0.7)

    def test_it_returns_the_loss_it_wraps(self, tiny):
        """Cross-entropy when none is given."""
        tiny.eval()
        images, labels = torch.randn(2, 100), torch.tensor([0, 1])
        plain, smooth = (
            GradualPruning(SparsitySchedule(0.8), 4, loss=loss)(tiny, images, labels)
            for loss in (None, CrossEntropy(0.1))
        )

        assert_close(plain, nn.functional.cross_entropy(tiny(images), labels))
        assert_close(smooth, CrossEntropy(0.1)(tiny, images, labels))

    def test_it_prints_its_settings(self):
        """They tell one training from another; addresses in memory would make every process a new one."""
        loss = GradualPruning(SparsitySchedule(0.8), 100, loss=CrossEntropy(0.1))
        function = dataclasses.replace(loss, loss=functools.partial(nn.functional.cross_entropy))

        assert describe(loss) == (
            "GradualPruning(SparsitySchedule(final=0.8, initial=0.0, begin=0.0, end=0.75), steps=100, "
            "loss=CrossEntropy(label_smoothing=0.1), every=20, scope='global')"
        )
        assert "loss=functools.partial(<function cross_entropy>)" in describe(function)

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({"steps": 0}, "steps is 0 and every 20; both are whole numbers from 1 on"),
            ({"steps": 1}, "of 1 steps the schedule uses 0 to 0, too few"),
            ({"scope": "rows"}, "scope 'rows' is unknown"),
        ],
    )
    def test_what_cannot_be_meant_is_refused(self, wrong, message):
        """Before training."""
        with pytest.raises(ValueError, match=message):
            GradualPruning(**{"schedule": SparsitySchedule(0.8), "steps": 100} | wrong)

    def test_a_number_is_no_schedule(self):
        """The message shows what to write."""
        with pytest.raises(TypeError, match=r"schedule is 0.8; give a SparsitySchedule, SparsitySchedule\(0.8\)"):
            GradualPruning(0.8, 100)

    def test_a_model_without_masks(self):
        """It would be trained, and not pruned."""
        with pytest.raises(ValueError, match="has no masks, and gradual pruning needs them; call prepare_gradual_pru"):
            GradualPruning(SparsitySchedule(0.8), 4)(nn.Linear(4, 2), torch.randn(2, 4), torch.tensor([0, 1]))


class TestTraining:
    def run(self, shapes32, *, stop_after=None, checkpoint=None, ema_decay=None) -> nn.Module:
        """Train a small network for eight steps, or until an interruption."""
        torch.manual_seed(0)
        network = prepare_gradual_pruning(resnet(8), ignore=["conv"])
        batches = Batches(shapes32.train.take(32), shapes32, batch_size=8, shuffle=True)
        gradual = GradualPruning(SparsitySchedule(0.8), 8, every=1)
        calls = 0

        class Interrupted(GradualPruning):
            def __call__(self, model, images, labels):
                nonlocal calls
                calls += 1
                if calls == stop_after:
                    raise KeyboardInterrupt
                return super().__call__(model, images, labels)

        loss = Interrupted(gradual.schedule, gradual.steps, every=1)
        fit(network, batches, epochs=2, loss=loss, precision="fp32", checkpoint=checkpoint, checkpoint_every_s=0.0,
            ema_decay=ema_decay)  # fmt: skip
        return network

    def test_an_interrupted_training_goes_on_exactly(self, shapes32, tmp_path):
        """Weights and masks are those of the unbroken run, bit for bit."""
        whole = self.run(shapes32)
        with pytest.raises(KeyboardInterrupt):
            self.run(shapes32, stop_after=4, checkpoint=tmp_path / "state.pt")
        resumed = self.run(shapes32, checkpoint=tmp_path / "state.pt")

        assert_close(resumed.state_dict(), whole.state_dict(), rtol=0, atol=0)
        assert sparsity_report(whole).sparsity == pytest.approx(0.8, abs=0.01)

    def test_an_average_ends_as_sparse_as_the_model(self, shapes32):
        """EMA over masks that grow: what the model has lost, its average has lost."""
        averaged = self.run(shapes32, ema_decay=0.9)
        plain = self.run(shapes32)

        for name, (layer, _) in masked_layers(averaged).items():
            assert bool(((layer.weight == 0) == (plain.get_submodule(name).weight == 0)).all())

    @pytest.mark.parametrize("ema_decay", [None, 0.9])
    def test_fit_keeps_zeros(self, shapes32, ema_decay):
        """The course's own training, with and without EMA, which copies the model."""
        pruned = prune_weights(resnet(8), sparsity=0.8)
        before = {name: layer.weight == 0 for name, (layer, _) in masked_layers(pruned).items()}
        batches = Batches(shapes32.train.take(16), shapes32, batch_size=8)
        fit(pruned, batches, epochs=1, ema_decay=ema_decay, precision="fp32")

        for name, (layer, _) in masked_layers(pruned).items():
            assert bool(((layer.weight == 0) == before[name]).all())
