"""Where things lie, and files that are complete or absent, however many processes write them and are killed."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import platform
import re
import secrets
import stat
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

LEFTOVER_MARK = ".deploykit-partial"
LEFTOVER_AGE_S = 24 * 3600
TURN_MARK = ".turn"
# A process on another machine that has not been heard of for so long is taken for dead.
SILENCE_S = 30.0


def repository() -> Path:
    """Return the root of the checkout: ``$DEPLOYKIT_HOME``, or the nearest parent that looks like one, or here.

    The parents of the working directory are tried before those of this file, so that a reader with two checkouts
    works in the one they stand in.
    """
    if named := os.environ.get("DEPLOYKIT_HOME"):
        return Path(named).expanduser().resolve()
    for start in (Path.cwd(), Path(__file__).resolve()):
        for folder in (start, *start.parents):
            if (folder / "data" / "checkpoints").is_dir() and (folder / "notebooks").is_dir():
                return folder
    return Path.cwd()


def data_folder() -> Path:
    """Return the folder of downloads, caches, checkpoints and results (``data/`` of the checkout)."""
    return repository() / "data"


def cache_places() -> list[Path]:
    """Return the folders where caches may lie, the shared one before the reader's own; some may not exist."""
    if named := os.environ.get("DEPLOYKIT_CACHE"):
        return [Path(named).expanduser()]
    own = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "deploykit"
    return [data_folder() / "cache", own]


def cache_folder() -> Path:
    """Return a writable folder for what can be made again, created if missing.

    ``$DEPLOYKIT_CACHE`` wins; else ``data/cache``; else, where a teacher shares a read-only checkout, the reader's
    own cache folder (``$XDG_CACHE_HOME/deploykit`` or ``~/.cache/deploykit``).

    Raises:
        PermissionError: none of them can be written; the message lists them and names the variable to set.
    """
    tried = cache_places()
    for folder in tried:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(folder, os.W_OK):
            return folder
    raise PermissionError(
        f"no folder for caches can be written (tried {', '.join(map(str, tried))}); "
        "set DEPLOYKIT_CACHE to a folder of yours"
    )


@contextlib.contextmanager
def one_at_a_time(target: Path, *, doing: str, patience_s: float = 900.0) -> Iterator[None]:
    """Let one process at a time make ``target``; whoever waited should look whether it is there now.

    It only saves work: nothing may depend on it. The turn is a file created exclusively, which works where ``flock``
    holds nobody back (network drives). It ends with its process, killed or not; a process of another machine is
    waited for as long as it shows life. Where no such file can be made, everybody goes on.

    Args:
        target: what is made; the turn is the file ``<target>.turn``.
        doing: what to tell those who wait that another process does, for instance "downloading the archive".
        patience_s: after so many seconds one goes on all the same.
    """
    import filelock

    turn = Path(f"{target}{TURN_MARK}")
    lock = filelock.SoftFileLease(turn, lease_duration=SILENCE_S, poll_interval=0.1)
    deadline = time.monotonic() + patience_s
    _forget_empty_turn(turn)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        sys.stderr.write(f"Another process is {doing}; waiting for it.\n")
        while not lock.is_locked and time.monotonic() < deadline:
            _forget_empty_turn(turn)
            with contextlib.suppress(filelock.Timeout):
                lock.acquire(timeout=min(SILENCE_S, patience_s))
    except OSError:
        pass  # a read-only folder, or a drive on which this does not work: at worst work is done twice
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            lock.release()


def _forget_empty_turn(turn: Path) -> None:
    """Remove the file of a process that was killed in the instant between creating it and signing it."""
    with contextlib.suppress(OSError):
        found = turn.stat()
        if found.st_size == 0 and time.time() - found.st_mtime > SILENCE_S:
            turn.unlink()


def unique_name(target: Path, mark: str) -> Path:
    """Return a name beside ``target`` that no other process uses and that tells whose it is (``is_abandoned``)."""
    return target.with_name(f"{target.name}{mark}-{_here()}-{os.getpid()}-{secrets.token_hex(4)}")


def is_abandoned(path: Path) -> bool:
    """Tell whether the process that made a file of a ``unique_name`` is gone.

    It is when it ran on this machine and runs no more; of another machine's nothing is known, and a day without a
    write is taken for its end.

    Raises:
        FileNotFoundError: the file is no more.
    """
    import psutil

    age_s = time.time() - path.stat().st_mtime
    maker = re.search(r"-(\w{8})-(\d+)-\w{8}$", path.name)
    known_dead = maker is not None and maker[1] == _here() and not psutil.pid_exists(int(maker[2]))
    return known_dead or age_s > LEFTOVER_AGE_S


@functools.cache
def _here() -> str:
    """Name the set of processes whose numbers this process can look up: machine, its start, and container."""
    parts = [platform.node()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii"))
        parts.append(str(Path("/proc/self/ns/pid").stat().st_ino))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:8]


@contextlib.contextmanager
def atomic_write(target: Path | str) -> Iterator[Path]:
    """Yield a temporary file beside ``target``, empty, and rename it onto ``target`` when the block succeeds.

    The data is flushed to the disk before the rename, so ``target`` is the old file or the complete new one, whatever
    happens in between. Its permissions are those of the old file, or those that any new file gets here, so that others
    can read what they may read. When the block raises, the temporary file is removed and the error goes on.

    Raises:
        OSError: the folder cannot be written (before the block is entered) or the disk is full; ``target`` is as it
            was.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = unique_name(target, LEFTOVER_MARK)
    temporary.touch(exist_ok=False)
    try:
        mode = stat.S_IMODE((target if target.exists() else temporary).stat().st_mode)
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.chmod(mode)  # some libraries put a file of their own here, which only its owner may read
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def clean_leftovers(folder: Path | str) -> list[Path]:
    """Delete the temporary files that killed processes left in ``folder``; return what was deleted.

    Files that others own and a read-only folder are passed over.
    """
    import filelock

    removed = []
    for path in Path(folder).glob(f"*{LEFTOVER_MARK}-*"):
        with contextlib.suppress(OSError):
            if is_abandoned(path):
                path.unlink()
                removed.append(path)
    for turn in Path(folder).glob(f"*{TURN_MARK}"):
        # Whose owner is dead can be taken at once, and is gone when given back.
        with (
            contextlib.suppress(filelock.Timeout, OSError),
            filelock.SoftFileLease(turn, lease_duration=SILENCE_S, timeout=0),
        ):
            removed.append(turn)
    return removed
