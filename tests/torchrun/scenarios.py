"""Trainings for tests/test_distributed.py: the same functions in one process and, as a script, under torchrun.

``scenarios.py FOLDER`` runs them all and leaves what they return in FOLDER/<rank>.pt; ``scenarios.py FOLDER endless``
trains until somebody stops it, ``scenarios.py FOLDER lonely`` fails on rank 1 only.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import io
import itertools
import math
import os
import signal
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from deploykit import distributed, resumable, training
from deploykit.data import Batches, Dataset, Split
from deploykit.distillation import FeatureLoss, ResponseLoss, distill
from deploykit.models import resnet
from deploykit.pruning.schedule import GradualPruning, SparsitySchedule, prepare_gradual_pruning
from deploykit.training import cross_entropy, fit

PATIENCE_S = 500  # then each process says where it stands, and ends


def dataset() -> Dataset:
    """61 + 25 + 1 pictures of noise with a coloured square per class."""
    images = torch.randint(0, 80, (87, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(87) % 3
    for label in range(3):
        images[labels == label, 4:12, 4:12, label] += 150
    parts = {
        name: Split(name, images[a:b], labels[a:b])
        for name, a, b in (("train", 0, 61), ("val", 61, 86), ("test", 86, 87))
    }
    return Dataset(
        name="squares", classes=("r", "g", "b"), mean=(0.3,) * 3, std=(0.2,) * 3,
        fingerprint="0" * 64, source="made for a test", **parts,
    )  # fmt: skip


def batches(split: str = "train", **options: object) -> Batches:
    """Eights, shuffled and augmented; the last of 61 images has five: two and three."""
    data = dataset()
    usual = {"batch_size": 8, "augment": split == "train", "shuffle": split == "train"}
    return Batches(getattr(data, split), data, **(usual | options))


def net(*, seed: int = 0, statistics: bool = True, dropout: float = 0.2) -> nn.Module:
    """A net with everything that has state."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8) if statistics else nn.Identity(), nn.ReLU(), nn.Dropout(dropout),
        nn.Conv2d(8, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3),
    )  # fmt: skip


def state(model: nn.Module) -> dict[str, Tensor]:
    """Its weights and statistics, by name."""
    return dict(model.state_dict())


def without_statistics() -> dict[str, object]:
    """Three epochs in double precision of a net whose images do not see one another."""
    model = net(statistics=False, dropout=0.0).double()
    log = fit(
        model, batches(dtype=torch.float64), epochs=3, precision="fp32", ema_decay=0.5,
        validation=batches("val", dtype=torch.float64),
    )  # fmt: skip
    rows = [(row["loss"], row["validation_accuracy"]) for row in log.rows]
    return {"rows": rows, "state": state(model)}


def without_last_batch() -> dict[str, object]:
    """The same with ``drop_last``."""
    model = net(statistics=False, dropout=0.0).double()
    log = fit(model, batches(dtype=torch.float64, drop_last=True), epochs=2, precision="fp32")
    return {"rows": [row["loss"] for row in log.rows], "state": state(model)}


def residual() -> dict[str, object]:
    """A ResNet-8 in single precision, with BatchNorm."""
    torch.manual_seed(0)
    model = resnet(8, classes=3)
    log = fit(model, batches(batch_size=32, drop_last=True), epochs=6, precision="fp32", validation=batches("val"))
    rows = [(row["loss"], row["validation_accuracy"]) for row in log.rows]
    return {"rows": rows, "state": state(model)}


def distilled() -> dict[str, object]:
    """Two epochs from a teacher's answers and its wider features, the projection of which is learned too."""
    torch.manual_seed(1)
    teacher = nn.Sequential(nn.Conv2d(3, 12, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 3))
    student = net(statistics=False, dropout=0.0)
    torch.manual_seed(2)  # of the projection
    features = FeatureLoss(teacher.eval(), {"2": "1"}, student=student, images=torch.zeros(1, 3, 16, 16))
    train = functools.partial(fit, batches=batches(), epochs=2, precision="fp32")
    log = distill(student, ResponseLoss(teacher) + 0.5 * features, train)
    return {"rows": [row["loss"] for row in log.rows], "state": state(student) | state(features.learned)}


def pruned_gradually() -> dict[str, object]:
    """Two epochs in which half of the weights go."""
    model = prepare_gradual_pruning(net(statistics=False, dropout=0.0).double())
    loss = GradualPruning(SparsitySchedule(0.5), steps=2 * len(batches()), every=2)
    log = fit(model, batches(dtype=torch.float64), epochs=2, precision="fp32", loss=loss)
    return {"rows": [row["loss"] for row in log.rows], "state": state(model)}


