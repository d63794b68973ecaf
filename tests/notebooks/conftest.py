"""How long each notebook took, at the end of the run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

TIMES = pytest.StashKey[list[tuple[str, float]]]()


@pytest.fixture(scope="session")
def ledgers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a ledger for each way of running the notebooks, which build on each other's rows."""
    return tmp_path_factory.mktemp("ledgers")


@pytest.fixture
def timed(request: pytest.FixtureRequest) -> Iterator[None]:
    """Note how long the test took, under its name."""
    start = time.monotonic()
    yield
    name = request.node.name.removeprefix("test_").replace("[", " ").rstrip("]")
    request.config.stash.setdefault(TIMES, []).append((name, time.monotonic() - start))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print one line per notebook and way of running it."""
    times = terminalreporter.config.stash.get(TIMES, [])
    if times:
        terminalreporter.section("notebooks")
    for name, seconds in times:
        terminalreporter.write_line(f"notebook {name}: {seconds:.1f} s")
