"""Distillation losses against values worked out by hand and independently written formulas in float64."""

from __future__ import annotations

import copy
import functools
import gc
import itertools
import math
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import scipy.special
import torch
from small_residual import SmallResidual
from small_residual import images as draw
from torch import Tensor, nn

from deploykit.data import Batches, Split
from deploykit.distillation import (
    AttentionLoss,
    DistillationLoss,
    FeatureLoss,
    FeatureTap,
    Outputs,
    RelationLoss,
    ResponseLoss,
    SimilarityLoss,
    cache_teacher_logits,
    cosines,
    distill,
    linear_cka,
    relative_distances,
    softened_divergence,
)
from deploykit.training import fit, sgd

LABELS = torch.tensor([0, 1, 2, 3, 0])


@pytest.fixture
def logits() -> tuple[Tensor, Tensor]:
    """Logits of five images and four classes, of a student and of its teacher."""
    generator = torch.Generator().manual_seed(3)
    student, teacher = (torch.randn(5, 4, generator=generator, dtype=torch.float64) * 3 for _ in range(2))
    return student, teacher


def answering(logits: Tensor) -> nn.Module:
    """Return a network that gives one image per row of ``logits`` these logits, whatever it sees."""

    class Answers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.logits = nn.Parameter(logits.clone())

        def forward(self, images: Tensor) -> Tensor:
            return self.logits + 0 * images.flatten(1).sum(1, keepdim=True)

    return Answers().eval()


def test_divergence_of_two_classes_is_the_one_worked_out_by_hand() -> None:
    """Teacher (3/4, 1/4) at T = 2 and an undecided student: KL = ln 2 - H(3/4, 1/4), times T²."""
    teacher = torch.tensor([[2 * math.log(3), 0.0]])

    found = softened_divergence(torch.zeros(1, 2), teacher, temperature=2.0)

    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert float(found) == pytest.approx(4 * (math.log(2) - entropy), rel=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_divergence_agrees_with_scipy_in_float64(logits: tuple[Tensor, Tensor], temperature: float) -> None:
    """SciPy's softmax and relative entropy give the same number."""
    student, teacher = (scipy.special.softmax(one.numpy() / temperature, axis=1) for one in logits)
    expected = temperature**2 * np.mean(scipy.special.rel_entr(teacher, student).sum(axis=1))

    assert float(softened_divergence(*logits, temperature=temperature)) == pytest.approx(expected, rel=1e-12)


def test_gradient_of_the_divergence_is_right(logits: tuple[Tensor, Tensor]) -> None:
    """The derivative by the student's logits equals finite differences."""
    student, teacher = logits

    assert torch.autograd.gradcheck(
        lambda found: softened_divergence(found, teacher, temperature=3.0), student.requires_grad_()
    )


def test_divergence_at_a_high_temperature_compares_the_logits(logits: tuple[Tensor, Tensor]) -> None:
    """T² KL tends to half the mean square of the centred differences over the classes (Hinton et al. 2015, eq. 4)."""
    student, teacher = ((one - one.mean(1, keepdim=True)) for one in logits)
    expected = (student - teacher).square().mean(1).mean() / 2

    assert float(softened_divergence(*logits, temperature=1e4)) == pytest.approx(float(expected), rel=1e-3)


def test_alpha_0_is_the_cross_entropy_and_alpha_1_the_teacher_alone(logits: tuple[Tensor, Tensor]) -> None:
    """The two ends of alpha leave one part each."""
    student, teacher = map(answering, logits)
    images, labels = torch.zeros(5, 3, 2, 2), torch.tensor([0, 1, 2, 3, 0])

    hard, soft = (ResponseLoss(teacher, alpha=alpha)(student, images, labels) for alpha in (0.0, 1.0))

    assert hard.item() == pytest.approx(nn.functional.cross_entropy(logits[0], labels).item(), rel=1e-6)
    assert soft.item() == pytest.approx(float(softened_divergence(*logits, temperature=4.0)), rel=1e-6)


def test_with_alpha_1_labels_are_not_looked_at(logits: tuple[Tensor, Tensor]) -> None:
    """Images without labels can be learned from: -1, or what cross-entropy ignores, must not end in nan or an error."""
    student, teacher = map(answering, logits)
    loss = ResponseLoss(teacher, alpha=1.0)

    found = [loss(student, torch.zeros(5, 3, 2, 2), torch.full((5,), missing)).item() for missing in (-1, -100, 0)]

    assert found[0] == found[1] == found[2] > 0


def test_a_student_that_equals_its_teacher_has_nothing_to_learn_from_it(logits: tuple[Tensor, Tensor]) -> None:
    """KL of equal answers is 0."""
    student, teacher = answering(logits[0]), answering(logits[0])

    loss = ResponseLoss(teacher, alpha=1.0)(student, torch.zeros(5, 3, 2, 2), torch.zeros(5, dtype=torch.int64))

    assert loss.item() == pytest.approx(0, abs=1e-6)


def test_a_student_cannot_be_its_own_teacher(logits: tuple[Tensor, Tensor]) -> None:
    """The commonest slip: both names stand for one network, whose loss is 0 whatever it does."""
    student = answering(logits[0])
    loss, compiled = ResponseLoss(student), torch.compile(student)
    of_compiled = ResponseLoss(compiled)
    images = torch.zeros(5, 3, 2, 2)

    for call in (
        lambda: loss(student, images, LABELS),
        lambda: loss(compiled, images, LABELS),
        lambda: of_compiled(student, images, LABELS),
        lambda: distill(student, loss, fit),
    ):
        with pytest.raises(ValueError, match="the student is its own teacher, and agrees with itself"):
            call()


def test_gradient_does_not_shrink_with_the_temperature(logits: tuple[Tensor, Tensor]) -> None:
    """With T² the gradient at T = 1000 is that of matching logits, (z - v) / (N K), and not a millionth of it."""
    student, teacher = ((one - one.mean(1, keepdim=True)) for one in logits)
    student.requires_grad_()

    softened_divergence(student, teacher, temperature=1e3).backward()

    torch.testing.assert_close(student.grad, (student - teacher).detach() / student.numel(), rtol=1e-2, atol=1e-4)


def test_no_gradient_reaches_the_teacher(logits: tuple[Tensor, Tensor]) -> None:
    """Only the student is taught."""
    student, teacher = map(answering, logits)

    ResponseLoss(teacher)(student, torch.zeros(5, 3, 2, 2), torch.zeros(5, dtype=torch.int64)).backward()

    assert teacher.logits.grad is None
    assert student.logits.grad.abs().sum() > 0


def test_a_teacher_in_training_mode_is_copied_into_evaluation_mode_with_a_warning() -> None:
    """Batch norm of a training teacher would answer by the batch; the reader's own module stays as it was."""
    teacher = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(12), nn.Linear(12, 4)).train()

    with pytest.warns(UserWarning, match=r"the teacher \(Sequential\) is in training mode"):
        loss = ResponseLoss(teacher)

    assert not loss.teacher.training
    assert teacher.training


