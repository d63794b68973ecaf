"""A pruned and refitted network is taught by the network that it was, for as long as the budget allows, and resumes."""

from __future__ import annotations

import copy
import functools
import json
import math
from dataclasses import asdict, dataclass
from typing import Any

import safetensors.torch
import torch
from torch import nn

from deploykit import ledger
from deploykit.contestants import Setting
from deploykit.cost import macs
from deploykit.data import Batches, Dataset
from deploykit.distillation import ResponseLoss
from deploykit.optimize.folder import origin
from deploykit.optimize.plan import Smaller, duration
from deploykit.optimize.shrink import LEAST_BATCH, SHRINK, batch_size
from deploykit.places import atomic_write
from deploykit.training import DivergedError, fit, sgd

LEAST_STEPS = 40  # below, a pruned network has not come to itself
MOST_EPOCHS, ENOUGH_STEPS = 15, 600  # whichever is longer: a small data set needs more passes
BATCHES_IN_AN_EPOCH = 8  # at least, where there are so many images
TRIAL_STEPS = 2  # in each of two epochs, the first of which warms up
PEAK_LR, WARMUP, TEMPERATURE = 0.005, 0.2, 2.0  # a higher rate undoes what refitting has brought back
# Only the teacher counts: it knows what a shifted or mirrored image is, which its label may not say any more.
TEACHERS_SHARE = 1.0
STATE, WEIGHTS, LESSON = "training-state.pt", "model.safetensors", "lesson.json"
STATE_EVERY_S = 30.0


