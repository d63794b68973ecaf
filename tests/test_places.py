"""Files are complete or absent, and caches find a folder that can be written."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deploykit import places


class TestAtomicWrite:
    def test_a_failed_write_leaves_the_old_file_and_no_leftover(self, tmp_path: Path) -> None:
        """An error inside the block goes on to the caller; the target is as it was."""
        target = tmp_path / "cache.bin"
        target.write_text("old")

        def fill_the_disk(partial: Path) -> None:
            partial.write_text("half of the n")
            raise OSError("disk full")

        with pytest.raises(OSError, match="disk full"), places.atomic_write(target) as partial:
            fill_the_disk(partial)

        assert target.read_text() == "old"
        assert list(tmp_path.iterdir()) == [target]

    def test_a_killed_writer_leaves_the_old_file(self, tmp_path: Path) -> None:
        """Kill -9 between writing and renaming: the old content is still there."""
        target = tmp_path / "cache.bin"
        target.write_text("old")
        code = (
            "import os, sys; from deploykit.places import atomic_write\n"
            "with atomic_write(sys.argv[1]) as p:\n    p.write_text('new'); os.kill(os.getpid(), 9)"
        )

        subprocess.run([sys.executable, "-c", code, target], check=False)

        assert target.read_text() == "old"

    def test_two_writers_use_different_temporary_files(self, tmp_path: Path) -> None:
        """Nothing is locked: the last rename wins and both were whole."""
        with places.atomic_write(tmp_path / "x") as first, places.atomic_write(tmp_path / "x") as second:
            first.write_text("first")
            second.write_text("second")
            assert first != second

        assert (tmp_path / "x").read_text() == "first"

    def test_leftovers_are_deleted_when_old_and_kept_when_fresh(self, tmp_path: Path) -> None:
        """A day is longer than any write takes, so no living writer loses its file."""
        old, fresh = (tmp_path / f"x{places.LEFTOVER_MARK}-{n}" for n in (1, 2))
        old.touch()
        fresh.touch()
        os.utime(old, (time.time() - 2 * places.LEFTOVER_AGE_S,) * 2)

        assert places.clean_leftovers(tmp_path) == [old]
        assert fresh.exists()


class TestFolders:
    def test_the_checkout_one_stands_in_wins(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A reader with two checkouts works in the one they stand in."""
        monkeypatch.delenv("DEPLOYKIT_HOME", raising=False)
        (tmp_path / "data" / "checkpoints").mkdir(parents=True)
        (tmp_path / "notebooks").mkdir()
        monkeypatch.chdir(tmp_path / "notebooks")

        assert places.repository() == tmp_path

    def test_an_unwritable_cache_is_an_error_that_names_the_variable(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A file where the folder should be stands for every reason that a folder cannot be made."""
        (tmp_path / "taken").touch()
        monkeypatch.setenv("DEPLOYKIT_CACHE", str(tmp_path / "taken" / "cache"))

        with pytest.raises(PermissionError, match="set DEPLOYKIT_CACHE to a folder of yours"):
            places.cache_folder()

    def test_a_read_only_checkout_falls_back_to_the_readers_own_cache(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Thirty readers share a checkout that they cannot write."""
        monkeypatch.delenv("DEPLOYKIT_CACHE", raising=False)
        monkeypatch.setenv("DEPLOYKIT_HOME", str(tmp_path / "shared"))
        (tmp_path / "shared").mkdir()
        (tmp_path / "shared" / "data").touch()
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own"))

        assert places.cache_folder() == tmp_path / "own" / "deploykit"
