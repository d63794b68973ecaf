"""What all tests share: nothing is written into the reader's checkout, and real data is named when it is missing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch is imported: workers share the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session", autouse=True)
def own_ledger_and_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Send ledger rows and caches of this run, and of the processes it starts, to a temporary folder."""
    folder = tmp_path_factory.mktemp("deploykit")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEPLOYKIT_LEDGER", str(folder / "ledger"))
        # A cache that is given stays: decoding 60,000 PNG files again for every run would take longer than the tests.
        if "DEPLOYKIT_CACHE" not in os.environ:
            patch.setenv("DEPLOYKIT_CACHE", str(folder / "cache"))
        yield


@pytest.fixture(scope="session")
def cifar10_folder() -> Path:
    """The folder of real CIFAR-10 images (``train/<class>/*``, ``test/<class>/*``) that DEPLOYKIT_DATA names."""
    named = os.environ.get("DEPLOYKIT_DATA")
    if not named:
        pytest.skip("CIFAR-10 is missing: set DEPLOYKIT_DATA to a folder with train/<class>/* and test/<class>/*")
    folder = Path(named)
    if not (folder / "train" / "airplane").is_dir():
        pytest.skip(f"CIFAR-10 is missing: DEPLOYKIT_DATA={folder} has no train/airplane")
    return folder


@pytest.fixture
def network_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let no Python process that this test starts reach the network; what one tried is in the file, a line each."""
    log = tmp_path / "network.log"
    log.touch()
    monkeypatch.setenv("DEPLOYKIT_TEST_NETWORK_LOG", str(log))
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests" / "no_network"), prepend=os.pathsep)
    return log
