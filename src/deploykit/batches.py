"""Batches of a split held in memory: gathered, augmented and normalised whole, never an image at a time.

What happens to an image depends only on (seed, epoch, place in that epoch's order). So a run that starts in the middle
of an epoch sees what an unbroken one would have seen, and the slices of several ranks together are the one batch that
a single process would have made.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from deploykit.data import Split

PADDING = 4


class Statistics(Protocol):
    """Anything with the mean and the standard deviation of the training images, such as a ``Dataset``."""

    @property
    def mean(self) -> Sequence[float]: ...  # noqa: D102 - a protocol's members are described by its docstring

    @property
    def std(self) -> Sequence[float]: ...  # noqa: D102


class Batches:
    """The batches of one split, the same ones whenever the same epoch is asked for.

    Iterating gives epoch 0: pairs of images (``dtype`` [B, 3, H, W], channels_last, normalised) and labels
    (int64 [B]), on ``device``.

    Args:
        split: what to draw from; its name stays visible as ``.split``, for guards such as ``refuse_test_split``.
        statistics: the dataset, or anything with ``mean`` and ``std`` (three numbers each, pixels in 0..1).
        batch_size: images per step over all ranks together.
        augment: shift by up to 4 pixels and mirror at random, each image its own (He et al. 2016, section 4.2).
        shuffle: another order in every epoch.
        drop_last: leave out the last batch when it is smaller than the others.
        seed: decides order and augmentation, together with the epoch.
        dtype: of the images.
        device: where the batches go. Images travel as uint8 and are normalised there.
        rank: of this process in a distributed run.
        world_size: number of processes in it. Each gets its own part of every batch, which can be empty where a last
            batch has fewer images than there are processes (``drop_last`` avoids it).

    Raises:
        ValueError: a batch size below 1, one that the ranks cannot share evenly, a negative seed, a rank outside the
            world, or a split with no images.
    """

    def __init__(
        self,
        split: Split,
        statistics: Statistics,
        *,
        batch_size: int,
        augment: bool = False,
        shuffle: bool = False,
        drop_last: bool = False,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be 1 or more")
        _check_rank(rank, world_size, batch_size)
        if seed < 0:
            raise ValueError(f"seed is {seed}; it must be 0 or more")
        if len(split) == 0:
            raise ValueError(f"the split {split.name!r} has no images; batches need at least one")
        self.source = split
        self.split = split.name
        self.mean, self.std = tuple(statistics.mean), tuple(statistics.std)
        self.batch_size = batch_size
        self.augment, self.shuffle, self.drop_last = augment, shuffle, drop_last
        self.seed = seed
        self.dtype, self.device = dtype, torch.device(device)
        self.rank, self.world_size = rank, world_size

    def __len__(self) -> int:
        """Return the number of batches in an epoch, the same for every rank."""
        batches = len(self.source) / self.batch_size
        return math.floor(batches) if self.drop_last else math.ceil(batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Iterate over epoch 0."""
        return self.epoch(0)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Iterate over the batches of an epoch from step ``start`` on.

        Raises:
            ValueError: ``start`` is negative or beyond the end of the epoch.
        """
        if not 0 <= start <= len(self):
            raise ValueError(f"start is step {start}; an epoch of this split has {len(self)} steps")
        return self._batches(epoch, start)

    def for_rank(self, rank: int, world_size: int) -> Batches:
        """Return the same batches as one process of a distributed run sees them: its part of each.

        Raises:
            ValueError: they are a part already, another one; the ranks cannot share a batch evenly; or the last batch
                has too few images to give each rank one.
        """
        if self.world_size > 1 and (self.rank, self.world_size) != (rank, world_size):
            raise ValueError(
                f"these batches are the part of rank {self.rank} in a world of {self.world_size}, and rank {rank} in "
                f"a world of {world_size} is needed; leave out rank and world_size, then each process takes its own"
            )
        _check_rank(rank, world_size, self.batch_size)
        last = len(self.source) % self.batch_size
        if 0 < last < world_size and not self.drop_last:
            raise ValueError(
                f"the last batch has {last} images for {world_size} ranks; use drop_last=True or another batch size"
            )
        mine = copy.copy(self)
        mine.rank, mine.world_size = rank, world_size
        return mine

    def section(self, rank: int, world_size: int) -> Batches:
        """Return batches of one of ``world_size`` consecutive stretches of the split; it can be empty."""
        first, last = (len(self.source) * part // world_size for part in (rank, rank + 1))
        mine = copy.copy(self)
        mine.source = dataclasses.replace(
            self.source, images=self.source.images[first:last], labels=self.source.labels[first:last]
        )
        return mine

    def settings(self) -> dict[str, Any]:
        """Return everything that decides what is in the batches of all ranks together, as plain values.

        ``data`` stands for the pixels, the labels and the normalisation, 16 hex digits (computed anew: some tenths of
        a second for CIFAR-10).
        """
        form = (self.mean, self.std, self.dtype, self.source.images.shape)
        content = hashlib.sha256(repr(form).encode())
        for tensor in (self.source.images, self.source.labels):
            content.update(tensor.contiguous().numpy().data)
        return {
            "split": self.split,
            "images": len(self.source),
            "data": content.hexdigest()[:16],
            "batch_size": self.batch_size,
            "augment": self.augment,
            "shuffle": self.shuffle,
            "drop_last": self.drop_last,
            "seed": self.seed,
        }

    def _batches(self, epoch: int, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        count = len(self.source)
        generator = _generator(self.seed, epoch)
        order = torch.randperm(count, generator=generator) if self.shuffle else torch.arange(count)
        # Drawn for the whole epoch at once (a millisecond): a later start or another rank needs no replay.
        moves = _draw_moves(count, generator) if self.augment else None
        for step in range(start, len(self)):
            first, last = step * self.batch_size, min((step + 1) * self.batch_size, count)
            mine = slice(
                first + (last - first) * self.rank // self.world_size,
                first + (last - first) * (self.rank + 1) // self.world_size,
            )
            chosen = order[mine]
            images = self.source.images.index_select(0, chosen)
            if moves is not None:
                images = _move(images, *(move[mine] for move in moves))
            labels = self.source.labels.index_select(0, chosen).to(self.device)
            yield normalise(images.to(self.device), self.mean, self.std, self.dtype), labels


def refuse_test_split(batches: Batches, purpose: str) -> None:
    """Raise if ``batches`` come from the test split: it is only ever reported.

    Args:
        batches: anything with a ``split`` name.
        purpose: what they were about to be used for, for the message: "calibration", "fine-tuning" …

    Raises:
        ValueError: the split is "test".
    """
    if batches.split == "test":
        raise ValueError(
            f"{purpose} was given the test split, which is only for reporting: a choice made on it would make the "
            'reported accuracy too good. Use dataset.train or dataset.val ("train+val" for a fixed final recipe).'
        )


def augment_batch(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift each image by up to 4 pixels in both directions, black moving in, and mirror half of them.

    The usual CIFAR augmentation (random crop with padding 4, horizontal flip; He et al. 2016, section 4.2) on a batch
    at once, each image drawing its own shift.

    Args:
        images: uint8 [B, H, W, 3], contiguous, on any device; it is not changed.
        generator: a CPU generator; the draws are the same whatever the images are.

    Returns:
        uint8 [B, H, W, 3].

    Raises:
        ValueError: the images are not uint8 [B, H, W, 3].
    """
    _check_pixels(images)
    return _move(images, *(drawn.to(images.device) for drawn in _draw_moves(len(images), generator)))


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype) -> Tensor:
    """Convert pixels to normalised numbers: ``(images / 255 - mean) / std``.

    Args:
        images: uint8 [B, H, W, 3], contiguous.
        mean: per channel, pixels in 0..1.
        std: per channel, pixels in 0..1.
        dtype: floating-point type of the result; each value is rounded to it.

    Returns:
        ``dtype`` [B, 3, H, W] in channels_last memory.

    Raises:
        ValueError: the images are not uint8 [B, H, W, 3].
    """
    _check_pixels(images)
    batch, height, width, channels = images.shape
    scale, shift = _multiply_add(tuple(mean), tuple(std), height * width, dtype, images.device)
    # Flat rows: broadcasting along a last dimension of three would cost ten times as much. Whole numbers up to 255
    # are exact in every dtype, bfloat16 included.
    pixels = images.flatten(1).to(dtype)
    normalised = torch.addcmul(shift, pixels, scale)
    return normalised.view(batch, height, width, channels).permute(0, 3, 1, 2)


