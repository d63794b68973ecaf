"""The dataset that the course runs on, from whatever is at hand, with its splits and their guard.

``train`` and ``val`` are for every choice (calibration, which layers to skip, ratios, early stopping); ``test`` is only
ever reported, and ``refuse_test_split`` guards it.
"""

from __future__ import annotations

import hashlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from deploykit import cifar10, contents, folders, places
from deploykit.batches import Batches, augment_batch, normalise, refuse_test_split

__all__ = ["Batches", "Dataset", "Split", "augment_batch", "load_dataset", "normalise", "refuse_test_split"]


@dataclass(frozen=True)
class Split:
    """Images and labels of one part of a dataset.

    Attributes:
        name: "train", "val", "train+val" or "test"; kept by subsets, so that guards still see it.
        images: uint8 [N, H, W, 3], contiguous.
        labels: int64 [N].
    """

    name: str
    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def take(self, images: int, seed: int = 0) -> Split:
        """Return a random subset with the classes in the proportions of the whole, of the same name.

        Args:
            images: how many; all of them when there are no more.
            seed: another seed draws another subset.

        Raises:
            ValueError: fewer than one image is asked for.
        """
        if images < 1:
            raise ValueError(f"{images} images were asked of the split {self.name!r}; take at least 1")
        if images >= len(self):
            return self
        shuffled = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        # Give the i-th of the n images of a class the place (i + ½) / n and cut: every prefix is stratified to within
        # one image per class. The random order of `shuffled` settles which class comes first at equal places.
        labels = self.labels[shuffled]
        place = torch.empty(len(self), dtype=torch.float64)
        for label in labels.unique():
            members = (labels == label).nonzero().squeeze(1)
            place[members] = (torch.arange(len(members), dtype=torch.float64) + 0.5) / len(members)
        chosen = shuffled[place.argsort(stable=True)[:images]].sort().values
        return Split(self.name, self.images[chosen], self.labels[chosen])


@dataclass(frozen=True)
class Dataset:
    """A dataset with its splits.

    Attributes:
        name: "cifar10", "shapes32", or the name of the folder it was read from.
        classes: names, in the order of the labels. They are whatever the folders are called: text, never markup.
        train: nine tenths of the training images.
        val: the other tenth, fixed and stratified.
        test: only for reporting.
        mean: per channel, over all training images, pixels in 0..1.
        std: standard deviation, likewise.
        fingerprint: 64 hex digits; equal for the same labelled images, whatever files they came from.
        source: where it came from, in one line for people; without a path of this machine where a name will do.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    val: Split
    test: Split
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    fingerprint: str
    source: str

    @property
    def train_val(self) -> Split:
        """All training images, for a final run whose recipe is fixed."""
        return Split(
            "train+val",
            torch.cat([self.train.images, self.val.images]),
            torch.cat([self.train.labels, self.val.labels]),
        )


def load_dataset(name: str | Path = "auto", *, download: bool = True, size: int = 32) -> Dataset:
    """Load a dataset into memory.

    Args:
        name: "cifar10"; "shapes32", the embedded pictures drawn by code; the path of a folder with
            ``train/<class>/*`` and ``test/<class>/*`` (PNG, JPEG, WebP; any number of classes); or "auto": the folder
            that ``$DEPLOYKIT_DATA`` names, else CIFAR-10 under ``data/``, else its download, else shapes32. What
            "auto" falls back from is printed.
        download: whether CIFAR-10 (162 MiB) may be downloaded.
        size: height and width in pixels to which the images of a folder are brought.

    Raises:
        FileNotFoundError: the folder, or its ``train`` or ``test``, does not exist; or CIFAR-10 is not at hand and
            must not be downloaded.
        ConnectionError: the download failed; the message says why and what to do.
        ValueError: the folder's content cannot be used; the message names the file or class.
    """
    if size < 1:
        raise ValueError(f"size is {size}; images need at least 1 pixel")
    if name == "shapes32":
        return _shapes32()
    if name == "cifar10":
        return _cifar10(download=download, patient=True)
    if name != "auto":
        return _folder(Path(name), size)
    if named := os.environ.get("DEPLOYKIT_DATA"):
        return _folder(Path(named), size, called="$DEPLOYKIT_DATA")
    try:
        return _cifar10(download=download, patient=False)
    except (cifar10.ArchiveError, OSError) as error:
        sys.stderr.write(f"CIFAR-10 is not at hand, going on with the embedded shapes32. {error}\n")
        return _shapes32()


def _folder(path: Path, size: int, *, called: str | None = None) -> Dataset:
    root = path.expanduser().resolve()
    listing = folders.list_images(root)

    def build() -> contents.Contents:
        arrays = folders.read_images(listing, size=size)
        return contents.arrange(arrays["train"], arrays["test"], listing.classes)

    key = "folder-" + hashlib.sha256(f"{root}\0{size}".encode(errors="surrogateescape")).hexdigest()[:16]
    found = contents.cached(key, listing.state, build)
    is_cifar10 = cifar10.recognises(found.facts)
    return _dataset("cifar10" if is_cifar10 else root.name, found, f"the image folder {called or root}")


def _cifar10(*, download: bool, patient: bool) -> Dataset:
    """Find CIFAR-10: the folder of ``$DEPLOYKIT_DATA`` if it is that, the folders under ``data/``, the archive."""
    from deploykit.download import forget_attempts

    named = os.environ.get("DEPLOYKIT_DATA")
    places_to_look = {"$DEPLOYKIT_DATA": Path(named)} if named else {}
    places_to_look["data/cifar10"] = places.data_folder() / "cifar10"
    for called, folder in places_to_look.items():
        if (folder / "train" / cifar10.CLASSES[0]).is_dir():
            dataset = _folder(folder, 32, called=called)
            if dataset.name == "cifar10":
                return dataset
            sys.stderr.write(f"The images in {folder} are not CIFAR-10's (or not all of them); looking further.\n")
    archive = cifar10.find_archive()
    if archive is None and not download:
        raise FileNotFoundError(
            f"CIFAR-10 is neither in {places.data_folder()} nor in the folder that DEPLOYKIT_DATA names, and "
            "downloading it is switched off"
        )
    if archive is None:
        archive = cifar10.download_archive(patient=patient)
    else:
        forget_attempts(archive)
    status = archive.stat()
    state = f"{status.st_size}:{status.st_mtime_ns}"
    found = contents.cached("cifar10-archive", state, lambda: cifar10.read_archive(archive))
    return _dataset("cifar10", found, f"the archive {archive.name} by its author, checked by SHA-256")


def _shapes32() -> Dataset:
    from deploykit import shapes

    def build() -> contents.Contents:
        train_images, train_labels, test_images, test_labels = shapes.generate(seed=0)
        return contents.arrange((train_images, train_labels), (test_images, test_labels), shapes.CLASSES)

    code = hashlib.sha256(Path(shapes.__file__).read_bytes()).hexdigest()
    return _dataset("shapes32", contents.cached("shapes32", code, build), "drawn by deploykit.shapes: not photographs")


def _dataset(name: str, found: contents.Contents, source: str) -> Dataset:
    splits = {
        split: Split(split, found.tensors[f"{split}.images"], found.tensors[f"{split}.labels"])
        for split in ("train", "val", "test")
    }
    facts = found.facts
    fingerprint = hashlib.sha256(f"{facts.train_hash}{facts.test_hash}".encode()).hexdigest()
    return Dataset(
        name=name,
        classes=facts.classes,
        **splits,
        mean=facts.mean,
        std=facts.std,
        fingerprint=fingerprint,
        source=source,
    )
