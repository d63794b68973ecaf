"""The faults of `make faults` in their short form, and that the table would say it if one ended otherwise."""

from __future__ import annotations

import json
import sys

import pytest

from deploykit.recorded import Recorded, recorded
from tools.faults import __main__ as command
from tools.faults import page
from tools.faults.trials import CATALOGUE, Fault, Trial, UnmetError, expect

# tests/test_many_readers.py tries these
READERS = {"thirty-readers", "thirty-readers-without-flock", "thirty-readers-of-a-teacher"}
# tests/test_make.py tries these, through the whole of `make cookbook`
KERNELS = {"kernel-killed", "cell-is-endless", "output-is-huge"}
HERE = [fault for fault in CATALOGUE if fault.name not in READERS | KERNELS]
# what the course promises to survive, in the words of the table
PROMISED = (
    "kill -9 in training, one process", "kill -9 in training, two processes", "kill -9 in a download",
    "kill -9 in building a cache", "kill -9 in writing the ledger", "full disk", "missing permission", "out of memory",
    "NaN loss", "killed kernel", "endless cell", "100 MB of output", "home not writable",
)  # fmt: skip


@pytest.mark.skipif(sys.platform != "linux", reason="faults are brought about with the means of Linux")
@pytest.mark.parametrize("fault", HERE, ids=lambda fault: fault.name)
def test_it_ends_as_expected(fault):
    """Short form: what is expected stands in the catalogue, beside what is done."""
    row = fault.run(seed=0, short=True)

    assert row["ok"], row["happened"]
    assert row["tried"] == fault.short > 0


def test_every_promise_has_a_fault():
    """And none of the names that are tried elsewhere has been forgotten."""
    kinds = [fault.fault for fault in CATALOGUE]

    assert [promise for promise in PROMISED if not any(kind.startswith(promise) for kind in kinds)] == []
    assert {fault.name for fault in CATALOGUE} >= READERS | KERNELS
    assert len({fault.name for fault in CATALOGUE}) == len(CATALOGUE)


class TestTheTable:
    def fault(self, trial, times: int = 3) -> Fault:
        """Return a fault of no consequence."""
        return Fault("toy", "toy", "nothing is done", "nothing", times, 1, trial)

    def test_one_failed_trial_of_many_fails_the_row(self):
        """The trial's number and the reason are given, and what became of the others; a crash is a failure too."""
        numbers = iter(range(3))

        def trial(_: Trial) -> str:
            number = next(numbers)
            expect(number != 1, "two rows are lost")
            return {0: "fine", 2: ""}[number] or 1 / 0

        row = self.fault(trial).run(seed=0, short=False)

        assert not row["ok"]
        assert row["happened"] == ("trial 1: two rows are lost; trial 2: ZeroDivisionError: division by zero; 1 x fine")

    def test_a_seed_draws_the_same_again_and_another_seed_another(self):
        """Each trial has its own draw, so that it can be repeated alone."""
        draws = [
            self.fault(lambda trial: str(trial.random.random())).run(seed=seed, short=False)["happened"]
            for seed in (0, 0, 1)
        ]

        assert draws[0] == draws[1] != draws[2]
        assert len(set(draws[0].split("; "))) == 3

    def test_the_exit_status_says_that_one_failed(self, monkeypatch, capsys):
        """1, with the row on stdout as JSON and the talk on stderr; a part of the catalogue is not recorded."""

        def trial(_: Trial) -> str:
            raise UnmetError("it is gone")

        monkeypatch.setattr(command, "CATALOGUE", [self.fault(trial, times=1)])
        status = command.main(["--json", "toy"])
        printed = capsys.readouterr()

        assert status == (1 if sys.platform == "linux" else 3)
        if status == 1:
            assert json.loads(printed.out)[0]["happened"] == "trial 0: it is gone"
            assert "failed: toy" in printed.err

    def test_an_unknown_name_is_answered_with_the_known_ones(self, capsys):
        """A usage error, before anything is tried."""
        with pytest.raises(SystemExit) as ended:
            command.main(["nonsense"])

        assert ended.value.code == 2
        assert "there is no fault nonsense; there are training-killed" in capsys.readouterr().err


class TestThePage:
    def test_it_is_that_of_the_recorded_run(self):
        """docs/faults.md is generated: `python make.py faults --page` writes it anew."""
        assert page.PAGE.read_text(encoding="utf-8") == page.text(recorded("faults"))

    def test_a_failure_is_shown_as_one(self):
        """In the line on top and in its place, with markup shown as text."""
        row = {"fault": "full disk", "done": "it fills up", "expected": "a word", "happened": "<b>", "ok": False}
        machine = {"cpu": "a CPU", "threads": 2, "os": "an OS"}
        versions = {"python": "3", "torch": "2"}
        rows = (row | {"tried": 1, "seconds": 0.4},)
        text = page.text(Recorded("faults", "what", "2026-01-01", "command", machine, versions, rows))

        assert "Faults: 1; trials: 1; not as expected: full disk." in text
        assert "*Happened:* **not as expected.** &lt;b&gt; (1 trial, 0 s)." in text
