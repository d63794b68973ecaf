"""What crashes, hangs or takes all memory does so in a child process; 100 damaged ONNX files go through it."""

from __future__ import annotations

import collections
import os
import pprint
import random
import signal
import statistics
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from small_residual import SmallResidual, images

from deploykit.untrusted import tried_apart

MUTATIONS = 100
linux = pytest.mark.skipif(sys.platform != "linux", reason="other systems do not hold a process to its memory")


class TestOutcomes:
    def test_a_value_and_an_error_come_back(self):
        """The function's value, or its exception's class and words; the same child does both."""
        good, bad = tried_apart(statistics.mean, [{"data": [1, 2]}, {"data": []}])

        assert (good.value, good.error, good.kind) == (1.5, "", "")
        assert (bad.value, bad.kind) == (None, "StatisticsError")
        assert bad.error == "mean requires at least one data point"

    def test_what_is_printed_does_not_disturb(self):
        """Libraries that print get no answer mixed up."""
        outcomes = tried_apart(pprint.pprint, [{"object": "{not an answer"}, {"object": 2}])

        assert [outcome.error for outcome in outcomes] == ["", ""]

    def test_what_json_lacks_is_an_error_of_its_job(self):
        """A value that cannot come back is said to be one, and the next job is tried."""
        first, second = tried_apart(bytearray, [{"source": 1}, {"source": -1}])

        assert first.error == "Object of type bytearray is not JSON serializable"
        assert second.kind == "ValueError"

    @linux
    def test_memory_has_a_limit(self):
        """A job that asks for more is told so, and takes nothing from this process."""
        (outcome,) = tried_apart(bytearray, [{"source": 3 * 2**30}], memory_gib=1)

        assert (outcome.kind, outcome.error) == ("MemoryError", "it needs more than 1 GiB of memory")


class TestDeath:
    def test_a_child_that_ends_is_replaced(self):
        """Its job is lost, the next one gets a new child."""
        first, second = tried_apart(os._exit, [{"status": 7}, {"status": 8}])

        assert (first.kind, first.error) == ("died", "it ended the process that tried it (exit status 7)")
        assert second.error.endswith("(exit status 8)")

    @pytest.mark.skipif(os.name == "nt", reason="Windows has other signals")
    def test_a_crash_is_named_by_its_signal(self):
        """As a reader finds it in a manual."""
        (outcome,) = tried_apart(os.abort, [{}])

        assert outcome.error == "it ended the process that tried it (SIGABRT)"

    @pytest.mark.skipif(os.name == "nt", reason="Windows has other signals")
    def test_a_child_that_hangs_is_given_up(self):
        """After the seconds that a job may take."""
        (outcome,) = tried_apart(signal.pause, [{}], seconds=0.2)

        assert (outcome.kind, outcome.error) == ("time", "it took more than 0.2 s and was given up")

    def test_a_function_that_the_child_cannot_import_is_said_to_be_one(self, monkeypatch):
        """No child, no outcome."""
        monkeypatch.setattr(tried_apart, "__module__", "no_such_module")
        with pytest.raises(ChildProcessError, match="no process could be started to try it in"):
            next(tried_apart(tried_apart, [{}]))


def mutated(good: bytes, seed: int) -> bytes:
    """Damage a file: other bytes, a bit, an end, a hole, a part twice."""
    draw, content = random.Random(seed), bytearray(good)  # noqa: S311 - damage, no secret
    at, length = draw.randrange(len(content)), draw.randrange(1, 40)
    kind = draw.choice(["bytes", "bit", "cut", "hole", "twice"])
    if kind == "bytes":
        for _ in range(draw.randrange(1, 9)):
            content[draw.randrange(len(content))] = draw.randrange(256)
    elif kind == "bit":
        content[at] ^= 1 << draw.randrange(8)
    elif kind == "twice":
        content[at:at] = content[at : at + length]
    else:
        del content[at : None if kind == "cut" else at + length]
    return bytes(content)


@pytest.fixture(scope="module")
def opened(tmp_path_factory) -> tuple[Path, list[int], list]:
    """Damage an ONNX file 100 times and have each opened; returns the folder, those that were, and all outcomes."""
    pytest.importorskip("onnxscript")
    pytest.importorskip("openvino")
    from deploykit.artifacts import read_model
    from deploykit.export import export_onnx

    folder = tmp_path_factory.mktemp("mutations")
    torch.manual_seed(0)
    good = export_onnx(SmallResidual().eval(), images(2)).SerializeToString()
    for number in range(MUTATIONS):
        (folder / f"{number}.onnx").write_bytes(mutated(good, number))
    jobs = [{"source": str(folder / f"{n}.onnx"), "target": str(folder / f"{n}.whole.onnx")} for n in range(MUTATIONS)]
    outcomes = list(tried_apart(read_model, jobs, seconds=20))
    np.save(folder / "images.npy", images(8).numpy())
    return folder, [number for number, outcome in enumerate(outcomes) if not outcome.error], outcomes


class TestDamagedFiles:
    def test_each_is_opened_or_refused_in_words(self, opened):
        """Damage in the weights cannot be told from weights; nearly all else is found, and some of each is there."""
        _, passed, outcomes = opened

        assert len(outcomes) == MUTATIONS
        assert all(outcome.error for number, outcome in enumerate(outcomes) if number not in passed)
        assert 10 < len(passed) < 90

    @pytest.mark.parametrize("runtime", ["ONNX Runtime", "OpenVINO"])
    def test_what_a_runtime_takes_it_computes_as_onnx_says(self, opened, runtime):
        """Each file that passes the trial gives here what ONNX's own reference evaluator gives."""
        from onnx.reference import ReferenceEvaluator

        from deploykit.artifacts import ENDINGS, load_artifact, make_artifact

        folder, passed, _ = opened
        places = [folder / f"{number}-{runtime}" / f"model{ENDINGS[runtime]}" for number in passed]
        jobs = [
            {
                "runtime": runtime, "precision": "float32", "source": str(folder / f"{number}.whole.onnx"),
                "artifact": str(place), "calibration": str(folder / "images.npy"), "batches": [1, 8],
            }
            for number, place in zip(passed, places, strict=True)
        ]  # fmt: skip
        counted = collections.Counter()
        for job, place, outcome in zip(jobs, places, tried_apart(make_artifact, jobs, seconds=20), strict=True):
            if outcome.error:
                counted["refused"] += 1
                continue
            (wanted,) = ReferenceEvaluator(job["source"]).run(None, {"images": images(8).numpy()})
            found = load_artifact(runtime, "float32", place)(images(8)).numpy()
            same = np.allclose(found, wanted, rtol=1e-3, atol=1e-3 * np.abs(wanted).max())
            counted["right" if same else f"wrong: {job['source']}"] += 1

        assert set(counted) <= {"refused", "right"}
        assert counted["right"] > 10