def test_a_teacher_that_goes_into_training_mode_later_is_refused(logits: tuple[Tensor, Tensor]) -> None:
    """As by ``everything.train()`` at the beginning of an epoch."""
    student, teacher = map(answering, logits)
    loss = ResponseLoss(teacher)
    teacher.train()

    with pytest.raises(ValueError, match=r"the teacher \(Answers\) was put into training mode since; call \.eval\(\)"):
        loss(student, torch.zeros(5, 3, 2, 2), LABELS)


def test_printing_says_the_settings_and_not_the_teacher() -> None:
    """A training is recognised by what its loss prints."""
    assert repr(ResponseLoss(nn.Identity().eval(), alpha=0.5)) == "ResponseLoss(temperature=4.0, alpha=0.5)"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0.0}, "temperature is 0.0; logits are divided by it: choose a number above 0"),
        ({"temperature": math.nan}, "temperature is nan; logits are divided by it"),
        ({"temperature": math.inf}, "temperature is inf; logits are divided by it"),
        ({"alpha": 1.5}, "alpha is 1.5; it is the teacher's share of the loss: choose 0 to 1"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, float], message: str) -> None:
    """The message says what was given and what is possible."""
    with pytest.raises(ValueError, match=message):
        ResponseLoss(nn.Identity().eval(), **settings)


def test_other_classes_are_refused(logits: tuple[Tensor, Tensor]) -> None:
    """A teacher of three classes cannot teach four."""
    student, teacher = answering(logits[0]), answering(logits[1][:, :3])

    with pytest.raises(ValueError, match=r"the student answers with logits \(5, 4\) and the teacher with \(5, 3\)"):
        ResponseLoss(teacher)(student, torch.zeros(5, 3, 2, 2), torch.zeros(5, dtype=torch.int64))


class Maps(nn.Module):
    """A network whose only layer returns given features; the classifier behind it is part of the gradient."""

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.layer = Given(features)
        self.fc = nn.Linear(features.shape[1], 4, dtype=features.dtype)

    def forward(self, images: Tensor) -> Tensor:
        """Give logits for as many images as there are features."""
        found = self.layer(images)
        return self.fc(found.mean(dim=(2, 3)) if found.ndim == 4 else found)


class Given(nn.Module):
    """A layer that returns what it was given."""

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.features = nn.Parameter(features.clone())

    def forward(self, _images: Tensor) -> Tensor:
        """Return them, whatever the images."""
        return self.features.clone()


