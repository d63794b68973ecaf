"""What the examination says about one thing, and how a probe is kept from hanging or failing the rest."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

OK, LIMITED, MISSING = "ok", "limited", "missing"
STATUSES = (OK, LIMITED, MISSING)

# The folders in a message, up to the last name: the name tells what is wrong, the rest is about this machine.
FOLDERS = re.compile(r"(?:[A-Za-z]:)?(?:[\\/][^\s\\/:'\"]+)+[\\/]")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. It names no user and no host, and no folder but one that the reader must act on.

    Attributes:
        name: what was looked at, e.g. ``"memory"``.
        status: ``"ok"``; ``"limited"``: the course runs, with something less, which ``cost`` says; ``"missing"``: part
            of the course does not run until it is mended.
        found: what is there, in one line.
        cost: what the shortcoming costs the reader; empty when ok.
        mend: how to mend it, with the command to type where there is one; empty when ok.
    """

    name: str
    status: str
    found: str
    cost: str = ""
    mend: str = ""

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"status is {self.status!r}; choose one of {', '.join(map(repr, STATUSES))}")
        for text in ("found", "cost", "mend"):  # what variables and other programs say goes to a terminal
            object.__setattr__(self, text, _one_line(getattr(self, text)))

    def to_dict(self) -> dict[str, str]:
        """Return the attributes by name, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"{self.status:<8} {self.name}: {self.found}"]
        lines += [f"{'':9}{label}: {text}" for label, text in (("cost", self.cost), ("mend", self.mend)) if text]
        return "\n".join(lines)


class Doubt(NamedTuple):
    """One shortcoming of several that a thing may have at once."""

    cost: str
    mend: str


class Probe(NamedTuple):
    """A look at one thing, or at a few that belong together, and the seconds after which it is given up."""

    names: tuple[str, ...]  # of the findings that it gives, in this order, whatever happens
    look: Callable[[], Finding | list[Finding]]
    limit_s: float = 5


def judged(name: str, found: str, doubts: Sequence[Doubt]) -> Finding:
    """Return a finding that is ok without doubts, and limited by all of them otherwise."""
    if not doubts:
        return Finding(name, OK, found)
    mends = dict.fromkeys(doubt.mend for doubt in doubts)  # one remedy may serve several
    return Finding(name, LIMITED, found, "; ".join(doubt.cost for doubt in doubts), "; ".join(mends))


def look_at(probes: Iterable[Probe]) -> list[Finding]:
    """Make every probe, all at once, and return their findings in the order of the probes.

    A probe that raises, or takes longer than its limit, becomes a finding that says so: a hanging network drive or a
    broken driver is found, not suffered. Its thread does not keep the process alive.
    """
    began = time.monotonic()
    looks = [_Look(probe) for probe in probes]
    for look in looks:
        look.start()
    findings = []
    for look in looks:
        look.join(max(0.0, began + look.probe.limit_s - time.monotonic()))
        findings += look.findings or _unanswered(look.probe)
    return findings


class _Look(threading.Thread):
    def __init__(self, probe: Probe) -> None:
        super().__init__(name=f"look at {probe.names[0]}", daemon=True)
        self.probe = probe
        self.findings: list[Finding] = []

    def run(self) -> None:
        try:
            found = self.probe.look()
        except Exception as error:  # noqa: BLE001 (whatever goes wrong in there is what is to be told)
            self.findings = _failed(self.probe, error)
        else:
            self.findings = found if isinstance(found, list) else [found]


def run_bounded(*command: str, limit_s: float) -> subprocess.CompletedProcess[str]:
    """Run a command without input and return it with its output as text.

    Raises:
        subprocess.TimeoutExpired: it took longer than ``limit_s`` seconds, and was ended.
        OSError: it cannot be started.
    """
    return subprocess.run(
        command, capture_output=True, stdin=subprocess.DEVNULL, timeout=limit_s,
        text=True, encoding="utf-8", errors="replace", check=False,
    )  # fmt: skip


def last_words(text: str) -> str:
    """Return the last line of a program's complaint, without the folders in it."""
    lines = text.split("\n")
    return without_folders(next((line.strip() for line in reversed(lines) if line.strip()), "no message"))


def without_folders(text: str) -> str:
    """Return the text with each path cut down to its last name."""
    with contextlib.suppress(RuntimeError):  # there is no home
        text = text.replace(str(Path.home()), "")  # which may have spaces in it
    return FOLDERS.sub("", text)


def _one_line(text: str) -> str:
    return "".join(character for character in " ".join(text.split()) if character.isprintable())


def _failed(probe: Probe, error: Exception) -> list[Finding]:
    # An OSError's text names the file; what the system said about it is enough.
    reason = f": {os.strerror(error.errno)}" if isinstance(error, OSError) and error.errno else ""
    found = f"could not be examined ({type(error).__name__}{reason})"
    return _unknown(probe, found, "nothing is known about it")


def _unanswered(probe: Probe) -> list[Finding]:
    return _unknown(probe, f"no answer within {probe.limit_s:g} s", "what needs it may hang as well")


def _unknown(probe: Probe, found: str, cost: str) -> list[Finding]:
    return [Finding(name, LIMITED, found, cost, f"try again, or look at {name} yourself") for name in probe.names]
