"""What does a student gain from a teacher, in its answers, features and relations? Several seeds, from random weights.

    python benchmarks/distillation.py resnet20 --student resnet8 --epochs 3       # teacher first; hours on a CPU
    python benchmarks/distillation.py resnet56 --student resnet8 --arms labels response --epochs 10 --cached
    python benchmarks/distillation.py resnet56-sgd --student resnet8 --arms hard response --seeds 0 1 2 \
        --optimizer sgd --peak-lr 0.1 --int8-teacher --name resnet8-in-minutes      # a minute or two for each training
    python benchmarks/distillation.py resnet20 --student resnet8 --split train --images 1000 --epochs 1 --seeds 0 1

Each arm is trained from the same random weights, on the same batches in the same order, as the arms "hard" and
"labels", the labels as they are and smoothed, seed by seed, so that differences are paired. What is added to the
teacher's answers gets the weight at which its gradient at the first weights is half as long as theirs (notebook 09):
the weights of papers belong to the papers' networks. With --cached all seeds see the same batches and differ in their
first weights only, so that the teacher is asked once; "shortcut" has its answers to the images before augmentation, for
what became of them (notebook 08, section 3).
A seed that is done is kept in build/ and not trained again; one that was stopped goes on. Writes
data/results/distillation-NAME.json unless it is a trial.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import functools
import itertools
import json
import statistics
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from fine_tuning import OPTIMIZERS, Task, command, parser, task
from on_gpu import DEVICE, graphed
from teaching import Teachers
from torch import Tensor, nn

from deploykit.data import Batches
from deploykit.distillation import (
    AttentionLoss,
    CachedTeacher,
    DistillationLoss,
    FeatureLoss,
    RelationLoss,
    ResponseLoss,
    SimilarityLoss,
    Teacher,
    cache_teacher_logits,
    distill,
)  # fmt: skip
from deploykit.models import ResNet, ResNetConfig, build
from deploykit.places import atomic_write
from deploykit.recorded import recorded, write_recorded
from deploykit.significance import mean_paired_difference
from deploykit.training import Loss, cross_entropy, evaluate, fit, resolve_precision

OF_LABELS = ("hard", "labels")  # without and with label smoothing
CACHED_ARMS = (*OF_LABELS, "response", "shortcut")
ARMS = (*CACHED_ARMS, "feature", "attention", "relation", "similarity")
LOUDNESS = 0.5  # of what is added to the answers, over theirs
SHOWN = 64  # images that show FeatureLoss the shapes, and on which gradients are compared


def stage_ends(config: ResNetConfig) -> list[str]:
    """Return the names of the last block of each stage."""
    ends, blocks = [], 0
    for stage in config.block_widths:
        blocks += len(stage)
        ends.append(f"blocks.{blocks - 1}")
    return ends


def answers(teacher: nn.Module, work: Task, given: argparse.Namespace, file: Path) -> CachedTeacher:
    """Return what a teacher says about the images of all epochs, as augmented, from ``file`` where it lies there."""
    with torch.autocast(DEVICE.type, torch.bfloat16, enabled=resolve_precision("auto", DEVICE) == "bf16"):
        return cache_teacher_logits(teacher, of_all_epochs(batches_of(work, given, seed=0), given), file)


def of_all_epochs(batches: Batches, given: argparse.Namespace) -> Iterator[tuple[Tensor, Tensor]]:
    """Iterate over the batches of one epoch after the other."""
    return itertools.chain.from_iterable(batches.epoch(epoch) for epoch in range(given.epochs))


class AskedAboutOriginals(nn.Module):
    """A teacher that answers each batch with what it has to say to the next batch of ``originals``."""

    def __init__(self, teacher: nn.Module, originals: Iterator[tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.teacher, self.originals = teacher, originals
        self.eval()

    def forward(self, _images: Tensor) -> Tensor:
        """Return the logits, float [N, classes], of other images than those that are given."""
        return self.teacher(next(self.originals)[0])


def asked_about_originals(work: Task, given: argparse.Namespace, folder: Path) -> CachedTeacher:
    """Return the teacher's answers to the images of all epochs as they are before augmentation."""
    plain = of_all_epochs(batches_of(work, given, seed=0, augment=False), given)
    return answers(AskedAboutOriginals(work.full, plain), work, given, folder / "original-logits.pt")


