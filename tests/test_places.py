"""Files are complete or absent, and caches find a folder that can be written."""

import os
import subprocess
import sys
import threading
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

    def test_a_folder_that_cannot_be_written_is_said_before_the_work(self, tmp_path: Path) -> None:
        """A file in the place of the folder stands for it, since root may write everywhere."""
        (tmp_path / "file").touch()

        with pytest.raises(OSError, match="file"), places.atomic_write(tmp_path / "file" / "x"):
            pytest.fail("the block was entered")

    @pytest.mark.skipif(os.name == "nt", reason="Windows has no permission bits")
    @pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o007, 0o660)])
    def test_a_new_file_may_be_read_by_whoever_may_read_new_files(
        self, tmp_path: Path, umask: int, mode: int, request: pytest.FixtureRequest
    ) -> None:
        """Also when the block puts another file in its place, closed to others, as safetensors does."""
        before = os.umask(umask)
        request.addfinalizer(lambda: os.umask(before))
        with places.atomic_write(tmp_path / "x") as temporary:
            closed = tmp_path / "closed"
            closed.touch(mode=0o600)
            closed.replace(temporary)

        assert (tmp_path / "x").stat().st_mode & 0o777 == mode

    @pytest.mark.skipif(os.name == "nt", reason="Windows has no permission bits")
    def test_an_existing_file_keeps_its_permissions(self, tmp_path: Path) -> None:
        """Who closed a file to others, or opened it, finds it so after it was written anew."""
        (tmp_path / "x").touch()
        (tmp_path / "x").chmod(0o604)
        with places.atomic_write(tmp_path / "x") as temporary:
            temporary.write_text("new")

        assert (tmp_path / "x").stat().st_mode & 0o777 == 0o604


class TestLeftovers:
    @pytest.fixture
    def dead(self) -> int:
        """Return the number of a process that has ended."""
        process = subprocess.Popen([sys.executable, "-S", "-c", ""])
        process.wait()
        return process.pid

    def test_a_dead_process_of_this_machine_loses_its_file_at_once(self, tmp_path: Path, dead: int) -> None:
        """A living one keeps it: nobody takes a file away from under its writer."""
        mine = places.unique_name(tmp_path / "x", places.LEFTOVER_MARK)
        theirs = mine.with_name(mine.name.replace(f"-{os.getpid()}-", f"-{dead}-"))
        mine.touch()
        theirs.touch()

        assert places.clean_leftovers(tmp_path) == [theirs]
        assert mine.exists()

    def test_of_another_machine_nothing_is_known_for_a_day(self, tmp_path: Path, dead: int) -> None:
        """Its process numbers mean nothing here; a day is longer than any write takes."""
        old, fresh = (tmp_path / f"x{places.LEFTOVER_MARK}-0badcafe-{dead}-{n:08}" for n in (1, 2))
        old.touch()
        fresh.touch()
        os.utime(old, (time.time() - 2 * places.LEFTOVER_AGE_S,) * 2)

        assert places.clean_leftovers(tmp_path) == [old]
        assert fresh.exists()


class TestTurns:
    def test_a_second_one_waits_and_says_for_what(self, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
        """Two threads stand for two processes; what they do does not overlap."""
        inside: list[str] = []

        def work() -> None:
            with places.one_at_a_time(tmp_path / "x", doing="baking"):
                inside.append("in")
                time.sleep(0.3)
                inside.append("out")

        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert inside == ["in", "out", "in", "out"]
        assert capsys.readouterr().err == "Another process is baking; waiting for it.\n"
        assert list(tmp_path.iterdir()) == []

    def test_patience_ends_and_one_goes_on(self, tmp_path: Path) -> None:
        """A turn saves work; it never stops anybody for good."""
        with (
            places.one_at_a_time(tmp_path / "x", doing="baking"),
            places.one_at_a_time(tmp_path / "x", doing="baking", patience_s=0.2),
        ):
            assert (tmp_path / "x.turn").exists()

    def test_an_unsigned_turn_is_removed(self, tmp_path: Path) -> None:
        """Killed between creating the file and signing it: nobody can ask its owner, so its age decides."""
        turn = tmp_path / "x.turn"
        turn.touch()
        os.utime(turn, (time.time() - 2 * places.SILENCE_S,) * 2)

        with places.one_at_a_time(tmp_path / "x", doing="baking", patience_s=0):
            assert turn.stat().st_size

    def test_a_place_without_turns_stops_nobody(self, tmp_path: Path) -> None:
        """Where no turn can be taken (a file instead of a folder stands for it), work is done all the same."""
        (tmp_path / "file").touch()

        with places.one_at_a_time(tmp_path / "file" / "x", doing="baking"):
            assert list(tmp_path.iterdir()) == [tmp_path / "file"]


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