@dataclass(frozen=True)
class Lesson:
    """How long a network is taught: settled once, so that an interrupted training is the same one when it goes on.

    Attributes:
        origin: what it belongs to.
        epochs: passes.
        images: of the training split.
        batch_size: images in a step.
        step_s: seconds of one step, as measured before.
    """

    origin: str
    epochs: int
    images: int
    batch_size: int
    step_s: float

    @property
    def seconds(self) -> float:
        """How long it will take."""
        return self.epochs * (self.images // self.batch_size) * self.step_s

    def __str__(self) -> str:
        epochs = "1 epoch" if self.epochs == 1 else f"{self.epochs} epochs"
        return f"{epochs} of {self.images:,} training images in batches of {self.batch_size}"


def make_smaller(
    step: Smaller,
    model: nn.Module,
    setting: Setting,
    dataset: Dataset,
    *,
    seconds: float,
    share_s: float,
    progress: bool,
) -> tuple[nn.Module, str]:
    """Return a pruned and taught copy of the network, and what was done in words.

    Args:
        step: which way.
        model: float32, in evaluation mode on the CPU; it is not changed, and it teaches.
        setting: its ``folder`` is this network's own.
        dataset: whose training split teaches.
        seconds: that are left for it.
        share_s: what the plan has for it, which does not depend on how fast the steps before were.
        progress: show a progress bar.

    Raises:
        ValueError: this network cannot be pruned so, the budget does not allow to teach it, or the training diverged.
        ImportError: Torch-Pruning is missing.
        KeyboardInterrupt: stopped; the state is written.
    """
    setting.report(f"{step.name}: looking for what can go")
    network, gone = SHRINK[step.name](model, setting.calibration)
    less = macs(model, setting.calibration[:1]) / macs(network, setting.calibration[:1])
    recipe = (step.name, gone, share_s, PEAK_LR, WARMUP, TEMPERATURE, TEACHERS_SHARE, MOST_EPOCHS, ENOUGH_STEPS)
    lesson = _kept(setting, made_from := origin(model, setting.calibration, dataset, recipe))
    if lesson is None:
        setting.report(f"{step.name}: measuring a training step")
        lesson = _settled(made_from, network, model, setting, dataset, seconds=seconds)
    done = f"{gone}, {less:.2f}x fewer multiply-accumulates; refitted, then taught by the network as it was, {lesson}"
    weights = setting.folder / WEIGHTS
    if not weights.exists():
        setting.report(f"{step.name}: teaching, {lesson}, about {duration(lesson.seconds)}")
        seconds = _teach(network, model, setting, dataset, lesson, progress=progress)
        ledger.record(
            f"{step.name}, taught", kind="optimize", dataset=dataset.name, split="train", epochs=lesson.epochs,
            images=lesson.images, seconds=seconds, times_fewer_macs=less,
        )  # fmt: skip
    network.load_state_dict(safetensors.torch.load_file(weights))
    return network.to(memory_format=torch.contiguous_format).eval(), done


def seconds_of_a_step(network: nn.Module, teacher: nn.Module, dataset: Dataset, size: int) -> float:
    """Train a copy for two short epochs and return the seconds of a step of the second, batches of ``size`` images."""
    trial = Lesson("", 2, min(TRIAL_STEPS * size, len(dataset.train)), size, 0.0)
    rows = fit(copy.deepcopy(network), _batches(dataset, trial), epochs=trial.epochs, **_method(teacher)).rows
    return (rows[1]["seconds"] - rows[0]["seconds"]) / (trial.images // size)


def _kept(setting: Setting, made_from: str) -> Lesson | None:
    """Return the lesson that an earlier call settled for the same thing; what belongs to another is removed."""
    path = setting.folder / LESSON
    kept = Lesson(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None
    if kept is not None and kept.origin == made_from:
        return kept
    for name in (LESSON, STATE, WEIGHTS):
        (setting.folder / name).unlink(missing_ok=True)
    return None


def _settled(
    made_from: str, network: nn.Module, teacher: nn.Module, setting: Setting, dataset: Dataset, *, seconds: float
) -> Lesson:
    """Settle a lesson by the seconds of a step, and keep it.

    Raises:
        ValueError: there is no time for it.
    """
    count = len(dataset.train)
    size = min(batch_size(setting.calibration.shape[-1]), max(LEAST_BATCH, count // BATCHES_IN_AN_EPOCH), count)
    step_s = seconds_of_a_step(network, teacher, dataset, size)
    steps = max(int(seconds / step_s), 0)
    if steps < LEAST_STEPS:
        raise ValueError(
            f"left out: the budget leaves {duration(max(seconds, 0))} for its fine-tuning, {steps} steps of "
            f"{duration(step_s)}, and it takes {LEAST_STEPS} at least; give a larger budget"
        )
    in_an_epoch = count // size
    steps = min(steps, max(MOST_EPOCHS * in_an_epoch, ENOUGH_STEPS))
    epochs = math.ceil(steps / in_an_epoch)
    images = count if steps == epochs * in_an_epoch else steps // epochs * size
    lesson = Lesson(made_from, epochs, images, size, step_s)
    with atomic_write(setting.folder / LESSON) as partial:
        partial.write_text(json.dumps(asdict(lesson)), encoding="utf-8")
    return lesson


def _teach(
    network: nn.Module, teacher: nn.Module, setting: Setting, dataset: Dataset, lesson: Lesson, *, progress: bool
) -> float:
    """Train ``network`` in place and keep its weights; returns the seconds."""
    state = setting.folder / STATE
    try:
        log = fit(
            network, _batches(dataset, lesson), epochs=lesson.epochs, **_method(teacher),
            checkpoint=state, checkpoint_every_s=STATE_EVERY_S, progress=progress,
        )  # fmt: skip
    except DivergedError as error:
        state.unlink(missing_ok=True)
        raise ValueError(f"its fine-tuning diverged: {error}") from error
    # Copies: safetensors takes no two tensors that share their memory.
    taught = {name: tensor.clone().contiguous() for name, tensor in network.state_dict().items()}
    with atomic_write(setting.folder / WEIGHTS) as partial:
        partial.write_bytes(safetensors.torch.save(taught))
    state.unlink(missing_ok=True)
    return float(log.rows[-1]["seconds"])


def _batches(dataset: Dataset, lesson: Lesson) -> Batches:
    part = dataset.train.take(lesson.images)
    return Batches(part, dataset, batch_size=lesson.batch_size, augment=True, shuffle=True, drop_last=True)


def _method(teacher: nn.Module) -> dict[str, Any]:
    loss = ResponseLoss(teacher, TEMPERATURE, TEACHERS_SHARE)
    return {"loss": loss, "optimizer": functools.partial(sgd, peak_lr=PEAK_LR), "warmup": WARMUP}