def features(*shape: int, seed: int) -> Tensor:
    """Draw features, float32."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def between(kind: type[DistillationLoss], student: Tensor, teacher: Tensor, **settings: object) -> float:
    """Return a loss on features of the layers of two networks."""
    loss = kind(Maps(teacher).eval(), {"layer": "layer"}, **settings)
    return loss(Maps(student).eval(), torch.zeros(len(student), 3, 2, 2), LABELS[: len(student)]).item()


def huber(difference: np.ndarray) -> float:
    """Write Huber's loss down again."""
    size = np.abs(difference)
    return float(np.where(size < 1, size**2 / 2, size - 0.5).mean())


def distances(embeddings: np.ndarray) -> np.ndarray:
    """Write the distances of RKD down again, pair by pair."""
    found = np.array([np.linalg.norm(a - b) for a, b in itertools.combinations(embeddings, 2)])
    return found / found.mean()


def angles(embeddings: np.ndarray) -> np.ndarray:
    """Write the cosines of RKD down again, triplet by triplet."""

    def unit(vector: np.ndarray) -> np.ndarray:
        length = np.linalg.norm(vector)
        return vector / length if length else vector

    number = range(len(embeddings))
    return np.array(
        [
            [
                [unit(embeddings[j] - embeddings[i]) @ unit(embeddings[k] - embeddings[i]) for k in number]
                for j in number
            ]
            for i in number
        ]
    )


class TestRelations:
    def test_distances_of_three_points_are_those_worked_out_by_hand(self) -> None:
        """A triangle with the sides 3, 4 and 5: the mean is 4."""
        triangle = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])

        assert relative_distances(triangle).tolist() == pytest.approx([3 / 4, 1.0, 5 / 4])

    def test_cosines_of_three_points_are_those_worked_out_by_hand(self) -> None:
        """The same triangle has a right angle at its first corner and cosines of 3/5 and 4/5 at the others."""
        found = cosines(torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]]))

        assert [float(found[0, 1, 2]), float(found[1, 0, 2]), float(found[2, 0, 1])] == pytest.approx([0, 0.6, 0.8])

    def test_it_agrees_with_loops_in_float64(self) -> None:
        """Pair by pair and triplet by triplet, with widths that differ."""
        student, teacher = features(5, 6, seed=1), features(5, 9, seed=2)
        one, other = student.double().numpy(), teacher.double().numpy()
        expected = 3 * huber(distances(one) - distances(other)) + 5 * huber(angles(one) - angles(other))

        assert between(RelationLoss, student, teacher, distance=3, angle=5) == pytest.approx(expected, rel=1e-5)

    def test_turning_shifting_and_scaling_is_no_difference(self) -> None:
        """Only relations count: a teacher that is the student turned, moved and enlarged has nothing to say."""
        student = features(5, 6, seed=1)
        turn, _ = torch.linalg.qr(features(6, 6, seed=2))

        assert between(RelationLoss, student, 3 * student @ turn + 7) == pytest.approx(0, abs=1e-6)
        assert between(RelationLoss, student, features(5, 6, seed=3)) > 0.01

    def test_maps_are_averaged_over_their_places(self) -> None:
        """The embedding of a map is what global average pooling makes of it."""
        student, teacher = features(5, 6, 3, 3, seed=1), features(5, 6, 2, 2, seed=2)

        assert between(RelationLoss, student, teacher) == pytest.approx(
            between(RelationLoss, student.mean((2, 3)), teacher.mean((2, 3))), rel=1e-5
        )

    def test_gradients_are_right(self) -> None:
        """They equal finite differences."""
        embeddings = features(4, 3, seed=1).double().requires_grad_()

        assert torch.autograd.gradcheck(relative_distances, embeddings)
        assert torch.autograd.gradcheck(lambda e: cosines(e).square(), embeddings)

    def test_equal_images_give_no_nan(self) -> None:
        """A batch of one image thrice, as a network that has collapsed sees it."""
        student = Maps(torch.ones(3, 6))
        RelationLoss(Maps(features(3, 6, seed=1)).eval(), {"layer": "layer"})(
            student, torch.zeros(3, 3, 2, 2), LABELS[:3]
        ).backward()

        assert student.layer.features.grad.isfinite().all()

    def test_two_equal_images_among_others_do_not_blow_the_gradient_up(self) -> None:
        """Two dead embeddings, which have no direction, weigh nothing; the others' gradient is of ordinary size."""
        embeddings = features(6, 4, seed=1)
        embeddings[4] = embeddings[5] = 0
        student = Maps(embeddings)
        RelationLoss(Maps(features(6, 4, seed=2)).eval(), {"layer": "layer"})(
            student, torch.zeros(6, 3, 2, 2), torch.zeros(6, dtype=torch.int64)
        ).backward()

        assert 1e-4 < student.layer.features.grad.abs().max() < 1

    def test_two_images_are_refused(self) -> None:
        """Two points have no angle."""
        with pytest.raises(ValueError, match="a batch of 2 has no angles between images; give at least 3"):
            between(RelationLoss, features(2, 6, seed=1), features(2, 6, seed=2))

    def test_weights_are_checked(self) -> None:
        """One must be above 0."""
        with pytest.raises(ValueError, match="distance is 0 and angle 0; one must be above 0"):
            RelationLoss(Maps(features(3, 6, seed=1)).eval(), {"layer": "layer"}, distance=0, angle=0)


