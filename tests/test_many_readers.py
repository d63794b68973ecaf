"""Thirty readers on one machine: one download, one cache, no error, whatever locks are worth, whoever owns the data."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

from tools.faults import readers
from tools.faults.trials import Trial

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the readers are started with the means of Linux")


@pytest.fixture
def trial(tmp_path) -> Trial:
    """Return an empty folder for the readers."""
    return Trial(random.Random(0), tmp_path)  # noqa: S311 (no secret)


def course(trial: Trial) -> Path:
    """Return a course whose data folder is empty."""
    (trial.folder / "course" / "data").mkdir(parents=True)
    return trial.folder / "course"


@pytest.mark.parametrize("locks", ["work", "do nothing"])
def test_thirty_at_once_download_once_and_prepare_once(trial, locks):
    """Also where `flock` holds nobody back; the archive and the prepared images are all that is left."""
    data = course(trial)
    requests, prepared = readers.thirty(trial, data, locks=locks)

    assert readers.READERS == 30
    assert (requests, prepared) == ([0], 1)
    files = {path.name for path in (data / "data").rglob("*") if path.is_file()}
    assert files == {"cifar-10-binary.tar.gz", "cifar10-archive.safetensors"}


def test_a_teachers_read_only_folder_serves_them_all(trial):
    """Nobody downloads, prepares or copies anything; run by root, the test makes the folder somebody else's."""
    assert readers.thirty_readers_of_a_teacher(trial).endswith("read-only: no error, no copy")


def test_each_user_has_a_folder_of_compiled_code(monkeypatch):
    """By torch's own default, which the course leaves alone: one folder for all would have the first one's owner."""
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    code = (
        "import os, deploykit.notebook as notebook; notebook.start(budget='smoke', data='shapes32'); print(*os.environ)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    folders = []
    for user in ("ada", "grace"):
        monkeypatch.setenv("LOGNAME", user)
        folders.append(Path(default_cache_dir()).name)

    assert folders == ["torchinductor_ada", "torchinductor_grace"]
    assert "PATH" in found.stdout.split()
    assert "TORCHINDUCTOR_CACHE_DIR" not in found.stdout.split()
