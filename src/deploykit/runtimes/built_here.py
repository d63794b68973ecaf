"""Remember what this machine built: a file that runs as a program when it is loaded comes from nowhere else."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


def record_built_here(content: bytes) -> None:
    """Note the hash of a file in the reader's cache folder, readable and writable for them only."""
    manifest = _manifest()
    manifest.parent.mkdir(parents=True, exist_ok=True)
    opened = os.open(manifest, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(opened, f"{_hash(content)}\n".encode())  # one write of a line: others may append at the same time
    finally:
        os.close(opened)


def check_built_here(content: bytes, path: Path) -> None:
    """Raise ValueError unless :func:`record_built_here` was called with this content."""
    manifest = _manifest()
    known = manifest.read_text(encoding="ascii").split() if manifest.is_file() and _is_private(manifest) else []
    if _hash(content) not in known:
        raise ValueError(
            f"{path} was not built on this machine, or was changed since; loading it would run whatever is in it. "
            "Build it here with save(), or pass trust=True if you know who made it and how it came to you"
        )


def _manifest() -> Path:
    named = os.environ.get("DEPLOYKIT_CACHE")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "deploykit"
    return (Path(named) if named else cache).expanduser() / "built-here.sha256"


def _is_private(file: Path) -> bool:
    """Tell whether nobody else could have written the file; Windows keeps a home folder private by other means."""
    status = file.stat()
    return os.name == "nt" or (status.st_uid == os.getuid() and not status.st_mode & 0o022)


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