class TestSimilarity:
    def test_it_is_the_value_worked_out_by_hand(self) -> None:
        """Orthogonal images against equal ones: rows (1, 0) and (0, 1) against (1, 1) / sqrt 2 twice."""
        expected = ((1 - math.sqrt(0.5)) ** 2 + 0.5) / 2

        assert between(SimilarityLoss, torch.eye(2), torch.ones(2, 3)) == pytest.approx(expected, rel=1e-6)

    def test_it_agrees_with_numpy_in_float64(self) -> None:
        """Maps of different widths and sizes, over N²."""
        student, teacher = features(5, 6, 4, 4, seed=1), features(5, 9, 2, 2, seed=2)

        def rows(one: Tensor) -> np.ndarray:
            flat = one.double().numpy().reshape(5, -1)
            gram = np.einsum("id,jd->ij", flat, flat)
            return gram / np.sqrt((gram**2).sum(axis=1, keepdims=True))

        expected = ((rows(student) - rows(teacher)) ** 2).sum() / 5**2
        assert between(SimilarityLoss, student, teacher) == pytest.approx(expected, rel=1e-5)


class TestAttention:
    def test_it_is_the_value_worked_out_by_hand(self) -> None:
        """An image whose first place counts, a teacher for whom both do: (1, 0) against (1, 1) / sqrt 2."""
        student = torch.tensor([[[[2.0, 0.0]]]])
        teacher = torch.ones(1, 3, 1, 2)
        expected = ((1 - math.sqrt(0.5)) ** 2 + 0.5) / 2

        assert between(AttentionLoss, student, teacher) == pytest.approx(expected, rel=1e-6)

    def test_it_agrees_with_numpy_in_float64(self) -> None:
        """The sum over the squared channels, normalised image by image."""
        student, teacher = features(5, 6, 4, 4, seed=1), features(5, 9, 4, 4, seed=2)

        def looks(one: Tensor) -> np.ndarray:
            energy = np.einsum("nchw,nchw->nhw", one.double().numpy(), one.double().numpy()).reshape(5, -1)
            return energy / np.linalg.norm(energy, axis=1, keepdims=True)

        expected = ((looks(student) - looks(teacher)) ** 2).mean()
        assert between(AttentionLoss, student, teacher) == pytest.approx(expected, rel=1e-5)

    def test_other_places_are_refused(self) -> None:
        """Maps of 4 x 4 and 2 x 2 have no places in common."""
        with pytest.raises(
            ValueError, match=r"'layer' are \(5, 6, 4, 4\) and those of the teacher's 'layer' \(5, 6, 2, 2\)"
        ):
            between(AttentionLoss, features(5, 6, 4, 4, seed=1), features(5, 6, 2, 2, seed=2))

    def test_vectors_have_no_attention(self) -> None:
        """Features without places are named."""
        with pytest.raises(ValueError, match=r"features of 'layer' are \(5, 6\); attention needs maps"):
            between(AttentionLoss, features(5, 6, seed=1), features(5, 6, seed=2))


