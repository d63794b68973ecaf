"""The folders: what of the data is there, what can be written, and how much room is left."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from deploykit import places
from deploykit.doctor.finding import LIMITED, MISSING, OK, Doubt, Finding, judged
from deploykit.doctor.hardware import GIB

ARCHIVE_BYTES = 170_052_171
# CIFAR-10's archive and its decoded form, shapes32's, and the kernels that torch.compile builds.
NEEDED_GIB, LEAST_GIB = 1.0, 0.5


def dataset() -> Finding:
    """Look where ``load_dataset("auto")`` looks, without reading a picture."""
    from deploykit import cifar10

    if named := os.environ.get("DEPLOYKIT_DATA"):
        folder = Path(named).expanduser()
        if not all((folder / split).is_dir() for split in ("train", "test")):
            cost = "no notebook gets its data: the variable goes before everything else"
            mend = "unset DEPLOYKIT_DATA, or let it name a folder with train/<class>/* and test/<class>/*"
            return Finding("dataset", MISSING, f"DEPLOYKIT_DATA={named} has no train and test", cost, mend)
        kind = "CIFAR-10's classes" if (folder / "train" / cifar10.CLASSES[0]).is_dir() else "classes of its own"
        return Finding("dataset", OK, f"the folder that DEPLOYKIT_DATA names, with {kind}")
    if (places.data_folder() / "cifar10" / "train" / cifar10.CLASSES[0]).is_dir():
        return Finding("dataset", OK, "CIFAR-10 as pictures in data/cifar10")
    archive = cifar10.find_archive()
    if archive is None:
        cost = "the first notebook downloads CIFAR-10 (170 MB); where it cannot, the course runs on the drawn shapes32"
        mend = "deploykit data cifar10, or set DEPLOYKIT_DATA to a folder with train/<class>/* and test/<class>/*"
        return Finding("dataset", LIMITED, "CIFAR-10 is not here", cost, mend)
    if (size := archive.stat().st_size) != ARCHIVE_BYTES:
        cost = "it is truncated or another file: loading it will stop with an error"
        found = f"CIFAR-10's archive has {size:,} bytes instead of {ARCHIVE_BYTES:,}"
        return Finding("dataset", MISSING, found, cost, f"remove {archive}; deploykit data cifar10 fetches it anew")
    return Finding("dataset", OK, f"CIFAR-10's archive {archive.name}")


def folders() -> Finding:
    """Write a little into the folders that the notebooks write to, and read the room left there."""
    try:
        cache = places.cache_folder()
        _write_into(cache)
    except OSError as error:
        cost = "images are decoded anew by every notebook, and neither downloads nor ledger rows can be kept"
        mend = "export DEPLOYKIT_CACHE=folder, one that you may write to and that has room"
        return Finding("folders", MISSING, f"no cache can be written ({_reason(error)})", cost, mend)
    doubts = []
    try:
        _write_into(Path(tempfile.gettempdir()))
    except OSError as error:
        cost = f"the temporary folder cannot be written ({_reason(error)}): torch.compile cannot build kernels"
        doubts.append(Doubt(cost, "export TMPDIR=folder, one that you may write to"))
    try:
        _write_into(Path.home())
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
        cost = f"the home folder cannot be written ({_reason(error)}): Jupyter may not start its kernels"
        doubts.append(Doubt(cost, "export HOME=folder, one that you may write to"))
    own_data = os.access(places.data_folder(), os.W_OK)
    return judged("folders", "writable" if own_data else "data/ is read-only, your own cache is writable", doubts)


def disk() -> Finding:
    """Compare the room in the cache folder and the temporary folder with what the course writes there."""
    cache, temporary = places.cache_folder(), Path(tempfile.gettempdir())
    places_to_write = {"the cache": cache, "temporary files": temporary}
    free = {what: shutil.disk_usage(folder).free / GIB for what, folder in places_to_write.items()}
    found = ", ".join(f"{room:.1f} GiB free for {what}" for what, room in free.items())
    tight = min(free, key=lambda what: free[what])
    if free[tight] >= NEEDED_GIB:
        return Finding("disk", OK, found)
    cost = f"the course writes up to {NEEDED_GIB:g} GiB: downloads, decoded images and compiled kernels may not fit"
    folder, variable = (cache, "DEPLOYKIT_CACHE") if tight == "the cache" else (temporary, "TMPDIR")
    mend = f"make room in {folder}, or set {variable} to a folder on another disk"
    return Finding("disk", MISSING if free[tight] < LEAST_GIB else LIMITED, found, cost, mend)


def _write_into(folder: Path) -> None:
    """Raise OSError where a small file cannot be written: permission bits do not tell of full or read-only drives."""
    with tempfile.TemporaryFile(dir=folder, prefix=".deploykit-") as file:
        file.write(bytes(4096))
        file.flush()


def _reason(error: BaseException) -> str:
    return os.strerror(error.errno) if isinstance(error, OSError) and error.errno else type(error).__name__
