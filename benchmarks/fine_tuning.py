"""What the benchmarks share that fine-tune a pretrained network and compare it, image by image, with what it was."""

from __future__ import annotations

import argparse
import dataclasses
import datetime as dt
import functools
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from on_gpu import DEVICE, graphed
from teaching import MixedResponseLoss, add_teachers, lessons, who_taught
from torch import nn

from deploykit.cards import model_card
from deploykit.cost import macs, parameters
from deploykit.data import Batches, Dataset, load_dataset
from deploykit.distillation import ResponseLoss, Teacher
from deploykit.free_speed import keep_freed_memory
from deploykit.machine import machine
from deploykit.models import Network, load_checkpoint, load_pretrained, save_checkpoint
from deploykit.places import data_folder
from deploykit.significance import paired_difference
from deploykit.training import Accuracy, Loss, TrainingLog, cross_entropy, fit, muon, sgd

EXAMPLE = torch.zeros(1, 3, 32, 32, device=DEVICE)
STATE = "training-state.pt"
OPTIMIZERS = {"muon": muon, "sgd": sgd}


def parser(description: str) -> argparse.ArgumentParser:
    """Return a parser with the arguments that all of them have."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("model", help="a pretrained network, the teacher too")
    made.add_argument("--dataset", default="cifar10")
    made.add_argument("--checkpoint", type=Path, help="a folder to take the weights from instead")
    made.add_argument("--split", choices=("train", "train+val"), default="train+val", help="train is judged on val")
    made.add_argument("--images", type=int, help="train and judge on so many only: a trial")
    made.add_argument("--epochs", type=int, default=20, help="of fine-tuning")
    made.add_argument("--batch-size", type=int, default=128)
    made.add_argument("--optimizer", choices=OPTIMIZERS, default="muon")
    made.add_argument("--peak-lr", type=float, default=0.005, help="of fine-tuning; the default is for Muon")
    made.add_argument("--alpha", type=float, default=0.9, help="share of the teacher in the loss")
    made.add_argument("--seed", type=int, default=0, help="of the batches and of random weights")
    made.add_argument("--out", type=Path, help="folder of the results; given, no recorded run is written")
    made.set_defaults(teachers=())  # parser_of_taught lets them be named
    return made


def parser_of_taught(description: str, *, temperature: float, teachers: Sequence[str] = ()) -> argparse.ArgumentParser:
    """Return a parser with what decides who teaches and how, too."""
    made = parser(description)
    made.add_argument("--temperature", type=float, default=temperature, help="lower for teachers with label smoothing")
    made.add_argument("--mixup", type=float, help="parameter of mixup; the images as they are when not given")
    add_teachers(made, teachers=teachers)
    return made


@dataclasses.dataclass(frozen=True)
class Task:
    """A network, what it is trained with and what it is judged by.

    Attributes:
        full: the pretrained network, channels_last, on the GPU where there is one.
        dataset: where everything comes from.
        batches: to train on, augmented.
        judging: the test images, or validation images while a recipe is being chosen.
        teacher: the pretrained network, or the answers of the teachers that were named.
        optimizer: one of OPTIMIZERS.
        out: folder of the results.
        trial: whether nothing is to be recorded.
    """

    full: Network
    dataset: Dataset
    batches: Batches
    judging: Batches
    teacher: Teacher
    optimizer: str
    out: Path
    trial: bool

    def response_loss(self, given: argparse.Namespace) -> Loss:
        """Return what a network minimises: labels and the teacher's answers, or, at alpha 0, labels alone."""
        if given.alpha == 0 and given.mixup is None:
            return cross_entropy()
        if given.mixup is None:
            return ResponseLoss(self.teacher, given.temperature, given.alpha)
        torch.manual_seed(given.seed)
        return MixedResponseLoss(self.teacher, given.temperature, given.alpha, mixup=given.mixup)