class TestFeatures:
    pairs: ClassVar[dict[str, str]] = {"layer": "layer"}

    def test_equal_widths_are_compared_as_they_are(self) -> None:
        """The mean of the squared differences, and nothing to learn."""
        student, teacher = Maps(torch.zeros(2, 3, 1, 1)), Maps(2 * torch.ones(2, 3, 1, 1)).eval()
        loss = FeatureLoss(teacher, self.pairs, student=student, images=torch.zeros(2, 3, 2, 2))

        assert loss(student, torch.zeros(2, 3, 2, 2), LABELS[:2]).item() == pytest.approx(4)
        assert loss.learned is None

    def test_equal_widths_are_projected_when_asked_to(self) -> None:
        """With the projection set to the identity the loss is that without; at first it is a random one."""
        student, teacher = Maps(features(5, 6, 4, 4, seed=1)), Maps(features(5, 6, 4, 4, seed=2)).eval()
        images = torch.zeros(5, 3, 2, 2)
        plain, loss = (
            FeatureLoss(teacher, self.pairs, student=student, images=images, project=project)
            for project in (False, True)
        )
        as_made = loss(student, images, LABELS).item()
        (matrix,) = loss.learned.parameters()
        nn.init.dirac_(matrix)

        assert loss(student, images, LABELS).item() == pytest.approx(plain(student, images, LABELS).item(), rel=1e-5)
        assert as_made != pytest.approx(plain(student, images, LABELS).item(), rel=1e-2)

    @pytest.mark.parametrize("places", [(4, 4), ()])
    def test_other_widths_go_through_a_projection(self, places: tuple[int, ...]) -> None:
        """The loss is that of a matrix times the student's channels, place by place; einsum says the same."""
        student, teacher = Maps(features(5, 6, *places, seed=1)), Maps(features(5, 9, *places, seed=2)).eval()
        loss = FeatureLoss(teacher, self.pairs, student=student, images=torch.zeros(5, 3, 2, 2))
        matrix, *shift = (p.detach() for p in loss.learned.parameters())
        mapped = torch.einsum("nc...,oc->no...", student.layer.features, matrix.flatten(1)) + sum(shift)

        found = loss(student, torch.zeros(5, 3, 2, 2), LABELS)

        assert matrix.shape[:2] == (9, 6)
        assert found.item() == pytest.approx((mapped - teacher.layer.features).square().mean().item(), rel=1e-5)

    def test_other_places_are_refused_before_any_training(self) -> None:
        """A 1x1 convolution cannot make 2 x 2 of 4 x 4; the message names layers and shapes."""
        student, teacher = Maps(features(5, 6, 4, 4, seed=1)), Maps(features(5, 9, 2, 2, seed=2)).eval()

        with pytest.raises(ValueError, match="only channels may differ in number: choose layers of the same height"):
            FeatureLoss(teacher, self.pairs, student=student, images=torch.zeros(5, 3, 2, 2))

    def test_looking_at_the_shapes_leaves_the_student_as_it_was(self) -> None:
        """Neither its mode nor the statistics of its batch norms change."""
        student, teacher = SmallResidual().train(), SmallResidual().eval()
        before = {name: value.clone() for name, value in student.state_dict().items()}

        FeatureLoss(teacher, {"bn2": "bn2"}, student=student, images=draw(4))

        assert student.training
        assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


@pytest.mark.parametrize("kind", [AttentionLoss, SimilarityLoss, FeatureLoss])
def test_gradients_of_losses_on_maps_are_right(kind: type[DistillationLoss]) -> None:
    """They equal finite differences, in float64."""
    student, teacher = Maps(features(3, 2, 2, 2, seed=1)), Maps(features(3, 4, 2, 2, seed=2)).eval()
    shapes = {"student": student, "images": torch.zeros(3, 3, 2, 2)} if kind is FeatureLoss else {}
    loss = kind(teacher, {"layer": "layer"}, **shapes)
    if loss.learned is not None:
        loss.learned.double()
    wanted = Outputs(torch.zeros(3, 4), {"layer": teacher.layer.features.detach().double()})

    def of_features(found: Tensor) -> Tensor:
        return loss.from_outputs(Outputs(torch.zeros(3, 4), {"layer": found}), wanted, LABELS[:3])

    assert torch.autograd.gradcheck(of_features, student.layer.features.detach().double().requires_grad_())


class TestTap:
    def test_it_reads_what_the_layer_returned(self) -> None:
        """The features are the layer's own result, with their gradient."""
        model = SmallResidual().eval()
        with FeatureTap(model, ["stem", "fc"]) as tap:
            logits = model(draw(2))

        assert torch.equal(tap.features["fc"], logits)
        assert torch.equal(tap.features["stem"], model.stem(draw(2)))
        assert tap.features["stem"].requires_grad

    @pytest.mark.parametrize("fails", [False, True])
    def test_hooks_are_gone_afterwards(self, *, fails: bool) -> None:
        """Also when the forward pass fails, whose error is the one that is seen."""
        model = SmallResidual()
        wrong = torch.zeros(1, 5, 8, 8) if fails else draw(2)

        try:
            with FeatureTap(model, ["stem", "fc"]):
                model(wrong)
        except RuntimeError as error:
            assert fails, error  # noqa: PT017 - it is expected in one of the two cases
        assert not any(module._forward_hooks for module in model.modules())

    def test_a_name_that_does_not_exist_is_refused_with_the_nearest(self) -> None:
        """The message helps with a slip of the pen."""
        with pytest.raises(ValueError, match=r"SmallResidual has no layer 'sten'; the nearest names: stem, "):
            FeatureTap(SmallResidual(), ["sten"])
        with pytest.raises(ValueError, match="no layer 'sten'"):
            SimilarityLoss(SmallResidual().eval(), {"stem": "sten"})

    def test_a_layer_that_is_not_called_is_named(self) -> None:
        """Nothing is compared with the features of the batch before."""
        model = SmallResidual()

        with (
            pytest.raises(ValueError, match="layer 'stem' was not called in this forward pass"),
            FeatureTap(model, ["stem"]),
        ):
            model.fc(torch.zeros(1, 8))

    def test_what_was_heard_before_is_forgotten(self) -> None:
        """A tap that is used twice does not pass off the first batch for the second."""
        model = SmallResidual()
        with (tap := FeatureTap(model, ["stem"])):
            model(draw(2))

        with pytest.raises(ValueError, match="layer 'stem' was not called in this forward pass"), tap:
            pass

    def test_a_layer_that_returns_no_tensor_is_named(self) -> None:
        """An LSTM returns a tuple."""
        model = nn.LSTM(4, 4)

        with pytest.raises(ValueError, match="layer '' returned a tuple in this forward pass"), FeatureTap(model, [""]):
            model(torch.zeros(1, 1, 4))