@lru_cache(maxsize=16)
def _multiply_add(
    mean: tuple[float, ...], std: tuple[float, ...], pixels: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return ``scale`` and ``shift`` of ``pixels`` pixels, so that normalising is one multiply-add."""
    deviation = torch.tensor(std, dtype=torch.float64)
    scale = 1 / (255 * deviation)
    shift = -torch.tensor(mean, dtype=torch.float64) / deviation
    return (scale.repeat(pixels).to(device, dtype), shift.repeat(pixels).to(device, dtype))


def _generator(seed: int, epoch: int) -> torch.Generator:
    # SeedSequence mixes the two so that neighbouring seeds and epochs share nothing; NumPy keeps its stream (NEP 19).
    (mixed,) = np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(mixed) & (2**63 - 1))


def _draw_moves(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Draw top and left corner of the crop (int64 [N], 0 to 8) and whether to mirror (bool [N])."""
    corners = torch.randint(0, 2 * PADDING + 1, (2, count), generator=generator)
    return corners[0], corners[1], torch.randint(0, 2, (count,), generator=generator, dtype=torch.bool)


def _move(images: Tensor, top: Tensor, left: Tensor, mirror: Tensor) -> Tensor:
    """Crop each padded image at (top, left), then mirror those that are marked."""
    batch, height, width, channels = images.shape
    # One border serves two neighbours: black to the right of a row is also to the left of the next one, and black
    # below an image is above the next. A row of a crop is then a run of memory that starts anywhere in `canvas`.
    rows, columns = height + PADDING, width + PADDING
    canvas = images.new_zeros((2 * batch + 1) * rows + 1, columns, channels)
    places = canvas[PADDING : PADDING + 2 * batch * rows].view(2 * batch, rows, columns, channels)[:, :height, PADDING:]
    # Both forms of each image are laid out and one is cropped: choosing afterwards takes longer.
    places[:batch] = images
    places[batch:] = images.flip(2)
    runs = canvas.as_strided((canvas.numel() // channels - width + 1, width * channels), (channels, 1))
    place = torch.arange(batch, device=images.device) + batch * mirror
    # Mirroring a crop is cropping the mirrored image at the mirrored place.
    left = torch.where(mirror, 2 * PADDING - left, left)
    first = (place * rows + top) * columns + left
    starts = first[:, None] + torch.arange(height, device=images.device) * columns
    return runs.index_select(0, starts.flatten()).view(batch, height, width, channels)


def _check_rank(rank: int, world_size: int, batch_size: int) -> None:
    if not 0 <= rank < world_size:
        raise ValueError(f"rank is {rank} in a world of {world_size}; it must be 0 to {world_size - 1}")
    if batch_size % world_size:
        raise ValueError(
            f"batch_size {batch_size} cannot be shared evenly by {world_size} ranks; take a multiple of {world_size}"
        )


def _check_pixels(images: Tensor) -> None:
    if images.dtype != torch.uint8 or images.shape[3:] != (3,):
        raise ValueError(f"images are {images.dtype} {tuple(images.shape)}; they must be torch.uint8 [B, H, W, 3]")
