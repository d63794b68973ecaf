"""``deploykit data``: find or fetch a dataset and say what is in it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploykit.cli import output
from deploykit.cli.contract import Status, StopError

if TYPE_CHECKING:
    from deploykit.data import Dataset

NAMED = ("cifar10", "shapes32")
DATASETS = "auto, cifar10, shapes32, or a folder with train/<class>/* and test/<class>/*."


def data(
    name: Annotated[str, typer.Argument(metavar="DATASET", help=DATASETS)] = "auto",
    *,
    download: Annotated[bool, typer.Option(help="Fetch CIFAR-10 (162 MiB) when it is not there yet.")] = True,
    as_json: output.Json = False,
) -> None:
    """Find or fetch a dataset and say what is in it.

    "auto" takes the folder that $DEPLOYKIT_DATA names, else CIFAR-10 under data/, else its download, else shapes32,
    which is drawn by code; what it falls back from is said on stderr.
    """
    dataset = open_dataset(name, download=download)
    splits = {split.name: len(split) for split in (dataset.train, dataset.val, dataset.test)}
    height, width = dataset.train.images.shape[1:3]
    if as_json:
        output.document({
            "name": dataset.name,
            "source": dataset.source,
            "classes": list(dataset.classes),
            "images": splits,
            "height": height,
            "width": width,
            "mean": list(dataset.mean),
            "std": list(dataset.std),
            "fingerprint": dataset.fingerprint,
        })  # fmt: skip
        return
    counts = ", ".join(f"{count:,} {split}" for split, count in splits.items())
    facts = {
        "dataset": dataset.name,
        "from": dataset.source,
        "classes": f"{len(dataset.classes)}: {', '.join(dataset.classes)}",
        "images": f"{counts}; {height}x{width} pixels",
        "fingerprint": dataset.fingerprint,
    }
    output.show(output.table(facts.items()))


def open_dataset(name: str, *, download: bool = True) -> Dataset:
    """Load a dataset for a command.

    Raises:
        StopError: CIFAR-10 was asked for by name, is not on this machine and may not be fetched; or $DEPLOYKIT_DATA
            names a folder that cannot be used, which the reader may have forgotten.
        OSError, ValueError: as ``load_dataset`` says.
    """
    from deploykit.data import load_dataset

    with _where_it_was_named(name):
        return load_dataset(name, download=download)


def refuse_no_dataset(name: str) -> None:
    """Refuse a folder that ``open_dataset`` would, as far as that can be seen without opening an image.

    Raises:
        FileNotFoundError: the folder, or its ``train`` or ``test``, does not exist.
        StopError: likewise, of the folder that $DEPLOYKIT_DATA names.
    """
    from deploykit.folders import refuse_other_folders

    if (folder := folder_of(name)) is not None:
        with _where_it_was_named(name):
            refuse_other_folders(folder.expanduser().resolve())


def folder_of(name: str) -> Path | None:
    """Return the reader's folder that ``--data`` stands for; None where it is one of the course's datasets."""
    if name in NAMED:
        return None
    named = os.environ.get("DEPLOYKIT_DATA") if name == "auto" else name
    return Path(named) if named else None


@contextlib.contextmanager
def _where_it_was_named(name: str) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, ValueError) as error:
        if name == "cifar10" and isinstance(error, FileNotFoundError):
            raise StopError(f"{error}; allow the download, or put CIFAR-10 there", Status.UNABLE) from error
        if name == "auto" and os.environ.get("DEPLOYKIT_DATA"):
            raise StopError(f"DEPLOYKIT_DATA names a folder that is no dataset: {error}", Status.USAGE) from error
        raise
