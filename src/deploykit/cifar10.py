"""CIFAR-10 from its author's binary archive, and how to know it in any other form.

The archive is the one with fixed-length records, not the pickled one: parsing it runs no code of the file's.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tarfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from deploykit import places

if TYPE_CHECKING:
    from deploykit.contents import Contents, Facts

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
ARCHIVE = "cifar-10-binary.tar.gz"
ARCHIVE_SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
# ``contents.content_hash`` of the 50,000 and the 10,000 labelled images.
TRAIN_HASH = "55a61f79a40ece2ceda9fb5f9f7078f6ea2fc4952489cef56682bcf92cfcc260"
TEST_HASH = "325704b01eb92e1e2a6215ae6a916bb7db7de054af0c496be1c7be2e0fcfbf5f"
TRAIN_FILES = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
TEST_FILE = "test_batch.bin"
SIDE = 32
RECORD_BYTES = 1 + 3 * SIDE * SIDE
MEMBER_BYTES = 10_000 * RECORD_BYTES

Labelled = tuple[NDArray[np.uint8], NDArray[np.int64]]


class ArchiveError(ValueError):
    """The archive is not what its author published."""


def recognises(facts: Facts) -> bool:
    """Tell whether these are exactly CIFAR-10's labelled images, whatever files they came from."""
    return (facts.train_hash, facts.test_hash) == (TRAIN_HASH, TEST_HASH)


def find_archive() -> Path | None:
    """Return the archive where a download, or the reader, has put it."""
    return next((path for path in _places() if path.is_file()), None)


def download_archive(*, patient: bool) -> Path:
    """Download the archive (170 MB), resuming an earlier attempt, and return it.

    Args:
        patient: go on however long a slow server takes; otherwise give up where that would be over ten minutes.

    Raises:
        DownloadError: it cannot be had now; the message says why and what was kept.
        OSError: the folder cannot be written or the disk is full.
    """
    from deploykit.download import Pace, download

    sys.stderr.write("Downloading CIFAR-10 (170 MB) from its author's page.\n")
    folder = next((path for path in _places() if os.access(path.parent, os.W_OK)), _places()[-1])
    return download(URL, folder, sha256=ARCHIVE_SHA256, pace=Pace(patience_s=None) if patient else Pace())


def read_archive(archive: Path) -> Contents:
    """Check an archive and read its 60,000 images.

    Raises:
        ArchiveError: the file is truncated, damaged or another one; the message names it and says what to do.
    """
    from deploykit.contents import arrange

    with archive.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != ARCHIVE_SHA256:
        raise ArchiveError(
            f"{archive} ({archive.stat().st_size:,} bytes) is not CIFAR-10's binary archive: "
            f"its SHA-256 is {found[:12]}… and must be {ARCHIVE_SHA256[:12]}…. It is truncated, damaged or another "
            "file; remove it to download it anew."
        )
    train, test = parse_archive(archive)
    return arrange(train, test, CLASSES)


def parse_archive(archive: Path) -> tuple[Labelled, Labelled]:
    """Read the records of an archive, straight from its members: nothing is unpacked to the disk or executed.

    Returns:
        Training and test images (uint8 [N, 32, 32, 3]) with labels (int64 [N]), in the order of the records.

    Raises:
        ArchiveError: the file is no gzip tar archive, a member is missing or has a wrong length, or a label is above 9.
    """
    members: dict[str, bytes] = {}
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                name = member.name.rpartition("/")[2]
                if name in (*TRAIN_FILES, TEST_FILE):
                    members[name] = _read_member(tar, member)
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise ArchiveError(
            f"{archive} cannot be read as a gzip tar archive ({error}); remove it to download it anew"
        ) from error
    if missing := [name for name in (*TRAIN_FILES, TEST_FILE) if name not in members]:
        raise ArchiveError(f"{archive} has no {', '.join(missing)}; it is not CIFAR-10's binary archive")
    return parse_records(b"".join(members[name] for name in TRAIN_FILES)), parse_records(members[TEST_FILE])


def parse_records(data: bytes) -> Labelled:
    """Split a run of records: the label in one byte, then 1,024 bytes each of red, green and blue.

    Returns:
        Images uint8 [N, 32, 32, 3] and labels int64 [N].

    Raises:
        ArchiveError: the length is not that of whole records, or a label is above 9.
    """
    if not data or len(data) % RECORD_BYTES:
        raise ArchiveError(f"{len(data):,} bytes are not a whole number of records of {RECORD_BYTES:,} bytes")
    records = np.frombuffer(data, dtype=np.uint8).reshape(-1, RECORD_BYTES)
    labels = records[:, 0].astype(np.int64)
    if labels.max() >= len(CLASSES):
        first = int(np.argmax(labels >= len(CLASSES)))
        raise ArchiveError(
            f"the label of record {first} is {labels[first]}; CIFAR-10's labels are 0 to {len(CLASSES) - 1}"
        )
    planes = records[:, 1:].reshape(-1, 3, SIDE, SIDE)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), labels


def _read_member(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member) if member.size == MEMBER_BYTES else None
    if file is None:
        raise ArchiveError(
            f"{member.name} in the archive is {member.size:,} bytes long; "
            f"CIFAR-10's files are {MEMBER_BYTES:,} bytes each"
        )
    return file.read()


def _places() -> list[Path]:
    """Return where the archive may lie: ``data/``, or the cache where the checkout is read-only."""
    return [places.data_folder() / ARCHIVE, places.cache_folder() / ARCHIVE]
