"""A service in a process of its own, for as long as a block lasts: what a load test needs, which must not share it."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

STOP_S = 20.0  # in which a service that was told to has ended


@dataclass(frozen=True)
class Running:
    """A service that is ready.

    Attributes:
        url: ``http://host:port``.
        model: its name.
        facts: all that ``deploykit serve --json`` says.
        process: it; ``process.pid`` for those who watch it.
    """

    url: str
    model: str
    facts: dict[str, Any]
    process: subprocess.Popen[str]

    @property
    def infer_url(self) -> str:
        """Where tensors go."""
        return f"{self.url}/v2/models/{self.model}/infer"

    def stop(self) -> int:
        """Let it answer what it has accepted, and end; returns its exit status.

        Raises:
            subprocess.TimeoutExpired: it does not end.
        """
        self.process.terminate()
        return self.process.wait(STOP_S)


@contextlib.contextmanager
def started(artifact: str, *options: str) -> Iterator[Running]:
    """Run ``deploykit serve`` on a free port, and yield when its model is warm; it is stopped in the end.

    Args:
        artifact: as the command takes it.
        options: of the command, ``"--threads", "1"``.

    Raises:
        ChildProcessError: it did not become ready; the message says what it said.
    """
    command = [sys.executable, "-m", "deploykit.cli", "serve", artifact, "--port", "0", "--json", *options]
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8") as talk,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=talk, text=True) as process,
    ):
        try:
            facts = _first_document(process)
            if facts is None:
                talk.seek(0)
                words = talk.read().strip().splitlines() or [f"exit status {process.wait()}"]
                raise ChildProcessError(f"the service did not start: {words[-1]}")
            yield Running(facts["url"], facts["model"], facts, process)
        finally:
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()


def _first_document(process: subprocess.Popen[str]) -> dict[str, Any] | None:
    """Return what it prints when it is ready; None if it ends before."""
    text = ""
    for line in process.stdout or ():
        text += line
        with contextlib.suppress(ValueError):  # not all of it yet
            found: dict[str, Any] = json.loads(text)
            return found
    return None
