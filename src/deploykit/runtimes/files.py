"""A file is complete or absent: it is written beside its place and renamed."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def complete_or_absent(path: Path | str, suffix: str) -> Iterator[Path]:
    """Yield where to write what shall be ``path``; it is moved there, and files beside it, when the block succeeds.

    Args:
        path: its folder is created if missing.
        suffix: how its name must end.

    Raises:
        ValueError: it ends otherwise.
    """
    path = Path(path)
    if path.suffix != suffix:
        raise ValueError(f"{path.name} must end in {suffix}, by which the runtime knows what it is")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.stem}-") as folder:
        partial = Path(folder) / path.name
        yield partial
        written = sorted(Path(folder).iterdir(), key=lambda file: file == partial)  # the one that is opened comes last
        for file in written:
            with file.open("rb+") as opened:
                os.fsync(opened.fileno())
        for file in written:
            file.replace(path.parent / file.name)


def existing(path: Path | str) -> Path:
    """Return the path if there is a file.

    Raises:
        FileNotFoundError: there is none.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; save() writes one")
    return path
