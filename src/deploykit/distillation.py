"""Distillation: a network learns from the answers of another one, not from the labels alone.

This file needs nothing else of deploykit: copy it into a project and it works.
"""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812 - the name that PyTorch code uses
from torch import Tensor, nn

Teacher = Callable[[Tensor], Tensor]


@dataclasses.dataclass(frozen=True)
class ResponseLoss:
    """The labels and the teacher's softened answers as one loss (Hinton et al. 2015, section 2).

        (1 - alpha) * cross_entropy(student, labels) + alpha * T² * KL(teacher_T || student_T)

    where the index T says that the logits are divided by the temperature before the softmax. Dividing scales the
    gradient of the soft part by 1/T²; the factor T² takes that back, so that ``alpha`` means the same at every T.

    It is called as ``loss(student, images, labels)`` and prints its settings. The teacher answers without gradients.

    Args:
        teacher: from float32 [N, C, H, W] to logits [N, classes]: a module or any other predictor. A module in training
            mode is copied, and the copy put into evaluation mode, with a warning: batch norm and dropout would make
            its answers depend on the batch.
        temperature: above 0. The higher, the more the wrong classes count.
        alpha: share of the teacher, 0 to 1.

    Raises:
        ValueError: temperature or alpha out of range; when called, a student with another number of classes.
    """

    teacher: Teacher = dataclasses.field(repr=False)
    temperature: float = 4.0
    alpha: float = 0.9

    def __post_init__(self) -> None:
        """Refuse what cannot work; take a teacher that is training out of it."""
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature}; logits are divided by it: choose a number above 0")
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha is {self.alpha}; it is the teacher's share of the loss: choose 0 to 1")
        if isinstance(self.teacher, nn.Module) and any(module.training for module in self.teacher.modules()):
            warnings.warn(
                f"the teacher ({type(self.teacher).__name__}) is in training mode; a copy in evaluation mode teaches",
                stacklevel=3,
            )
            object.__setattr__(self, "teacher", copy.deepcopy(self.teacher).eval())

    def __call__(self, student: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """Return the loss, a scalar, the mean over the images.

        Args:
            student: from ``images`` to logits [N, classes].
            images: float32 [N, C, H, W], normalised as in the teacher's training.
            labels: int64 [N].
        """
        with torch.no_grad():
            wanted = self.teacher(images).float()
        found = student(images).float()
        if found.shape != wanted.shape:
            raise ValueError(
                f"the student answers with logits {tuple(found.shape)} and the teacher with {tuple(wanted.shape)}; "
                "distillation of responses needs the same classes in the same order"
            )
        soft = softened_divergence(found, wanted, temperature=self.temperature)
        return (1 - self.alpha) * F.cross_entropy(found, labels) + self.alpha * soft


def softened_divergence(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float) -> Tensor:
    """Return T² KL(teacher_T || student_T), a scalar: the mean over the images (Hinton et al. 2015, section 2).

    Args:
        student_logits: float [N, classes].
        teacher_logits: float [N, classes], of the same images.
        temperature: T, above 0.
    """
    wanted = F.softmax(teacher_logits / temperature, dim=1)
    found = F.log_softmax(student_logits / temperature, dim=1)
    # "mean" would also divide by the number of classes, and the labels would outweigh the teacher.
    return temperature**2 * F.kl_div(found, wanted, reduction="batchmean")
