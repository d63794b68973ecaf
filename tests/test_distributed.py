"""Under torchrun, two processes train as one: the same curve, the same files, the same errors, and none is left over.

The trainings are in tests/torchrun/scenarios.py; ``here`` is what they return in this one process.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import joblib
import psutil
import pytest
import torch
from torch.testing import assert_close

from deploykit import distributed

SCENARIOS = Path(__file__).parent / "torchrun" / "scenarios.py"
PATIENCE_S = 600  # many minutes on a crowded machine, seconds on a quiet one

Results = dict[str, Any]


@contextlib.contextmanager
def torchrun(folder: Path, mode: str) -> Iterator[subprocess.Popen[bytes]]:
    """Start the scenarios in two processes, talking into talk.log; whatever happens, leave none of them behind."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    with (folder / "talk.log").open("wb") as log:
        agent = subprocess.Popen(
            [*command, str(SCENARIOS), str(folder), mode], env=environment, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        yield agent
    finally:
        left = psutil.Process(agent.pid).children(recursive=True) if agent.poll() is None else []
        for process in [*left, agent]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        agent.wait()


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[Results]:
    """What all scenarios return on rank 0 and on rank 1."""
    folder = tmp_path_factory.mktemp("two")
    with torchrun(folder, "all") as agent:
        wait_for(lambda: agent.poll() is not None, folder, "all scenarios")
    assert agent.returncode == 0, (folder / "talk.log").read_text()
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.fixture(scope="module")
def scenarios() -> Any:
    """The module of the scenarios."""
    specification = importlib.util.spec_from_file_location("scenarios", SCENARIOS)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def wait_for(happened: Callable[[], bool], folder: Path, what: str) -> None:
    """Look ten times a second."""
    started = time.monotonic()
    while not happened():
        waited = time.monotonic() - started
        assert waited < PATIENCE_S, f"waited {waited:.0f} s for {what}: {(folder / 'talk.log').read_text()}"
        time.sleep(0.1)


class TestTwoProcesses:
    @pytest.mark.parametrize("scenario", ["without_statistics", "without_last_batch", "pruned_gradually"])
    def test_the_curve_is_that_of_one_process(self, two: list[Results], scenarios: Any, scenario: str) -> None:
        """In double precision all agrees to 1e-11: losses, accuracy, averaged weights, masks.

        The last batch of 61 images has five, two and three: a plain mean of the two gradients would be seen at once.
        """
        here = getattr(scenarios, scenario)()

        for there in two:
            assert_close(there[scenario], here, rtol=1e-11, atol=1e-11)

    def test_a_teacher_and_what_is_learned_beside_the_student_are_shared(
        self, two: list[Results], scenarios: Any
    ) -> None:
        """In single precision losses, student and projection agree up to rounding: losses are computed in float32."""
        for there in two:
            assert_close(there["distilled"], scenarios.distilled(), rtol=1e-4, atol=1e-5)

    def test_with_batch_statistics_the_curve_is_near_that_of_one_process(
        self, two: list[Results], scenarios: Any
    ) -> None:
        """BatchNorm normalises 16 images here and 32 there: a net of another noise, learning as well."""
        here, there = scenarios.residual()["rows"], two[0]["residual"]["rows"]

        assert [loss for loss, _ in there] == pytest.approx([loss for loss, _ in here], rel=0.15)
        assert there[-1][1] == here[-1][1] == 1.0

    @pytest.mark.parametrize(
        "scenario", ["without_statistics", "residual", "distilled", "pruned_gradually", "bf16", "fp16"]
    )
    def test_both_hold_the_same_model(self, two: list[Results], scenario: str) -> None:
        """Bit for bit, running statistics and averages included."""
        assert_close(two[0][scenario]["state"], two[1][scenario]["state"], rtol=0, atol=0)

    @pytest.mark.parametrize("precision", ["bf16", "fp16"])
    def test_a_run_stopped_on_one_ends_as_an_unbroken_one(self, two: list[Results], precision: str) -> None:
        """Ctrl-C reaches rank 1 only; dropout's masks, averages and fp16's gradient scale go on as they were."""
        for there in (results[precision] for results in two):
            assert there["message"].startswith("stopped at step 3 of epoch 2; run again with ")
            assert there["losses"] == there["unbroken_losses"]
            assert_close(there["state"], there["unbroken"], rtol=0, atol=0)

    def test_the_state_is_written_once(self, two: list[Results]) -> None:
        """At the end of epoch 1 and at the stop, by rank 0 alone."""
        assert [results["bf16"]["writes"] for results in two] == [2, 0]

    def test_dropout_draws_other_masks_on_the_other(self, two: list[Results], scenarios: Any) -> None:
        """Each process has its own random numbers, so the two images at one place are not blinded alike."""
        assert two[0]["random"] != two[1]["random"]

    @pytest.mark.parametrize(
        ("failure", "message"),
        [
            ("NaN", "DivergedError: the loss is nan at step 2 of epoch 2 (learning rate 0.0402); lower the learning"),
            ("uneven", "ValueError: the last batch has 1 images for 2 ranks; use drop_last=True or another batch size"),
            ("full disk", "OSError: [Errno 28] No space left on device"),
            ("damaged", "damaged.pt is damaged or not the state of a training"),
        ],
    )
    def test_what_goes_wrong_on_one_stops_both_alike(self, two: list[Results], failure: str, message: str) -> None:
        """The same error on both, and nobody waits for the other: the next training starts at once."""
        first, second = (results["failures"][failure] for results in two)

        assert first == second
        assert message in first

    @pytest.mark.parametrize(
        ("failure", "messages"),
        [
            ("other arguments", ["(rank 1: peak_lr 1.1, here 0.1)", "(rank 0: peak_lr 0.1, here 1.1)"]),
            ("no file on one", ["(rank 1: checkpoint False, here True)", "(rank 0: checkpoint True, here False)"]),
            ("a part already", ["rank 0 in a world of 4, and rank 0", "rank 0 in a world of 4, and rank 1"]),
        ],
    )
    def test_different_arguments_are_refused(self, two: list[Results], failure: str, messages: list[str]) -> None:
        """Else the two would train two models, or wait for each other for ever."""
        for results, message in zip(two, messages, strict=True):
            assert message in results["failures"][failure]

    def test_rank_0_alone_shows_progress(self, two: list[Results]) -> None:
        """One bar, not two on top of each other."""
        assert "8/8" in two[0]["talk"]
        assert two[1]["talk"] == ""

    def test_each_takes_its_share_of_the_cores(self, two: list[Results]) -> None:
        """As torchrun was given no number of threads."""
        assert [results["threads"] for results in two] == [max(1, joblib.cpu_count() // 2)] * 2


class TestTheEnd:
    @pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, None), (signal.SIGKILL, -signal.SIGKILL)])
    def test_when_torchrun_is_stopped_both_stop_with_the_state_written(
        self, tmp_path: Path, number: signal.Signals, status: int | None
    ) -> None:
        """Asked politely it passes the wish on; killed outright, its orphans notice and do not train on for ever."""
        with torchrun(tmp_path, "endless") as agent:
            wait_for(lambda: len(list(tmp_path.glob("*.pid"))) == 2, tmp_path, "the first step")
            workers = [int((tmp_path / f"{rank}.pid").read_text()) for rank in (0, 1)]
            agent.send_signal(number)
            wait_for(lambda: not any(map(psutil.pid_exists, workers)), tmp_path, "the end of both")
            assert agent.wait(PATIENCE_S) == (status or agent.returncode) != 0

        ends = [(tmp_path / f"{rank}.end").read_text() for rank in (0, 1)]
        assert ends[0] == ends[1]
        assert ends[0].startswith("stopped at step ")
        assert (tmp_path / "state.pt").is_file()

    def test_an_error_that_only_one_has_ends_both(self, tmp_path: Path) -> None:
        """Its message is shown, and the other does not wait out its patience of a minute."""
        with torchrun(tmp_path, "lonely") as agent:
            wait_for(lambda: agent.poll() is not None, tmp_path, "the end")
        talk = (tmp_path / "talk.log").read_text()

        assert agent.returncode == 1
        assert "ValueError: only here" in talk
        assert "imed out" not in talk


