"""The state of a training in a file, from which it goes on exactly; by one process or, under torchrun, by several."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import math
import os
import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from deploykit import distributed
from deploykit.identity import differences
from deploykit.places import atomic_write, clean_leftovers

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import FrameType

    import pandas as pd


COUNTERS = ("epoch", "step", "loss_sum", "seconds")


class DivergedError(RuntimeError):
    """The loss became NaN or infinite."""


@dataclasses.dataclass
class TrainingLog:
    """One row an epoch.

    Attributes:
        rows: epoch, learning_rate (at its end), loss (mean of its steps), validation_accuracy (0 to 1, or None),
            seconds (since the start, interruptions left out).
    """

    rows: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def table(self) -> pd.DataFrame:
        """Return the rows as a table."""
        import pandas as pd

        return pd.DataFrame(self.rows)

    def to_csv(self, path: Path | str) -> None:
        """Write the rows as CSV, complete or not at all."""
        with atomic_write(path) as partial:
            self.table().to_csv(partial, index=False, float_format="%.5g")


@dataclasses.dataclass
class ResumableRun:
    """Where a training stands, and the file from which it can go on.

    Under torchrun every process has one and calls the same methods at the same places; the file is written by rank 0
    and read by rank 0, for all. Between two steps all processes hold the same parts.

    Attributes:
        parts: what has a ``state_dict``: model, optimizer, scheduler, scaler, average.
        key: what makes two trainings the same one, as plain values (``identity.describe``); a file with another key is
            refused.
        path: of the file; None keeps nothing.
        every_s: seconds between two writes in mid-epoch.
        epoch, step: epochs finished, and steps of the one under way.
    """

    parts: Mapping[str, Any]
    key: Mapping[str, Any]
    path: Path | None
    every_s: float
    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    seconds: float = 0.0
    interrupted: bool = False
    log: TrainingLog = dataclasses.field(default_factory=TrainingLog)

    def __post_init__(self) -> None:
        """Start the clocks."""
        self.parts = {name: part for name, part in self.parts.items() if part is not None}
        self.rank, self.processes = distributed.place()
        self._parent = os.getppid()
        self._resumed_at = self._written_at = time.monotonic()
        self._stop = self._write_due = False

    def restore(self) -> None:
        """Go on from the file, if there is one.

        Raises:
            ValueError: the file is damaged, or belongs to another training; it is left as it is.
            PermissionError: the folder cannot be written: better said now than after an hour of training.
        """
        state = distributed.on_first(self._read)
        if state is None:
            return
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        _set_random_state(state["random"][self.rank])
        for name in COUNTERS:
            setattr(self, name, state[name])
        self.log.rows[:] = state["rows"]

    def _read(self) -> dict[str, Any] | None:
        if self.path is None:
            return None
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(self.path.parent, os.W_OK):
            raise PermissionError(
                f"{self.path.parent} cannot be written, and {self.path.name}, the state of this training, belongs "
                "there; name a file in a folder of yours"
            )
        clean_leftovers(self.path.parent)
        if not self.path.is_file():
            return None
        try:
            state = torch.load(self.path, weights_only=True, map_location="cpu")
            different = differences(state["key"], self.key)
        except Exception as error:
            raise ValueError(
                f"{self.path} is damaged or not the state of a training ({type(error).__name__}); "
                "delete it to start this training afresh"
            ) from error
        if different:
            raise ValueError(
                f"{self.path} belongs to another training (different: {different}); "
                "give another file, or delete it to start afresh"
            )
        return state

    @contextlib.contextmanager
    def stopped_between_steps(self) -> Iterator[None]:
        """Let Ctrl-C or a polite kill take effect after the step under way, with the state written.

        In the middle of a step the weights and the step's number would not fit each other.

        Raises:
            KeyboardInterrupt: the wish came after the last step.
        """
        if threading.current_thread() is not threading.main_thread():
            yield  # only the main thread may set signal handlers
            return
        before: dict[int, Any] = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

        def ask_to_stop(number: int, _frame: FrameType | None) -> None:
            self.interrupted = True
            if self.processes == 1:
                signal.signal(number, before[number])  # a second one acts at once; torchrun repeats its own by itself

        for number in before:
            signal.signal(number, ask_to_stop)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if any(distributed.total([self._asked_to_stop()])):
            raise KeyboardInterrupt(f"stopped after the last step{self._how_to_go_on()}")

    def note_loss(self, loss: float, *, images: int, learning_rate: float) -> float:
        """Add the loss of the step under way, the mean over the images of all processes.

        What follows the step is agreed on in the same exchange: all processes stop, or write, after the same one.

        Args:
            loss: mean over this process's images.
            images: of this process.
            learning_rate: for the message.

        Returns:
            The factor on this process's loss that makes the mean of all processes' gradients the gradient of the mean
            loss: 1 where each holds equally many images.

        Raises:
            DivergedError: the loss is NaN or infinite on some process; raised on all of them.
        """
        write_due = self.rank == 0 and time.monotonic() - self._written_at > self.every_s
        loss_sum, count, stops, writes = distributed.total([loss * images, images, self._asked_to_stop(), write_due])
        mean = loss_sum / count
        if not math.isfinite(mean):
            raise DivergedError(
                f"the loss is {mean} at step {self.step + 1} of epoch {self.epoch + 1} (learning rate "
                f"{learning_rate:.3g}); lower the learning rate or add warm-up, and look at the data"
            )
        self.loss_sum += mean
        self._stop, self._write_due = stops > 0, writes > 0
        return images * self.processes / count

    def finish_step(self) -> None:
        """Count a step; write the file when it is time.

        Raises:
            KeyboardInterrupt: somebody asked to stop, on any process; the state is written.
        """
        self.step += 1
        if self._stop or self._write_due:
            self.write()
        if self._stop:
            raise KeyboardInterrupt(f"stopped at step {self.step} of epoch {self.epoch + 1}{self._how_to_go_on()}")

    def finish_epoch(self, *, learning_rate: float, validation_accuracy: float | None) -> dict[str, Any]:
        """Write the epoch's row and the file; return the row."""
        self._tick()
        self.epoch += 1
        row = {
            "epoch": self.epoch,
            "learning_rate": learning_rate,
            "loss": self.loss_sum / self.step,
            "validation_accuracy": validation_accuracy,
            "seconds": self.seconds,
        }
        self.log.rows.append(row)
        self.step, self.loss_sum = 0, 0.0
        self.write()
        return row

    def write(self) -> None:
        """Write the file, complete or not at all.

        Raises:
            OSError: it cannot be written; raised on all processes.
        """
        if self.path is None:
            return
        self._tick()
        random = distributed.on_each(_random_state)
        distributed.on_first(functools.partial(self._save, self.path, random))
        self._written_at = time.monotonic()

    def _save(self, path: Path, random: list[dict[str, Any]]) -> None:
        state = {name: part.state_dict() for name, part in self.parts.items()}
        state |= {"key": dict(self.key), "rows": self.log.rows, "random": random}
        state |= {name: getattr(self, name) for name in COUNTERS}
        # torch's own writer hides a full disk behind "unexpected pos"; writing the bytes ourselves says what it is.
        serialized = io.BytesIO()
        torch.save(state, serialized)
        with atomic_write(path) as partial:
            partial.write_bytes(serialized.getbuffer())

    def _asked_to_stop(self) -> bool:
        # Workers outlive a torchrun that was killed outright; a second run would then write the same file.
        orphaned = self.processes > 1 and os.getppid() != self._parent
        return self.interrupted or orphaned

    def _how_to_go_on(self) -> str:
        return f"; run again with {self.path} to go on" if self.path else ""

    def _tick(self) -> None:
        now = time.monotonic()
        self.seconds += now - self._resumed_at
        self._resumed_at = now


def _random_state() -> dict[str, Any]:
    """Return the state of the generators that dropout draws from."""
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def _set_random_state(state: Mapping[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
