"""A small training that something befalls, and whether the next run ends with the bits of an unbroken one."""

from __future__ import annotations

import functools
import hashlib
import math
import os
import signal
import socket
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.faults.processes import Child, Ended, Tell, little_memory
from tools.faults.trials import expect

EPOCHS, STEPS_PER_EPOCH, BATCH = 3, 8, 8
STEPS = EPOCHS * STEPS_PER_EPOCH
NEVER_S = 1e9
STEP_S = 0.05  # about what a step takes, with its write


@dataclass(frozen=True)
class Plan:
    """A training and what befalls one process of it, at the loss of step `at` (from 1) or `delay_s` later."""

    state: Path
    every_s: float = NEVER_S
    processes: int = 1
    at: int = 0
    what: str = ""
    delay_s: float = 0.0
    rank: int = 0

    def undisturbed(self) -> Plan:
        """The same training, with nothing befalling it."""
        return Plan(self.state, self.every_s, self.processes)


def dataset() -> Any:
    """Return 64 training and 16 validation pictures of noise."""
    import torch

    from deploykit.data import Dataset, Split

    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (80, 32, 32, 3), dtype=torch.uint8, generator=generator)
    labels = torch.arange(80) % 10
    count = STEPS_PER_EPOCH * BATCH
    parts = {
        "train": Split("train", images[:count], labels[:count]),
        "val": Split("val", images[count:], labels[count:]),
        "test": Split("test", images[:0], labels[:0]),
    }
    return Dataset(
        name="noise", classes=tuple("abcdefghij"), **parts,
        mean=(0.5,) * 3, std=(0.3,) * 3, fingerprint="0" * 64, source="made for trying faults",
    )  # fmt: skip


def train(tell: Tell, plan: Plan) -> str:
    """Train a ResNet-8 as the plan says; tells each step and returns a digest of everything the state file ends with.

    Momentum, batch statistics, dropout, augmentation and an average: whatever has a state takes part.
    """
    import torch
    import torch.nn.functional as F  # noqa: N812
    from torch import Tensor, nn

    from deploykit import distributed
    from deploykit.data import Batches
    from deploykit.models import resnet
    from deploykit.training import fit

    step = 0

    def loss(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        nonlocal step
        step += 1
        tell(step)
        value = F.cross_entropy(F.dropout(model(images), 0.2), labels)
        if step == plan.at and distributed.place()[0] == plan.rank:
            value = value * befall(plan)
        return value

    torch.manual_seed(0)
    model, data = resnet(8), dataset()
    batches = Batches(data.train, data, batch_size=BATCH, augment=True, shuffle=True)
    validation = Batches(data.val, data, batch_size=16)
    with distributed.joined(timeout_s=60):
        fit(
            model, batches, epochs=EPOCHS, loss=loss, ema_decay=0.9, warmup=0.2, validation=validation,
            checkpoint=plan.state, checkpoint_every_s=plan.every_s,
        )  # fmt: skip
    return digest(plan.state, dict(model.state_dict()))


def run(plan: Plan, folder: Path) -> list[Ended]:
    """Train with as many processes as the plan has, set up as torchrun does it; returns what became of each."""
    if plan.processes == 1:
        return [Child(train, plan, folder=folder).finish()]
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    group |= {"WORLD_SIZE": str(plan.processes), "LOCAL_WORLD_SIZE": str(plan.processes), "OMP_NUM_THREADS": "1"}
    children = [
        Child(train, plan, folder=folder, variables=group | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(plan.processes)
    ]
    return [child.finish() for child in children]


def befall(plan: Plan) -> float:
    """Do to this process what the plan says; returns the factor for the loss."""
    import torch

    if plan.what == "nan":
        return math.nan
    if plan.what == "memory":
        with little_memory(mib=64):
            hoard = []
            while True:
                hoard.append(torch.zeros(2**20))
    if plan.delay_s:
        threading.Thread(target=_kill_later, args=(plan.delay_s,), daemon=True).start()
    else:
        os.kill(os.getpid(), signal.SIGKILL)
    return 1.0


def _kill_later(seconds: float) -> None:
    time.sleep(seconds)
    os.kill(os.getpid(), signal.SIGKILL)


def digest(state: Path, weights: dict[str, Any]) -> str:
    """Return the SHA-256 of the weights and of all that is in a state file, but for the seconds."""
    import torch

    kept = torch.load(state, weights_only=True)
    for row in kept["rows"]:
        del row["seconds"]
    del kept["seconds"]
    found = hashlib.sha256()
    _digest_into(found, [weights, kept])
    return found.hexdigest()


def _digest_into(found: Any, value: Any) -> None:
    import torch

    if isinstance(value, dict):
        value = sorted(value.items(), key=str)
    if isinstance(value, list | tuple):
        for part in value:
            _digest_into(found, part)
    elif isinstance(value, torch.Tensor):
        found.update(value.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    else:
        found.update(repr(value).encode())


@functools.cache
def unbroken(processes: int) -> str:
    """Return what the training ends with when nothing happens to it."""
    with tempfile.TemporaryDirectory() as name:
        ended = run(Plan(Path(name) / "state.pt", processes=processes), Path(name))
    return result_of(ended, "an undisturbed run")


def result_of(ended: list[Ended], what: str) -> str:
    """Return the digest that a run ended with.

    Raises:
        UnmetError: one of its processes failed; `what` is the run's name in the message.
    """
    failed = [one.error or f"status {one.status}: {one.stderr[-300:]}" for one in ended if one.error or one.status]
    expect(not failed, f"{what} failed: {failed[:1]}")
    return str(ended[0].value)


def go_on(plan: Plan, folder: Path, least: int) -> None:
    """Run the same training again, undisturbed, to its end.

    Raises:
        UnmetError: it ended with other bits, did steps again that had been kept (`least` of them), or left something
            beside its file.
    """
    ended = run(plan.undisturbed(), folder)
    found = result_of(ended, "the next run")
    expect(found == unbroken(plan.processes), "the next run ended with other bits than an unbroken one")
    kept = STEPS - len(ended[0].told)
    expect(kept >= least, f"the next run went on after step {kept}, and {least} had been kept")
    left = sorted(path.name for path in plan.state.parent.iterdir() if path != plan.state)
    expect(not left, f"beside the state there is {', '.join(left)}")


def least_kept(plan: Plan, done: int) -> int:
    """Return how many of `done` steps the state file must know of."""
    return done if plan.every_s == 0 else done // STEPS_PER_EPOCH * STEPS_PER_EPOCH