class TestOneProcess:
    def test_everything_does_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """No group is entered, the model is not wrapped, values are their own totals."""
        monkeypatch.delenv("WORLD_SIZE", raising=False)
        model = torch.nn.BatchNorm1d(2)
        with distributed.joined():
            assert distributed.place() == (0, 1)
            assert distributed.is_first()
            assert distributed.share_gradients(model) is model
            assert distributed.total([1.5, True]) == [1.5, True]
            assert distributed.on_each(lambda: 3) == [3]
            assert distributed.on_first(lambda: 3) == 3

    def test_more_processes_than_gpus_are_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Two processes on one GPU would wait for each other in NCCL."""
        for name, value in (("WORLD_SIZE", "2"), ("LOCAL_WORLD_SIZE", "2"), ("LOCAL_RANK", "0")):
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)

        with pytest.raises(ValueError, match=r"2 processes were started on a machine with 1 GPUs; give torchrun .* at"):
            distributed.joined().__enter__()

    @pytest.mark.parametrize(("given", "expected"), [(None, 4), ("1", 4), ("3", 3), ("2,1", 4)])
    def test_a_number_of_threads_that_was_given_wins(
        self, monkeypatch: pytest.MonkeyPatch, given: str | None, expected: int
    ) -> None:
        """Eight usable cores for two processes; a 1 is torchrun's own."""
        monkeypatch.setattr(joblib, "cpu_count", lambda: 8)

        assert distributed._threads_each(2, None, given) == expected

    @pytest.mark.parametrize(("threads", "expected"), [(6, 3), (1, 1)])
    def test_a_quota_that_joblib_misses_can_be_said(
        self, monkeypatch: pytest.MonkeyPatch, threads: int, expected: int
    ) -> None:
        """The processes share what the caller counted, and none is left without a thread."""
        monkeypatch.setattr(joblib, "cpu_count", lambda: 8)

        assert distributed._threads_each(2, threads, "1") == expected
