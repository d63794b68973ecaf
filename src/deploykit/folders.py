"""Pictures in class folders (``ImageFolder`` layout: ``train/<class>/*``, ``test/<class>/*``) read into arrays."""

from __future__ import annotations

import hashlib
import os
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from deploykit.machine import allowed_threads

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

FORMATS = ("PNG", "JPEG", "WEBP")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
# Decoding needs up to four bytes per pixel, and the size in a file's header costs its author nothing.
MAX_PIXELS = 16_000_000
IMAGES_PER_TASK = 500
# Below this, starting processes takes longer than decoding.
PARALLEL_FROM = 2_000
ERRORS_SHOWN = 5


@dataclass(frozen=True)
class Listing:
    """The image files of a folder, before any is opened.

    ``files`` holds, for "train" and "test", pairs of a path and the index of its class. ``state`` changes whenever a
    file is added, removed, renamed or rewritten. ``ignored`` are the files that are not PNG, JPEG or WebP by name.
    """

    root: Path
    classes: tuple[str, ...]
    files: dict[str, list[tuple[str, int]]]
    ignored: tuple[str, ...]
    state: str


def list_images(root: Path) -> Listing:
    """List the images under ``root/train/<class>`` and ``root/test/<class>``, at any depth below the class.

    Hidden files and folders (``.DS_Store``) are passed over; other files that are not images are reported in
    ``ignored``.

    Raises:
        FileNotFoundError: ``root``, or its ``train`` or ``test`` folder, is missing.
        ValueError: fewer than two classes, a class without images, or a class that only ``test`` has.
    """
    refuse_other_folders(root)
    classes = _classes(root)
    files: dict[str, list[tuple[str, int]]] = {"train": [], "test": []}
    ignored: list[str] = []
    state = hashlib.sha256()
    for split, found_files in files.items():
        for label, name in enumerate(classes):
            folder = root / split / name
            if split == "test" and not folder.is_dir():
                continue
            before = len(found_files)
            for entry in _walk(folder):
                relative = os.path.relpath(entry.path, root)
                if not entry.name.lower().endswith(SUFFIXES):
                    ignored.append(relative)
                    continue
                status = entry.stat()
                state.update(f"{relative}\0{status.st_size}\0{status.st_mtime_ns}\0".encode(errors="surrogateescape"))
                found_files.append((entry.path, label))
            if len(found_files) == before:
                raise ValueError(f"{folder} has no PNG, JPEG or WebP file; fill or remove this class folder")
    if not files["test"]:
        raise ValueError(f"{root / 'test'} has no class folder; reporting accuracy needs test images")
    state.update("\0".join(classes).encode(errors="surrogateescape"))
    return Listing(root, classes, files, tuple(ignored), state.hexdigest())


def refuse_other_folders(root: Path) -> None:
    """Refuse a folder that is not laid out as a dataset, without looking at its classes.

    Raises:
        FileNotFoundError: ``root``, or its ``train`` or ``test`` folder, is missing.
    """
    for folder in (root, root / "train", root / "test"):
        if not folder.is_dir():
            raise FileNotFoundError(
                f"{folder} is not a folder; a dataset is a folder with train/<class>/<image> and test/<class>/<image>"
            )


def _classes(root: Path) -> tuple[str, ...]:
    classes = tuple(_subfolders(root / "train"))
    if unknown := [name for name in _subfolders(root / "test") if name not in classes]:
        raise ValueError(
            f"{root}: test has {_names(unknown)} and train has not; a class must have training images to be learnt"
        )
    if len(classes) <= 1:
        found = f"only the class {classes[0]!r}" if classes else "no class folder"
        raise ValueError(f"{root / 'train'} has {found}; classifying needs at least two folders of images")
    return classes


def read_images(listing: Listing, *, size: int) -> dict[str, tuple[NDArray[np.uint8], NDArray[np.int64]]]:
    """Decode all images of a listing.

    Images of another size are cropped to their central square and scaled. Grey, palette and transparent images become
    RGB, and a camera's orientation mark is obeyed.

    Args:
        listing: from ``list_images``.
        size: height and width of the result, in pixels.

    Returns:
        For "train" and "test": images uint8 [N, size, size, 3] and labels int64 [N], in the order of the listing.

    Raises:
        ValueError: images that cannot be decoded or have more than 16 million pixels; the message names them. Or all
            of them together would not fit into memory.
    """
    _check_memory(sum(map(len, listing.files.values())), size)
    arrays = {}
    problems: list[str] = []
    for split, files in listing.files.items():
        images, found = _decode_all([path for path, _ in files], size)
        problems += found
        arrays[split] = (images, np.array([label for _, label in files], dtype=np.int64))
    if problems:
        more = f"\n  … and {len(problems) - ERRORS_SHOWN} more" if len(problems) > ERRORS_SHOWN else ""
        listed = "\n  ".join(problems[:ERRORS_SHOWN])
        raise ValueError(
            f"{len(problems)} of the images under {listing.root} cannot be used; mend or remove them:\n  {listed}{more}"
        )
    if listing.ignored:
        sys.stderr.write(
            f"{len(listing.ignored)} files under {listing.root} are not PNG, JPEG or WebP and are ignored "
            f"(the first: {listing.ignored[0]}).\n"
        )
    return arrays


