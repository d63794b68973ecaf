"""Where things lie, and files that are complete or absent."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

LEFTOVER_MARK = ".deploykit-partial"
LEFTOVER_AGE_S = 24 * 3600


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


def cache_folder() -> Path:
    """Return a writable folder for what can be made again, created if missing.

    ``$DEPLOYKIT_CACHE`` wins; else ``data/cache``; else, where a teacher shares a read-only checkout, the reader's
    own cache folder (``$XDG_CACHE_HOME/deploykit`` or ``~/.cache/deploykit``).

    Raises:
        PermissionError: none of them can be written; the message lists them and names the variable to set.
    """
    own = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "deploykit"
    named = os.environ.get("DEPLOYKIT_CACHE")
    tried = [Path(named).expanduser()] if named else [data_folder() / "cache", own]
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
def atomic_write(target: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside ``target`` and rename it onto ``target`` when the block succeeds.

    The data is flushed to the disk before the rename, so ``target`` is the old file or the complete new one, whatever
    happens in between. When the block raises, the temporary file is removed and the error goes on.

    Raises:
        OSError: the folder cannot be written or the disk is full; ``target`` is as it was.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{target.name}{LEFTOVER_MARK}-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def clean_leftovers(folder: Path | str) -> list[Path]:
    """Delete temporary files that a killed process left in ``folder`` over a day ago; return what was deleted."""
    removed = []
    for path in Path(folder).glob(f"*{LEFTOVER_MARK}-*"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > LEFTOVER_AGE_S:
                path.unlink()
                removed.append(path)
    return removed