def task(given: argparse.Namespace, name: str) -> Task:
    """Load what the arguments of :func:`parser` ask for; ``name`` is the folder of trials.

    Where teachers are named, the batches are of some rounds of images, to which their answers are there; on a GPU they
    are asked as they are needed.
    """
    keep_freed_memory()  # a step frees and asks for the same large tensors as the one before
    dataset = load_dataset(given.dataset)
    part, judged = (dataset.train, dataset.val) if given.split == "train" else (dataset.train_val, dataset.test)
    if given.images is not None:
        part, judged = part.take(given.images), judged.take(given.images)
    trial = given.out is not None or given.split == "train" or given.images is not None
    full = load_checkpoint(given.checkpoint) if given.checkpoint else load_pretrained(given.model, dataset.name)
    full = full.to(DEVICE, memory_format=torch.channels_last)
    if DEVICE.type == "cuda":
        given.rounds = 0  # asked on the GPU, a teacher is quicker than its answers are found
    batches, teacher = lessons(part, dataset, given, itself=full)
    return Task(
        full=full,
        dataset=dataset,
        batches=batches,
        judging=Batches(judged, dataset, batch_size=500),
        teacher=teacher,
        optimizer=given.optimizer,
        out=given.out or (Path("build") / name if trial else data_folder() / "checkpoints"),
        trial=trial,
    )


def trained(
    network: nn.Module, loss: Loss, work: Task, folder: Path, *, epochs: int, peak_lr: float
) -> tuple[TrainingLog, dict[str, Any]]:
    """Train in place; return the log and the recipe. The state lies in ``folder``, where the next run finds it."""
    folder.mkdir(parents=True, exist_ok=True)
    images, _ = next(iter(work.batches))
    with graphed(network.to(DEVICE, memory_format=torch.channels_last), images):
        log = fit(
            network, work.batches,
            epochs=epochs, loss=loss, optimizer=functools.partial(OPTIMIZERS[work.optimizer], peak_lr=peak_lr),
            schedule="one-cycle", warmup=0.1, checkpoint=folder / STATE, progress=sys.stderr.isatty(),
        )  # fmt: skip
    recipe = {
        "optimizer": work.optimizer, "peak_lr": peak_lr, "schedule": "one-cycle to 0, warm-up 10%",
        "loss": repr(loss), "epochs": epochs,
    }  # fmt: skip
    return log, recipe


def fewer(full: nn.Module, network: nn.Module) -> dict[str, float]:
    """Return how many times fewer multiply-accumulates and parameters a network has than the full one."""
    return {
        "times_fewer_macs": round(macs(full, EXAMPLE) / macs(network, EXAMPLE), 2),
        "times_fewer_parameters": round(parameters(full) / parameters(network), 2),
    }


def judged(full: Accuracy, found: Accuracy, log: TrainingLog) -> dict[str, Any]:
    """Return what is recorded of a fine-tuned network: accuracies from 0 to 1, differences in points."""
    lost = paired_difference(full.correct, found.correct)
    low, high = found.interval
    return {
        "judged_on": found.split,
        "judged_images": found.images,
        "accuracy_before": full.accuracy,
        "accuracy": found.accuracy,
        "accuracy_low": low,
        "accuracy_high": high,
        "minus_before_points": round(100 * lost.difference, 2),
        "minus_before_points_low": round(100 * lost.interval[0], 2),
        "minus_before_points_high": round(100 * lost.interval[1], 2),
        "epochs": len(log.rows),
        "minutes": round(log.rows[-1]["seconds"] / 60, 1),
    }


def command() -> str:
    """Return the command that was given."""
    return shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])


def write_network(
    network: Network, folder: Path, *, description: str, recipe: Mapping[str, Any], accuracy: Accuracy,
    log: TrainingLog, given: argparse.Namespace,
) -> None:  # fmt: skip
    """Write a checkpoint folder with weights, widths, model card and log, and delete the state of its training."""
    card = model_card(
        name=folder.name.rpartition("-")[0],
        dataset=folder.name.rpartition("-")[2],
        description=description,
        accuracy=accuracy,
        trained_on=f"{given.split} ({given.images or 'all'} images)",
        recipe={
            **recipe,
            **who_taught(given),
            "batch_size": given.batch_size,
            "seed": given.seed,
            "augmentation": "random crop with padding 4, horizontal flip",
        },
        machine=machine(),
        date=dt.datetime.now(dt.UTC).date().isoformat(),
        minutes=log.rows[-1]["seconds"] / 60,
        command=command(),
        parameters=parameters(network),
        macs=macs(network, EXAMPLE),
    )
    save_checkpoint(network.cpu(), folder, card=card)
    log.to_csv(folder / "training-log.csv")
    (folder / STATE).unlink(missing_ok=True)