def _decode_all(paths: list[str], size: int) -> tuple[NDArray[np.uint8], list[str]]:
    import joblib
    from tqdm.auto import tqdm

    images = np.empty((len(paths), size, size, 3), dtype=np.uint8)
    problems: list[str] = []
    starts = range(0, len(paths), IMAGES_PER_TASK)
    # Processes, because PIL holds the interpreter's lock for most of a small image: two threads are slower than one.
    workers = allowed_threads() if len(paths) > PARALLEL_FROM else 1
    decoded = joblib.Parallel(n_jobs=workers, return_as="generator")(
        joblib.delayed(_decode_some)(paths[start : start + IMAGES_PER_TASK], size) for start in starts
    )
    with tqdm(total=len(paths), unit="image", desc="decoding", leave=False, delay=2) as progress:
        for start, (part, found) in zip(starts, decoded, strict=True):
            images[start : start + len(part)] = part
            problems += found
            progress.update(len(part))
    return images, problems


def _decode_some(paths: list[str], size: int) -> tuple[NDArray[np.uint8], list[str]]:
    images = np.zeros((len(paths), size, size, 3), dtype=np.uint8)
    problems = []
    for image, path in zip(images, paths, strict=True):
        try:
            image[:] = _decode(path, size)
        except Exception as error:  # noqa: BLE001 - a broken file may raise anything; it is named and reported
            problems.append(f"{path}: {error}")
    return images, problems


def _decode(path: str, size: int) -> NDArray[np.uint8]:
    from PIL import Image, UnidentifiedImageError

    if Path(path).stat().st_size == 0:
        raise ValueError("the file is empty")
    with warnings.catch_warnings():
        # PIL has limits of its own, which are higher: a warning first, an error at twice that.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            opened = Image.open(path, formats=FORMATS)
        except UnidentifiedImageError:
            raise ValueError("the content is not a PNG, JPEG or WebP image") from None
        except Image.DecompressionBombError:
            raise ValueError(f"it has more than {MAX_PIXELS / 1e6:.0f} million pixels") from None
    with opened as image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"it has {image.width} x {image.height} pixels, more than {MAX_PIXELS / 1e6:.0f} million")
        return fitted(image, size, size)


def fitted(picture: Picture, height: int, width: int) -> NDArray[np.uint8]:
    """Return an opened picture upright and in RGB, uint8 [height, width, 3]; another shape is cropped in the middle."""
    from PIL import Image, ImageOps

    if picture.mode.startswith("I"):  # 16-bit grey, which PIL would clip at 255 instead of scaling
        shown: Picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    else:
        shown = ImageOps.exif_transpose(picture)
    upright = shown.convert("RGB")
    if upright.size != (width, height):
        upright = ImageOps.fit(upright, (width, height), Image.Resampling.BILINEAR)
    return np.asarray(upright)


def _check_memory(images: int, size: int) -> None:
    import psutil

    # The arrays, and their copy in canonical order.
    needed, available = 2 * images * size * size * 3, psutil.virtual_memory().available
    if needed > available:
        raise ValueError(
            f"{images} images of {size} x {size} pixels need {needed / 2**30:.1f} GiB of memory while they are "
            f"prepared, and {available / 2**30:.1f} GiB are free; choose a smaller size"
        )


def _subfolders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))


def _walk(folder: Path) -> list[os.DirEntry[str]]:
    """Return the files below a folder in a fixed order; hidden ones are left out, linked folders are not entered."""
    files = []
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                files += _walk(Path(entry.path))
            elif entry.is_file():
                files.append(entry)
    return files


def _names(names: list[str]) -> str:
    shown = ", ".join(map(repr, names[:ERRORS_SHOWN]))
    return (
        f"the class {shown}"
        if len(names) == 1
        else f"{len(names)} classes ({shown}{', …' if len(names) > ERRORS_SHOWN else ''})"
    )