class TestSum:
    def test_it_is_the_weighted_sum_of_its_terms(self) -> None:
        """Of losses with and without layers, and of one loss twice."""
        torch.manual_seed(0)
        student, teacher = SmallResidual().eval(), SmallResidual().eval()
        response, relation = ResponseLoss(teacher), RelationLoss(teacher, {"pool": "pool"})
        attention = AttentionLoss(teacher, {"stem": "stem", "pool": "pool"})
        values = [float(loss(student, draw(5), LABELS)) for loss in (response, relation, attention)]

        total = response + 25 * relation + 2 * (attention + relation)

        expected = values[0] + 27 * values[1] + 2 * values[2]
        assert float(total(student, draw(5), LABELS)) == pytest.approx(expected, rel=1e-5)

    def test_each_network_runs_once(self) -> None:
        """Three losses do not ask the teacher three times."""
        student, teacher = SmallResidual().eval(), SmallResidual().eval()
        calls = []
        for name, model in (("student", student), ("teacher", teacher)):
            model.register_forward_hook(lambda *_, name=name: calls.append(name))
        loss = (
            ResponseLoss(teacher) + RelationLoss(teacher, {"pool": "pool"}) + SimilarityLoss(teacher, {"pool": "pool"})
        )

        loss(student, draw(5), LABELS)

        assert sorted(calls) == ["student", "teacher"]

    def test_it_prints_the_formula(self) -> None:
        """By it, a training is recognised."""
        teacher = SmallResidual().eval()
        loss = ResponseLoss(teacher) + 25 * RelationLoss(teacher, {"pool": "stem"})

        assert repr(loss) == (
            "1 * ResponseLoss(temperature=4.0, alpha=0.9) + "
            "25 * RelationLoss({'pool': 'stem'}, distance=1.0, angle=2.0)"
        )

    def test_two_teachers_are_refused(self) -> None:
        """A sum has one."""
        with pytest.raises(ValueError, match="these losses have different teachers"):
            ResponseLoss(SmallResidual().eval()) + SimilarityLoss(SmallResidual().eval(), {"pool": "pool"})

    def test_no_layers_and_a_teacher_without_layers_are_refused(self) -> None:
        """Both before any work."""
        with pytest.raises(ValueError, match="no layers were given"):
            SimilarityLoss(SmallResidual().eval(), {})
        with pytest.raises(ValueError, match="the teacher is a function; features are read from the layers"):
            SimilarityLoss(lambda images: images, {"pool": "pool"})

    @pytest.mark.parametrize("kind", [RelationLoss, SimilarityLoss])
    def test_relations_are_computed_in_float32_under_autocast(self, kind: type[DistillationLoss]) -> None:
        """bfloat16 has 8 bits: tables of products would be wrong in the third digit."""
        student, teacher = features(5, 6, seed=1), features(5, 9, seed=2)
        exact = between(kind, student, teacher)

        with torch.autocast("cpu", torch.bfloat16):
            assert between(kind, student, teacher) == pytest.approx(exact, rel=1e-6)


@pytest.fixture
def lesson() -> Batches:
    """Forty small images of four classes, in another order in each epoch."""
    pictures = torch.randint(0, 256, (40, 8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))
    return Batches(Split("train", pictures, torch.arange(40) % 4), Grey, batch_size=10, shuffle=True)


class Grey:
    """Statistics of pixels."""

    mean, std = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


