"""Distillation losses against values worked out by hand and an independently written formula in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.special
import torch
from torch import Tensor, nn

from deploykit.distillation import ResponseLoss, softened_divergence


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


def test_a_student_that_equals_its_teacher_has_nothing_to_learn_from_it(logits: tuple[Tensor, Tensor]) -> None:
    """KL of equal answers is 0."""
    student = answering(logits[0])

    loss = ResponseLoss(student, alpha=1.0)(student, torch.zeros(5, 3, 2, 2), torch.zeros(5, dtype=torch.int64))

    assert loss.item() == pytest.approx(0, abs=1e-6)


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


def test_printing_says_the_settings_and_not_the_teacher() -> None:
    """A training is recognised by what its loss prints."""
    assert repr(ResponseLoss(nn.Identity().eval(), alpha=0.5)) == "ResponseLoss(temperature=4.0, alpha=0.5)"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0.0}, "temperature is 0.0; logits are divided by it: choose a number above 0"),
        ({"temperature": math.nan}, "temperature is nan; logits are divided by it"),
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
