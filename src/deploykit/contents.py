"""A dataset's pictures in canonical order, and the file that keeps them.

Images are ordered by the SHA-256 of their content, so nothing that is computed from a dataset depends on how its files
were named, ordered or encoded: CIFAR-10 from PNG files and from the original archive is the same dataset, with the same
validation images.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deploykit import places

# Part of what a cached file must agree with: raise it when the meaning of the stored tensors changes.
FORMAT = 1
# A record has one byte for the label, as the archive has.
LABELS_OF_ONE_BYTE = 256
# A class needs one image to learn from and one to validate with.
FEWEST_IMAGES = FEWEST_CLASSES = 2
VALIDATION_SHARE = 0.1


@dataclass(frozen=True)
class Facts:
    """What is known about the pictures besides the pictures; stored as text beside them."""

    classes: tuple[str, ...]
    train_hash: str
    test_hash: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@dataclass(frozen=True)
class Contents:
    """All pictures of a dataset.

    ``tensors`` holds, for each of "train", "val" and "test", ``<name>.images`` (uint8 [N, H, W, 3]) and
    ``<name>.labels`` (int64 [N]), each in the order of the images' digests.
    """

    tensors: dict[str, Tensor]
    facts: Facts


def digests(images: NDArray[np.uint8], labels: NDArray[np.int64]) -> list[bytes]:
    """Return the SHA-256 of each image as a record of CIFAR-10's binary archive.

    A record is the label in one byte (four, big-endian, when there are more than 256 classes), then the red, the green
    and the blue plane.

    Args:
        images: uint8 [N, H, W, 3].
        labels: int64 [N], 0 or more.
    """
    label_bytes = 1 if labels.max(initial=0) < LABELS_OF_ONE_BYTE else 4
    found = []
    for image, label in zip(images, labels.tolist(), strict=True):
        record = label.to_bytes(label_bytes, "big") + image.transpose(2, 0, 1).tobytes()
        found.append(hashlib.sha256(record).digest())
    return found


def content_hash(image_digests: Sequence[bytes]) -> str:
    """Return the SHA-256 (hex) over the sorted digests: equal for equal sets of labelled images, in any order."""
    return hashlib.sha256(b"".join(sorted(image_digests))).hexdigest()


def arrange(
    train: tuple[NDArray[np.uint8], NDArray[np.int64]],
    test: tuple[NDArray[np.uint8], NDArray[np.int64]],
    classes: Sequence[str],
) -> Contents:
    """Order the images by content and set the validation split aside.

    A tenth of each class, those with the smallest digests, becomes the validation split: stratified, and the same
    whatever order and file format the images came in.

    Args:
        train: images uint8 [N, H, W, 3] and labels int64 [N].
        test: the same for the test images.
        classes: the names that the labels index.

    Raises:
        ValueError: fewer than two classes, a label outside them, or a class with fewer than two training images.
    """
    if len(classes) < FEWEST_CLASSES:
        raise ValueError(f"there is only one class ({', '.join(classes)}); classifying needs at least two")
    for split, (_, labels) in {"training": train, "test": test}.items():
        wrong = labels[(labels < 0) | (labels >= len(classes))]
        if wrong.size:
            raise ValueError(
                f"{wrong.size} {split} labels are out of range (the first is {wrong[0]}); with {len(classes)} classes "
                f"they must be 0 to {len(classes) - 1}"
            )
    for name, count in zip(classes, np.bincount(train[1], minlength=len(classes)), strict=True):
        if count < FEWEST_IMAGES:
            raise ValueError(
                f"the class {name!r} has {count} training image(s); it needs at least 2, because a tenth of each class "
                "(at least one image) is set aside for validation"
            )
    train_digests, test_digests = digests(*train), digests(*test)
    order = np.array(sorted(range(len(train_digests)), key=train_digests.__getitem__))
    # Rank within the class, in the order of the digests: the first tenth is held out.
    held_out = np.zeros(len(order), dtype=bool)
    for label in range(len(classes)):
        members = np.flatnonzero(train[1][order] == label)
        held_out[members[: max(1, round(VALIDATION_SHARE * len(members)))]] = True
    parts = {
        "train": (*train, order[~held_out]),
        "val": (*train, order[held_out]),
        "test": (*test, np.array(sorted(range(len(test_digests)), key=test_digests.__getitem__))),
    }
    tensors = {}
    for name, (images, labels, chosen) in parts.items():
        tensors[f"{name}.images"] = torch.from_numpy(images[chosen])
        tensors[f"{name}.labels"] = torch.from_numpy(labels[chosen])
    mean, std = _statistics(train[0])
    facts = Facts(tuple(classes), content_hash(train_digests), content_hash(test_digests), mean, std)
    return Contents(tensors, facts)


def cached(key: str, state: str, build: Callable[[], Contents]) -> Contents:
    """Return the contents kept under ``key`` if they were built from ``state``; else build and keep them.

    Of several processes that find nothing kept, one builds and the others wait for it. What somebody else has kept in
    a shared folder that cannot be written is used too.

    Args:
        key: names the file in the cache folder.
        state: a digest of everything the contents were made from.
        build: makes them.
    """
    stamp, name = f"{FORMAT}:{state}", f"{key}.safetensors"
    for folder in places.cache_places():
        places.clean_leftovers(folder)
        if (kept := _read(folder / name, stamp)) is not None:
            return kept
    try:
        file = places.cache_folder() / name
    except OSError as error:
        _say(f"The prepared images are not kept ({error}); loading will be as slow next time.")
        return build()
    with places.one_at_a_time(file, doing="preparing these images"):
        if (kept := _read(file, stamp)) is not None:
            return kept
        contents = build()
        try:
            _write(file, stamp, contents)
        except OSError as error:
            _say(
                f"The prepared images could not be kept in {file.parent} ({error}); loading will be as slow next time."
            )
    return contents


def _read(file: Path, stamp: str) -> Contents | None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as stored:
            metadata = stored.metadata() or {}
            if metadata.get("stamp") != stamp:
                return None
            facts = json.loads(metadata["facts"])
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - not a dict
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, SafetensorError) as error:
        _say(f"The cached images in {file} cannot be read ({error}); they are made again.")
        return None
    return Contents(tensors, Facts(**{name: _tupled(value) for name, value in facts.items()}))


def _write(file: Path, stamp: str, contents: Contents) -> None:
    from safetensors.torch import save

    # Not save_file: it writes to a temporary file of its own, which nobody would clean up after a killed process.
    serialized = save(contents.tensors, {"stamp": stamp, "facts": json.dumps(asdict(contents.facts))})
    with places.atomic_write(file) as temporary:
        temporary.write_bytes(serialized)


def _tupled(value: Any) -> Any:
    """Undo what JSON, which knows no tuples, did."""
    return tuple(value) if isinstance(value, list) else value


def _statistics(images: NDArray[np.uint8]) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Return mean and standard deviation per channel, pixels in 0..1, exact up to the last rounding."""
    values = np.arange(256)
    means, deviations = [], []
    for channel in range(3):
        counts = np.zeros(256, dtype=np.int64)
        for start in range(0, len(images), 4096):  # bincount works on a copy eight times as large
            counts += np.bincount(images[start : start + 4096, ..., channel].ravel(), minlength=256)
        total = int(counts.sum())
        first, second = int(counts @ values), int(counts @ values**2)
        means.append(first / total / 255)
        deviations.append(math.sqrt(total * second - first**2) / total / 255)
    if min(deviations) == 0:
        raise ValueError("the training images are all one colour in at least one channel; there is nothing to learn")
    return (means[0], means[1], means[2]), (deviations[0], deviations[1], deviations[2])


def _say(sentence: str) -> None:
    sys.stderr.write(sentence + "\n")