class Wide(nn.Module):
    """A teacher that is wider than :class:`SmallResidual`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pool, self.fc = nn.Conv2d(3, 12, 3, padding=1), nn.MaxPool2d(2), nn.Linear(12, 4)

    def forward(self, images: Tensor) -> Tensor:
        """Map images [N, 3, 8, 8] to logits [N, 4]."""
        return self.fc(self.pool(self.conv(images).relu()).mean(dim=(2, 3)))


class TestDistill:
    def train(self, student: nn.Module, loss: DistillationLoss, lesson: Batches, **settings: object) -> list[float]:
        """Train and return the losses of the epochs."""
        gently = functools.partial(sgd, peak_lr=0.02)
        log = distill(student, loss, functools.partial(fit, batches=lesson, epochs=6, optimizer=gently, **settings))
        return [row["loss"] for row in log.rows]

    def test_projections_learn_with_the_student_and_the_teacher_does_not(self, lesson: Batches) -> None:
        """The projection is no part of the student afterwards."""
        torch.manual_seed(0)
        student, teacher = SmallResidual(), Wide().eval()
        names = list(student.state_dict())
        loss = ResponseLoss(teacher) + FeatureLoss(teacher, {"pool": "pool"}, student=student, images=draw(2))
        before = [copy.deepcopy(model.state_dict()) for model in (student, teacher, loss.learned)]

        losses = self.train(student, loss, lesson)

        changed = [
            any(not torch.equal(value, old[name]) for name, value in model.state_dict().items())
            for model, old in zip((student, teacher, loss.learned), before, strict=True)
        ]
        assert changed == [True, False, True]
        assert losses[-1] < losses[0]
        assert list(student.state_dict()) == names
        assert not any(module._forward_hooks for model in (student, teacher) for module in model.modules())

    @pytest.mark.parametrize("kind", [AttentionLoss, RelationLoss, SimilarityLoss])
    def test_every_loss_on_features_falls_in_training(self, lesson: Batches, kind: type[DistillationLoss]) -> None:
        """It can be minimised by an ordinary training, alone."""
        torch.manual_seed(0)
        losses = self.train(SmallResidual(), 1000 * kind(Wide().eval(), {"pool": "pool"}), lesson)

        assert losses[-1] < 0.9 * losses[0]

    def test_a_training_that_was_stopped_goes_on_with_its_projections(self, lesson: Batches, tmp_path: Path) -> None:
        """Stopped after half and gone on, the student is that of an unbroken run, bit for bit."""

        def trained(*, stop: bool) -> nn.Module:
            torch.manual_seed(0)
            student, teacher = SmallResidual(), Wide().eval()
            loss = FeatureLoss(teacher, {"pool": "pool"}, student=student, images=draw(2))
            file = tmp_path / f"{stop}.pt"
            if stop:
                with pytest.raises(KeyboardInterrupt):
                    self.train(student, Stopping(loss, after=7), lesson, checkpoint=file)
                torch.manual_seed(1)  # another start, which must not count
                student = SmallResidual()
                loss = FeatureLoss(teacher, {"pool": "pool"}, student=student, images=draw(2))
            self.train(student, loss, lesson, checkpoint=file)
            return student

        one, other = trained(stop=False), trained(stop=True)

        assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())

    def test_a_wrong_layer_is_refused_before_training(self, lesson: Batches) -> None:
        """A layer of the student that does not exist."""
        with pytest.raises(ValueError, match="SmallResidual has no layer 'conv'; the nearest names: conv2, conv1"):
            self.train(SmallResidual(), SimilarityLoss(Wide().eval(), {"conv": "conv"}), lesson)

    def test_two_hundred_steps_keep_nothing(self) -> None:
        """Tensors that live after 200 steps with hooks are those that lived after ten."""
        student, teacher = SmallResidual(), Wide().eval()
        loss = FeatureLoss(teacher, {"pool": "pool"}, student=student, images=draw(2)) + RelationLoss(
            teacher, {"pool": "pool"}
        )

        def alive_after(steps: int) -> int:
            for _ in range(steps):
                student.zero_grad()
                loss(student, draw(5), LABELS).backward()
            gc.collect()
            return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())

        alive_after(10)
        assert alive_after(200) <= alive_after(10)


class Stopping(DistillationLoss):
    """A loss that prints as another one and presses Ctrl-C after some steps."""

    def __init__(self, loss: DistillationLoss, *, after: int) -> None:
        super().__init__(loss.teacher)
        self.loss, self.left = loss, after

    def __repr__(self) -> str:
        return repr(self.loss)

    @property
    def layers(self) -> list[tuple[str, str]]:
        """Those of the other."""
        return self.loss.layers

    @property
    def learned(self) -> nn.Module | None:
        """That of the other."""
        return self.loss.learned

    def from_outputs(self, *outputs: object) -> Tensor:
        """Stop at the given step."""
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt
        return self.loss.from_outputs(*outputs)


class TestCache:
    def test_it_answers_as_the_teacher_does_in_any_order(self, lesson: Batches, tmp_path: Path) -> None:
        """A student cannot tell the difference, in this process and after reading the file."""
        teacher = SmallResidual().eval()
        made = cache_teacher_logits(teacher, lesson, tmp_path / "logits.pt")
        read = cache_teacher_logits(teacher, lesson, tmp_path / "logits.pt")

        for images, _ in lesson.epoch(3):
            with torch.no_grad():
                torch.testing.assert_close(made(images), teacher(images))
            assert torch.equal(made(images), read(images))
        assert len(read) == 40

    def test_the_teacher_is_not_asked_again(self, lesson: Batches, tmp_path: Path) -> None:
        """The file spares the forward passes."""
        teacher, calls = SmallResidual().eval(), []
        cache_teacher_logits(teacher, lesson, tmp_path / "logits.pt")
        teacher.register_forward_hook(lambda *_: calls.append(1))

        cache_teacher_logits(teacher, lesson, tmp_path / "logits.pt")

        assert not calls

    def test_it_teaches(self, lesson: Batches, tmp_path: Path) -> None:
        """The loss with the cache is the loss with the teacher."""
        student, teacher = SmallResidual().eval(), SmallResidual().eval()
        cached = cache_teacher_logits(teacher, lesson, tmp_path / "logits.pt")
        images, labels = next(iter(lesson))

        assert float(ResponseLoss(cached)(student, images, labels)) == pytest.approx(
            float(ResponseLoss(teacher)(student, images, labels)), rel=1e-5
        )

    def test_an_image_that_was_not_asked_about_is_refused(self, lesson: Batches, tmp_path: Path) -> None:
        """As after another augmentation."""
        cached = cache_teacher_logits(SmallResidual().eval(), lesson, tmp_path / "logits.pt")

        with pytest.raises(
            ValueError, match="an image of this batch is not in the cache: it was augmented in another way"
        ):
            cached(next(iter(lesson))[0].flip(3))

    def test_a_file_of_another_teacher_or_other_images_is_refused(self, lesson: Batches, tmp_path: Path) -> None:
        """A changed weight is another teacher."""
        teacher, file = SmallResidual().eval(), tmp_path / "logits.pt"
        cache_teacher_logits(teacher, lesson, file)
        other = copy.deepcopy(teacher)
        other.fc.bias.data[0] += 1e-3

        with pytest.raises(ValueError, match=r"logits\.pt holds the answers of another teacher"):
            cache_teacher_logits(other, lesson, file)
        with pytest.raises(ValueError, match=r"logits\.pt holds answers to other images"):
            cache_teacher_logits(teacher, [(draw(3), LABELS[:3])], file)

    def test_a_teacher_of_other_layers_with_the_same_weights_is_another_one(self, tmp_path: Path) -> None:
        """Layers without weights count, too."""
        bare = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4))
        first, second = (nn.Sequential(*bare, made()).eval() for made in (nn.ReLU, nn.Tanh))
        batches = [(torch.zeros(2, 3, 32, 32), LABELS[:2])]
        cache_teacher_logits(first, batches, tmp_path / "logits.pt")

        with pytest.raises(ValueError, match="holds the answers of another teacher"):
            cache_teacher_logits(second, batches, tmp_path / "logits.pt")

    def test_a_file_of_something_else_and_a_used_up_iterator_are_refused(self, lesson: Batches, tmp_path: Path) -> None:
        """A checkpoint, a broken file; and a cache that nothing was looked up in."""
        teacher, file = SmallResidual().eval(), tmp_path / "logits.pt"
        cache_teacher_logits(teacher, lesson, file)
        with pytest.raises(ValueError, match="there are no images to ask the teacher about"):
            cache_teacher_logits(teacher, iter([]), file)
        for content in (file.read_bytes()[:100], b"no such thing"):
            file.write_bytes(content)
            with pytest.raises(ValueError, match=r"logits\.pt is no file of kept answers; delete it, or name another"):
                cache_teacher_logits(teacher, lesson, file)
        torch.save(teacher.state_dict(), file)
        with pytest.raises(ValueError, match=r"logits\.pt is no file of kept answers"):
            cache_teacher_logits(teacher, lesson, file)

    def test_a_teacher_in_training_mode_and_no_images_are_refused(self, tmp_path: Path) -> None:
        """Neither leaves a file."""
        with pytest.raises(ValueError, match=r"the teacher \(SmallResidual\) is in training mode; call \.eval\(\)"):
            cache_teacher_logits(SmallResidual().train(), [(draw(3), LABELS[:3])], tmp_path / "logits.pt")
        with pytest.raises(ValueError, match="there are no images to ask the teacher about"):
            cache_teacher_logits(SmallResidual().eval(), [], tmp_path / "logits.pt")
        assert not list(tmp_path.iterdir())


def test_cka_knows_the_same_arrangement_and_an_unrelated_one() -> None:
    """1 for a turned, enlarged and shifted copy; HSIC written out with centring matrices for another."""
    first, second = features(200, 6, seed=1), features(200, 9, seed=2)
    turn, _ = torch.linalg.qr(features(6, 6, seed=3))
    centring = np.eye(200) - 1 / 200
    one, other = (centring @ (e @ e.T).double().numpy() @ centring for e in (first, second))
    expected = np.sum(one * other) / math.sqrt(np.sum(one * one) * np.sum(other * other))

    assert linear_cka(first, 5 * first @ turn + 2) == pytest.approx(1)
    assert linear_cka(first, second) == pytest.approx(expected, rel=1e-4)