def batches_of(work: Task, given: argparse.Namespace, *, seed: int, augment: bool = True) -> Batches:
    """Return the batches that a seed is trained on, in the same order where they are not augmented."""
    return Batches(
        work.batches.source, work.dataset,
        batch_size=given.batch_size, augment=augment, shuffle=True, drop_last=True, seed=seed, device=DEVICE,
    )  # fmt: skip


def loss_of(arm: str, student: ResNet, answering: Teacher, work: Task, given: argparse.Namespace) -> Loss:
    """Return what an arm minimises; ``answering`` is the teacher, or its answers."""
    if arm in OF_LABELS:
        return cross_entropy(label_smoothing=given.label_smoothing if arm == "labels" else 0.0)
    response: DistillationLoss = ResponseLoss(answering, temperature=given.temperature, alpha=given.alpha)
    if arm in ("response", "shortcut"):
        return response
    teacher = cast("ResNet", work.full)
    ends = dict(zip(stage_ends(student.config), stage_ends(teacher.config), strict=True))
    last = dict([list(ends.items())[-1]])
    images, labels = next(iter(Batches(work.dataset.train.take(SHOWN), work.dataset, batch_size=SHOWN, device=DEVICE)))
    parts = {
        "feature": lambda: FeatureLoss(teacher, last, student=student, images=images),
        "attention": lambda: AttentionLoss(teacher, ends),
        "relation": lambda: RelationLoss(teacher, last),
        "similarity": lambda: SimilarityLoss(teacher, last),
    }
    part = parts[arm]()
    loud, quiet = (gradient_length(one, student, images, labels) for one in (response, part))
    return response + LOUDNESS * loud / quiet * part


def gradient_length(loss: DistillationLoss, student: ResNet, images: Tensor, labels: Tensor) -> float:
    """Return the length of a loss's gradient with respect to the student's weights; the student is left as it was."""
    probe = copy.deepcopy(student).train()
    loss(probe, images, labels).backward()
    return float(torch.cat([w.grad.flatten() for w in probe.parameters() if w.grad is not None]).norm())


def trained(
    arm: str, seed: int, answering: Teacher, work: Task, given: argparse.Namespace, *, kept: Path
) -> dict[str, float]:
    """Train one arm with one seed; return accuracy (0 to 1) and minutes, from ``kept`` where it lies there."""
    if kept.is_file():
        return json.loads(kept.read_text(encoding="utf-8"))
    torch.manual_seed(seed)
    student = cast("ResNet", build(given.student)).to(DEVICE, memory_format=torch.channels_last)
    batches = batches_of(work, given, seed=0 if given.cached else seed)
    loss = loss_of(arm, student, answering, work, given)
    optimizer = functools.partial(OPTIMIZERS[given.optimizer], peak_lr=given.peak_lr)
    train = functools.partial(
        fit, batches=batches,
        epochs=given.epochs, optimizer=optimizer, schedule="one-cycle",
        warmup=0.1, checkpoint=kept.with_suffix(".pt"), progress=sys.stderr.isatty(),
    )  # fmt: skip
    with graphed(student, next(iter(batches))[0]) if arm in CACHED_ARMS else contextlib.nullcontext():
        log = distill(student, loss, train) if isinstance(loss, DistillationLoss) else train(student, loss=loss)
    found = {"accuracy": evaluate(student, work.judging).accuracy, "minutes": log.rows[-1]["seconds"] / 60}
    with atomic_write(kept) as partial:
        partial.write_text(json.dumps(found), encoding="utf-8")
    kept.with_suffix(".pt").unlink(missing_ok=True)
    return found


