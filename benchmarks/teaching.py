"""Answers of several teachers to images as they are augmented, asked once and kept: long trainings pay for the student.

On a CPU the teachers answer in int8, through OpenVINO: a teacher is only asked, so everything that makes inference
cheap applies to it. On a GPU they are asked about every image as it is augmented, in bf16. The mean of their
probabilities teaches.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from on_gpu import GraphedTeacher
from portable import calibration_images, in_every_runtime
from torch import Tensor, nn
from tqdm import tqdm

from deploykit.data import Batches, Dataset, Split
from deploykit.distillation import CachedTeacher, Outputs, ResponseLoss, Teacher, cache_teacher_logits
from deploykit.free_speed import fast_predictor
from deploykit.models import load_pretrained


class Rounds(Batches):
    """Augmented, shuffled batches of which the first ``rounds`` epochs come again and again.

    An image is seen in ``rounds`` ways, so that a teacher can answer them all beforehand. All arguments but ``rounds``
    are those of :class:`Batches`.
    """

    def __init__(self, *arguments: Any, rounds: int, **settings: Any) -> None:
        super().__init__(*arguments, **settings, augment=True, shuffle=True, drop_last=True)
        self.rounds = rounds

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Iterate over the batches of an epoch, which are those of one of the first ``rounds``."""
        return super().epoch(epoch % self.rounds, start)

    def settings(self) -> dict[str, Any]:
        """Return what decides what is in the batches, the number of rounds too."""
        return super().settings() | {"rounds": self.rounds}


class Teachers(nn.Module):
    """The mean of what several pretrained networks hold to be probable, on a CPU each of them in int8.

    Their weights in float32 are its own, by which kept answers are recognised; the int8 forms are made when it is first
    asked.
    """

    def __init__(self, names: Sequence[str], dataset: Dataset) -> None:
        super().__init__()
        self.networks = nn.ModuleDict({name: load_pretrained(name, dataset.name) for name in names})
        self.dataset = dataset
        self.eval()

    @functools.cached_property
    def predictors(self) -> list[Callable[[Tensor], Tensor]]:
        """Their forms in bf16 on a GPU, else in int8."""
        if next(self.parameters()).device.type == "cuda":
            return [fast_predictor(network, bf16=True) for network in self.networks.values()]
        images = calibration_images(self.dataset)
        with tempfile.TemporaryDirectory() as folder:
            files = {Path(folder) / f"{name}.onnx": network for name, network in self.networks.items()}
            made = [in_every_runtime(network, images, file)[0] for file, network in files.items()]
        return [lambda images, asked=asked: asked(images.contiguous()) for asked in made]

    def forward(self, images: Tensor) -> Tensor:
        """Map images, float32 [N, 3, H, W], to logits, float32 [N, classes]: logarithms of the mean probabilities."""
        with torch.autocast(images.device.type, enabled=False):  # their forms have their own precision
            probabilities = [predictor(images).softmax(dim=1) for predictor in self.predictors]
            return torch.stack(probabilities).mean(dim=0).log()


class MixedResponseLoss(ResponseLoss):
    """:class:`ResponseLoss` on mixtures of two images, the teacher's answers mixed in the same shares.

    Mixup (Zhang et al. 2018, "mixup: Beyond Empirical Risk Minimization"), against a student that learns the answers to
    its training images by heart. The teacher is asked about the images themselves, so kept answers serve.

    Args:
        teacher, temperature, alpha: as in :class:`ResponseLoss`.
        mixup: both parameters of the Beta distribution that a batch's share is drawn from, above 0; small numbers leave
            most images nearly as they are.
    """

    def __init__(self, teacher: Teacher, temperature: float, alpha: float, *, mixup: float) -> None:
        super().__init__(teacher, temperature, alpha)
        self.mixup = mixup
        self._shares = torch.distributions.Beta(mixup, mixup)

    def __repr__(self) -> str:
        """Say the settings, by which a training is recognised."""
        return f"{super().__repr__().replace('Response', 'MixedResponse')[:-1]}, mixup={self.mixup})"

    def __call__(self, student: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """Return the loss, a scalar; images float32 [N, C, H, W], labels int64 [N]."""
        share = float(self._shares.sample())
        with torch.no_grad():
            answers = self.teacher(images)
        found = Outputs(student(share * images + (1 - share) * images.roll(1, 0)).float(), {})
        with torch.autocast(images.device.type, enabled=False):
            own = self.from_outputs(found, Outputs(answers, {}), labels)
            other = self.from_outputs(found, Outputs(answers.roll(1, 0), {}), labels.roll(1, 0))
        return share * own + (1 - share) * other


def add_teachers(parser: argparse.ArgumentParser, *, teachers: Sequence[str] = ()) -> None:
    """Add the arguments that say who teaches."""
    parser.add_argument(
        "--teachers", nargs="+", default=teachers, help="pretrained networks whose mean answer teaches, not the model's"
    )
    parser.add_argument("--rounds", type=int, default=8, help="epochs that --teachers see; 0: all, the rule on a GPU")


def lessons(part: Split, dataset: Dataset, given: argparse.Namespace, *, itself: nn.Module) -> tuple[Batches, Teacher]:
    """Return augmented batches to train on, and who teaches: ``itself``, or the teachers that are named.

    These are asked about ``given.rounds`` epochs, which then come again and again, and their answers lie in
    build/answers; or about everything, where that is 0. The batches are on the device of ``itself``.
    """
    settings = {"batch_size": given.batch_size, "seed": given.seed}
    if given.teachers and given.rounds:
        batches = Rounds(part, dataset, rounds=given.rounds, **settings)
        return batches, answers_to(batches, given.teachers, dataset)
    device = next(itself.parameters()).device
    batches = Batches(part, dataset, augment=True, shuffle=True, drop_last=True, device=device, **settings)
    teacher = Teachers(given.teachers, dataset).to(device) if given.teachers else itself
    if device.type == "cpu":
        return batches, teacher
    return batches, GraphedTeacher(teacher, next(iter(batches))[0])


def who_taught(given: argparse.Namespace) -> dict[str, str]:
    """Return what a recipe says of the teachers that were named; nothing where the network taught itself."""
    if not given.teachers:
        return {}
    asked = f"{given.rounds} epochs" if given.rounds else "every image"
    return {"teachers": f"{', '.join(given.teachers)}, asked about {asked}"}


def answers_to(batches: Rounds, teachers: Sequence[str], dataset: Dataset) -> CachedTeacher:
    """Return the teachers' answers to all that is in the batches, from build/answers where they lie there."""
    name = "-".join([*teachers, *(f"{setting}{value}" for setting, value in batches.settings().items())])
    file = Path("build/answers") / f"{name}.pt"
    every = itertools.chain.from_iterable(batches.epoch(number) for number in range(batches.rounds))
    shown = tqdm(every, desc="answers of the teachers", total=batches.rounds * len(batches), mininterval=5, leave=False)
    return cache_teacher_logits(Teachers(teachers, dataset), shown, file)
