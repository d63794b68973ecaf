"""Time one call of a predictor fairly: what has to be checked, fixed and waited for around it.

``measure`` is built on this. This file needs nothing else of deploykit: copy it into a project and it works.
"""

from __future__ import annotations

import contextlib
import gc
import math
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Predictor = Callable[[Tensor], Any]
Clock = Callable[[], float]

# Warm-up ends when the median of a window of calls is no longer this much below that of the window before it.
WARMUP_WINDOW, WARMUP_FALL = 5, 0.02

# After a switch of contestants: so many calls, and so much time, pass untimed. Long calls need fewer: each fills the
# caches by itself, and three of them would take the time of as many timed ones.
SETTLE_CALLS, SETTLE_S, SETTLE_LONG_S = 3, 0.005, 0.03
SPIN_WAIT_S, SPIN_LOOK_S = 0.1, 0.001  # wait at most; look every


class Timer:
    """One predictor on one batch, with the clock and the device it is timed by."""

    def __init__(
        self, predictor: Predictor, images: Tensor, name: str, device: str | torch.device | None, clock: Clock
    ) -> None:
        self.predictor, self.images, self.clock = predictor, images, clock
        self.device = torch.device(device) if device is not None else images.device
        self.on_cuda = self.device.type == "cuda"
        _check_logits(predictor(images), len(images), name)

    def call(self) -> float:
        """Return the seconds that one call takes until its result is there."""
        if self.on_cuda:
            torch.cuda.synchronize(self.device)
        began = self.clock()
        self.predictor(self.images)
        if self.on_cuda:
            torch.cuda.synchronize(self.device)
        return self.clock() - began

    def warm_up(self, limit_s: float) -> tuple[int, float]:
        """Call until stable or ``limit_s`` is over; return the number of calls and the seconds of a warm one."""
        began, taken, before = self.clock(), [self.call()], math.inf
        while self.clock() - began < limit_s:
            taken.append(self.call())
            if len(taken) % WARMUP_WINDOW == 0:
                median = statistics.median(taken[-WARMUP_WINDOW:])
                if median > before * (1 - WARMUP_FALL):
                    break
                before = median
        return len(taken), statistics.median(taken[-WARMUP_WINDOW:])

    def settle(self, call_s: float) -> None:
        """Wait until the threads of the one before sleep, then make the untimed calls that follow a switch.

        Args:
            call_s: what a call takes that is not disturbed by the switch.
        """
        _wait_for_spinning_threads()
        began, calls = self.clock(), 0
        while calls < settling_calls(call_s) or self.clock() - began < SETTLE_S:
            self.call()
            calls += 1


def settling_calls(call_s: float) -> int:
    """Return how many untimed calls follow a switch, at least: 3, and fewer where they take more than 30 ms."""
    return max(1, min(SETTLE_CALLS, int(SETTLE_LONG_S / call_s))) if call_s > 0 else SETTLE_CALLS


def _wait_for_spinning_threads() -> None:
    """Return when no other thread of this process is running, or after 0.1 s; at once where there is no /proc."""
    began = time.perf_counter()
    while _others_running() and time.perf_counter() - began < SPIN_WAIT_S:
        time.sleep(SPIN_LOOK_S)


def _others_running() -> bool:
    own = threading.get_native_id()
    for task in Path("/proc/self/task").glob("*"):
        with contextlib.suppress(OSError):  # a thread may end meanwhile
            # proc(5): the state follows the name, which is in parentheses and may hold anything.
            state = (task / "stat").read_text(errors="replace").rpartition(")")[2].split()[0]
            if state == "R" and int(task.name) != own:
                return True
    return False


@contextlib.contextmanager
def fixed_conditions(threads: int | None) -> Iterator[int]:
    """Fix the threads, pause the garbage collector and switch gradients off; yield the number of threads."""
    import joblib
    import threadpoolctl

    before = torch.get_num_threads()
    used = min(before, joblib.cpu_count()) if threads is None else threads
    check_positive(threads=used)
    collecting = gc.isenabled()
    gc.disable()  # without collecting first: that would cost more than many a measurement, and times do not need it
    try:
        with threadpoolctl.threadpool_limits(limits=used), torch.inference_mode():
            torch.set_num_threads(used)
            yield used
    finally:
        torch.set_num_threads(before)
        if collecting:
            gc.enable()


def checked_images(images: Tensor) -> Tensor:
    """Return ``images``.

    Raises:
        ValueError: they are not a float32 batch [N, 3, H, W] with at least one image.
    """
    given = f"{images.dtype} {list(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
    if not isinstance(images, Tensor) or images.dim() != len("NCHW") or images.dtype != torch.float32:
        raise ValueError(f"images are {given}; a float32 tensor [N, 3, H, W] is needed, normalised as for the model")
    if len(images) == 0:
        raise ValueError(f"images are empty ({given}); at least one is needed")
    return images


def _check_logits(output: Any, batch: int, name: str) -> None:
    try:
        logits = torch.as_tensor(output)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{name} returned {type(output).__name__}; logits, a tensor [N, classes], are needed"
        ) from error
    if logits.dim() != len("NC") or len(logits) != batch:
        raise ValueError(
            f"{name} returned a tensor {list(logits.shape)} for {batch} images; [{batch}, classes] is needed"
        )
    bad = int((~torch.isfinite(logits)).any(dim=1).sum())
    if bad:
        raise ValueError(
            f"{name} returned NaN or infinity for {bad} of {batch} images; a broken model is not worth timing: check "
            "its weights, its precision and the normalisation of the images"
        )


def check_positive(**numbers: float) -> None:
    """Raise ValueError for the first number, given by name, that is not above 0."""
    for name, number in numbers.items():
        if not number > 0:
            raise ValueError(f"{name} is {number}; it must be above 0")
