"""The state of a training in a file, from which it goes on exactly."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

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

    Attributes:
        parts: what has a ``state_dict``: model, optimizer, scheduler, scaler, average.
        key: what makes two trainings the same one; a file with another key is refused.
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
        self._resumed_at = self._written_at = time.monotonic()

    def restore(self) -> None:
        """Go on from the file, if there is one.

        Raises:
            ValueError: the file is damaged, or belongs to another training; it is left as it is.
        """
        if self.path is None or not self.path.parent.is_dir():
            return
        clean_leftovers(self.path.parent)
        if not self.path.is_file():
            return
        try:
            state = torch.load(self.path, weights_only=True, map_location="cpu")
        except Exception as error:
            raise ValueError(
                f"{self.path} is damaged or not the state of a training ({type(error).__name__}); "
                "delete it to start this training afresh"
            ) from error
        different = sorted(name for name in self.key if state["key"].get(name) != self.key[name])
        if different:
            raise ValueError(
                f"{self.path} belongs to another training (different: {', '.join(different)}); "
                "give another file, or delete it to start afresh"
            )
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        torch.set_rng_state(state["rng"])
        for name in COUNTERS:
            setattr(self, name, state[name])
        self.log.rows[:] = state["rows"]

    @contextlib.contextmanager
    def stopped_between_steps(self) -> Iterator[None]:
        """Let Ctrl-C or a polite kill take effect after the step under way, with the state written.

        In the middle of a step the weights and the step's number would not fit each other.
        """
        if threading.current_thread() is not threading.main_thread():
            yield  # only the main thread may set signal handlers
            return
        before: dict[int, Any] = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

        def ask_to_stop(number: int, _frame: FrameType | None) -> None:
            self.interrupted = True
            signal.signal(number, before[number])  # a second one acts at once

        for number in before:
            signal.signal(number, ask_to_stop)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def note_loss(self, loss: float, *, learning_rate: float) -> None:
        """Add the loss of the step under way.

        Raises:
            DivergedError: it is NaN or infinite.
        """
        if not math.isfinite(loss):
            raise DivergedError(
                f"the loss is {loss} at step {self.step + 1} of epoch {self.epoch + 1} (learning rate "
                f"{learning_rate:.3g}); lower the learning rate or add warm-up, and look at the data"
            )
        self.loss_sum += loss

    def finish_step(self) -> None:
        """Count a step; write the file when it is time.

        Raises:
            KeyboardInterrupt: somebody asked to stop; the state is written.
        """
        self.step += 1
        if self.interrupted:
            self.write()
            how = f"; run again with {self.path} to go on" if self.path else ""
            raise KeyboardInterrupt(f"stopped at step {self.step} of epoch {self.epoch + 1}{how}")
        if time.monotonic() - self._written_at > self.every_s:
            self.write()

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
        """Write the file, complete or not at all."""
        if self.path is None:
            return
        self._tick()
        state = {name: part.state_dict() for name, part in self.parts.items()}
        state |= {"key": dict(self.key), "rows": self.log.rows, "rng": torch.get_rng_state()}
        state |= {name: getattr(self, name) for name in COUNTERS}
        with atomic_write(self.path) as partial:
            torch.save(state, partial)
        self._written_at = time.monotonic()

    def _tick(self) -> None:
        now = time.monotonic()
        self.seconds += now - self._resumed_at
        self._resumed_at = now