def resumed(folder: Path, precision: str, stop_step: int = 11) -> dict[str, object]:
    """Train two epochs at once, and again with a Ctrl-C at the last rank in the 11th of 16 steps."""
    rank, processes = distributed.place()
    calls = itertools.count(1)

    def loss(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        if next(calls) == len(batches()) * 2 + stop_step and rank == processes - 1:
            os.kill(os.getpid(), signal.SIGINT)
        return cross_entropy()(model, images, labels)

    path = folder / f"{precision}.pt"
    train = functools.partial(fit, epochs=2, precision=precision, ema_decay=0.8, loss=loss)
    unbroken = net()
    unbroken_log = train(unbroken, batches())
    stopped = net()
    writes, write = [], resumable.atomic_write
    resumable.atomic_write = lambda target: writes.append(target) or write(target)
    try:
        train(stopped, batches(), checkpoint=path)
    except KeyboardInterrupt as error:
        message = str(error)
    resumable.atomic_write = write
    gone_on = net(seed=99)
    log = train(gone_on, batches(), checkpoint=path)
    return {
        "message": message, "writes": len(writes), "losses": [row["loss"] for row in log.rows],
        "unbroken_losses": [row["loss"] for row in unbroken_log.rows],
        "state": state(gone_on), "unbroken": state(unbroken),
    }  # fmt: skip


def scaled(folder: Path) -> dict[str, object]:
    """The same in fp16, where GradScaler works. ``fit`` refuses fp16 on CPUs since it is slow there, not wrong."""
    ordinary, training.resolve_precision = training.resolve_precision, lambda *_: "fp16"
    try:
        return resumed(folder, "fp16")
    finally:
        training.resolve_precision = ordinary


def failures(folder: Path) -> dict[str, str]:
    """Return the messages of what goes wrong on one process only."""
    rank, processes = distributed.place()
    last, calls = rank == processes - 1, itertools.count(1)

    def loss(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy()(model, images, labels) * (math.nan if last and next(calls) == 10 else 1)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    options = {"epochs": 2, "precision": "fp32"}
    attempts = {
        "NaN": lambda: fit(net(), batches(), loss=loss, **options),
        "other arguments": lambda: fit(
            net(), batches(), optimizer=functools.partial(training.sgd, peak_lr=0.1 + rank), **options
        ),
        "no file on one": lambda: fit(net(), batches(), checkpoint=None if last else folder / "one.pt", **options),
        "uneven": lambda: fit(net(), batches(batch_size=20), **options),
        "a part already": lambda: fit(net(), batches(rank=0, world_size=4), **options),
        "full disk": lambda: fit(net(), batches(), checkpoint=folder / "full.pt", checkpoint_every_s=0, **options),
        "damaged": lambda: fit(net(), batches(), checkpoint=folder / "damaged.pt", **options),
    }
    if distributed.is_first():
        (folder / "damaged.pt").write_bytes(b"half")
    messages, write = {}, resumable.atomic_write
    for name, attempt in attempts.items():
        resumable.atomic_write = full if name == "full disk" else write
        try:
            attempt()
        except Exception as error:  # noqa: BLE001 - the subject
            messages[name] = f"{type(error).__name__}: {error}"
    resumable.atomic_write = write
    return messages


def talk() -> str:
    """Return what a training with a progress bar wrote to standard error."""
    with contextlib.redirect_stderr(io.StringIO()) as written:
        fit(net(), batches(), epochs=1, progress=True)
    return written.getvalue()


def random_numbers() -> list[float]:
    """Return what is drawn after equal seeds when a model has been shared."""
    distributed.share_gradients(net())
    return torch.rand(4).tolist()


def all_of_them(folder: Path) -> dict[str, object]:
    """Run every scenario."""
    return {
        "without_statistics": without_statistics(),
        "without_last_batch": without_last_batch(),
        "residual": residual(),
        "distilled": distilled(),
        "pruned_gradually": pruned_gradually(),
        "bf16": resumed(folder, "bf16"),
        "fp16": scaled(folder),
        "failures": failures(folder),
        "talk": talk(),
        "random": random_numbers(),
        "threads": torch.get_num_threads(),
        "place": distributed.place(),
    }


def endless(folder: Path) -> None:
    """Train until stopped; at every step leave the process's number, in one piece for whoever reads meanwhile."""
    rank = distributed.place()[0]

    def loss(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        half_written = folder / f"{rank}.pid.part"
        half_written.write_text(str(os.getpid()))
        half_written.replace(folder / f"{rank}.pid")
        return cross_entropy()(model, images, labels)

    try:
        fit(net(), batches(), epochs=10**6, loss=loss, checkpoint=folder / "state.pt", checkpoint_every_s=10**6)
    except KeyboardInterrupt as error:
        (folder / f"{rank}.end").write_text(str(error))
        raise SystemExit(130) from error


def lonely() -> None:
    """Raise on rank 1 only, in a place that nobody else can know of."""

    def loss(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        if distributed.place()[0] == 1:
            raise ValueError("only here")
        return cross_entropy()(model, images, labels)

    fit(net(), batches(), epochs=1, loss=loss)


def main(folder: Path, mode: str = "all") -> None:
    """Run under torchrun."""
    faulthandler.dump_traceback_later(PATIENCE_S, exit=True)
    with distributed.joined(timeout_s=300):
        if mode == "all":
            torch.save(all_of_them(folder), folder / f"{distributed.place()[0]}.pt")
        elif mode == "endless":
            endless(folder)
        else:
            lonely()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