def row(arm: str, results: Mapping[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Return what is recorded of an arm: the mean over the seeds, and the paired difference from labels and answers."""
    accuracies = {name: [one["accuracy"] for one in of_name] for name, of_name in results.items()}
    made: dict[str, Any] = {
        "arm": arm,
        "seeds": len(results[arm]),
        "mean_accuracy": round(statistics.fmean(accuracies[arm]), 5),
        "accuracies_percent": ", ".join(f"{100 * accuracy:.2f}" for accuracy in accuracies[arm]),
        "minutes_a_seed": round(statistics.fmean(one["minutes"] for one in results[arm]), 1),
    }
    # The arms that an arm is held against, and how the columns begin.
    before = {"hard": "over_hard", "labels": "gained", "response": "over_response"}
    for other, column in before.items():
        if other in accuracies and ARMS.index(arm) > ARMS.index(other):
            found = mean_paired_difference(accuracies[other], accuracies[arm])
            for end, points in {"": found.mean, "_low": found.low, "_high": found.high}.items():
                made[f"{column}_points{end}"] = round(100 * points, 2)
    return made


def main() -> None:
    """Train seed by seed, all arms of one before the next, so that what is there can be compared at any time."""
    arguments = parser(__doc__)
    arguments.set_defaults(peak_lr=0.02, epochs=3)
    arguments.add_argument("--student", default="resnet8")
    uncached = [arm for arm in ARMS if arm != "shortcut"]
    arguments.add_argument("--arms", nargs="+", choices=ARMS, default=uncached)
    arguments.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    arguments.add_argument("--temperature", type=float, default=4.0)
    arguments.add_argument("--label-smoothing", type=float, default=0.1, help='of the arm "labels"')
    arguments.add_argument("--cached", action="store_true", help="ask the teacher once; only for its answers")
    arguments.add_argument("--int8-teacher", action="store_true", help="it answers in int8; only for its answers")
    arguments.add_argument("--name", help="of the record, STUDENT-from-TEACHER when left out")
    given = arguments.parse_args()
    if given.cached and set(given.arms) - set(CACHED_ARMS):
        arguments.error(f"--cached has the teacher's answers only: --arms {' '.join(CACHED_ARMS)}")
    if given.int8_teacher and (given.cached or set(given.arms) - {*OF_LABELS, "response"}):
        arguments.error(f"--int8-teacher only answers, and as it is asked: --arms {' '.join(OF_LABELS)} response")
    if not given.cached and "shortcut" in given.arms:
        arguments.error("the shortcut is to keep the answers to the originals: --arms shortcut is for --cached")
    work = task(given, "distillation")
    names = ("split", "images", "epochs", "optimizer", "peak_lr", "batch_size", "cached")
    settings = "-".join(str(getattr(given, name)) for name in names) + ("-int8" if given.int8_teacher else "")
    folder = Path("build/distillation") / f"{given.student}-from-{given.model}-{settings}"
    folder.mkdir(parents=True, exist_ok=True)
    asked = Teachers([given.model], work.dataset) if given.int8_teacher else work.teacher
    teacher = answers(work.full, work, given, folder / "teacher-logits.pt") if given.cached else asked
    answering: dict[str, Teacher] = {arm: teacher if arm in CACHED_ARMS else work.full for arm in ARMS}
    if "shortcut" in given.arms:
        answering["shortcut"] = asked_about_originals(work, given, folder)
    results: dict[str, list[dict[str, float]]] = {arm: [] for arm in given.arms}
    for seed in given.seeds:
        for arm in given.arms:
            of_teacher = "" if arm in OF_LABELS else f"-T{given.temperature:g}-alpha{given.alpha:g}"
            kept = folder / f"{arm}{of_teacher}-seed{seed}.json"
            results[arm].append(trained(arm, seed, answering[arm], work, given, kept=kept))
            print(f"seed {seed}, {arm}: {results[arm][-1]}", flush=True)
    rows = [row(arm, results) for arm in results]
    if work.trial:
        print(*rows, sep="\n")
        return
    name = f"distillation-{given.name or f'{given.student}-from-{given.model}'}"
    form = " in int8" if given.int8_teacher else ""
    of_seeds = "the same batches for every seed; " if given.cached else ""
    what = (
        f"{given.student} on {work.dataset.name}, {given.epochs} epochs from random weights, with labels alone and "
        f"taught by {given.model}{form}; {of_seeds}{evaluate(work.full, work.judging)} are right for the teacher"
    )
    write_recorded(name, rows, what=what, command=command())
    print(recorded(name))


if __name__ == "__main__":
    main()
