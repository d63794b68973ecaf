"""What is around a timed call: threads come to rest, the device is waited for, and nothing else is counted."""

from __future__ import annotations

import contextlib
import sys
import threading

import numpy as np
import pytest
import torch

from deploykit import timing

NOISE = np.random.default_rng(0).random(1_000_000)


def test_a_turn_waits_for_the_threads_of_the_one_before(monkeypatch):
    """While another thread runs the wait goes on, a millisecond at a time."""
    naps, running = [], iter([True, True, True, False])
    monkeypatch.setattr(timing, "_others_running", lambda: next(running))
    monkeypatch.setattr("time.sleep", naps.append)
    timing._wait_for_spinning_threads()

    assert naps == [0.001] * 3


def test_the_wait_ends_after_a_tenth_of_a_second(monkeypatch):
    """Threads that never rest, as those of a data loader, do not stop the measuring."""
    now, running = [0.0], iter([True] * 1000)
    monkeypatch.setattr(timing, "_others_running", lambda: next(running))
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    monkeypatch.setattr("time.sleep", lambda seconds: now.append(now.pop() + seconds))
    timing._wait_for_spinning_threads()

    assert now[0] == pytest.approx(0.1, abs=0.0011)


@pytest.mark.parametrize(("call_ms", "calls"), [(0.6, 9), (1.2, 5), (4, 3), (10, 3), (11, 2), (16, 1), (200, 1)])
def test_settling_waits_and_then_makes_calls_that_fill_5_ms_three_of_them_if_they_are_short(
    monkeypatch, call_ms, calls
):
    """Spinning threads are waited for before the calls, since afterwards they have robbed them."""
    now, steps = [0], []  # microseconds, so that sums are exact

    def predict(images: torch.Tensor) -> torch.Tensor:
        steps.append("call")
        now[0] += int(1000 * call_ms)
        return torch.zeros(len(images), 10)

    monkeypatch.setattr(timing, "_wait_for_spinning_threads", lambda: steps.append("wait"))
    timer = timing.Timer(predict, torch.zeros(2, 3, 8, 8), "it", None, lambda: now[0] / 1e6)
    steps.clear()
    timer.settle(call_ms / 1000)

    assert steps == ["wait", *["call"] * calls]


def test_torchs_threads_are_fixed_also_where_threadpoolctl_knows_no_pool(monkeypatch):
    """Torch built without OpenMP has a pool of its own; its number is set inside and put back afterwards."""
    monkeypatch.setattr("threadpoolctl.threadpool_limits", lambda **_: contextlib.nullcontext())
    before = torch.get_num_threads()
    with timing.fixed_conditions(before + 1) as used:
        inside = torch.get_num_threads()

    assert (inside, used, torch.get_num_threads()) == (before + 1, before + 1, before)


def test_what_the_device_still_had_to_do_is_not_counted(monkeypatch):
    """Work queued before the call is finished before the clock starts; the call's own is finished before it stops."""
    now, queued = [0.0], []

    def launch(images: torch.Tensor) -> torch.Tensor:
        queued.append(0.020)
        return torch.zeros(len(images), 10)

    def synchronize(_: torch.device) -> None:
        now[0] += sum(queued)
        queued.clear()

    monkeypatch.setattr("torch.cuda.synchronize", synchronize)
    timer = timing.Timer(launch, torch.zeros(2, 3, 8, 8), "it", "cuda", lambda: now[0])
    queued.append(5.0)

    assert timer.call() == pytest.approx(0.020)


@pytest.mark.skipif(sys.platform != "linux", reason="thread states are read from /proc")
def test_a_busy_thread_is_seen_and_a_sleeping_one_is_not():
    """A thread that computes (sorting gives the lock away) counts; one that waits for an event does not."""
    stop = threading.Event()

    def sort() -> None:
        while not stop.is_set():
            np.sort(NOISE)

    waiting, busy = threading.Thread(target=stop.wait), threading.Thread(target=sort)
    waiting.start()
    slept = any(not timing._others_running() for _ in range(5000))
    busy.start()
    seen = any(timing._others_running() for _ in range(5000))
    stop.set()
    busy.join()

    assert (slept, seen) == (True, True)
