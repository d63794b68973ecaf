"""Augmented images per second: whole batches at once (deploykit, kornia) against one image at a time (torchvision).

    python benchmarks/loader.py     # about a minute; CIFAR-10 if it is at hand, else the embedded pictures

All contestants shift by up to 4 pixels, mirror, and (except where "uint8" stands) normalise the same images in the same
batches of 256, in turns, several rounds. The ratios of a round are what counts: machines differ, ratios hardly do.
Writes data/results/loader.json.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator

import kornia.augmentation as kornia
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from deploykit.batches import PADDING, Batches, augment_batch
from deploykit.data import Dataset, Split, load_dataset
from deploykit.recorded import recorded, write_recorded

BATCH = 256
ROUNDS = 7
SECONDS = 1.0
BASELINE = "torchvision v2, per image, 2 worker processes"


class PerImage(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """The usual way: an index goes in, one transformed image comes out."""

    def __init__(self, split: Split, transform: Callable[[Tensor], Tensor]) -> None:
        self.images, self.labels, self.transform = split.images.permute(0, 3, 1, 2), split.labels, transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.transform(self.images[index]), self.labels[index]


def endlessly(loader: DataLoader[tuple[Tensor, Tensor]] | Batches) -> Iterator[Tensor]:
    """Go through a loader again and again; an epoch's start is part of the time, as it is in training."""
    while True:
        for images, _ in loader:
            yield images


def ours_uint8(split: Split) -> Iterator[Tensor]:
    """Gather and augment only."""
    generator = torch.Generator().manual_seed(0)
    while True:
        for chosen in torch.randperm(len(split), generator=generator).split(BATCH)[:-1]:
            yield augment_batch(split.images.index_select(0, chosen), generator)


def kornia_batches(split: Split, dataset: Dataset) -> Iterator[Tensor]:
    """Gather, convert, and let kornia augment and normalise the batch."""
    augment = nn.Sequential(
        kornia.RandomCrop((32, 32), padding=PADDING),
        kornia.RandomHorizontalFlip(),
        kornia.Normalize(torch.tensor(dataset.mean), torch.tensor(dataset.std)),
    )
    while True:
        for chosen in torch.randperm(len(split)).split(BATCH)[:-1]:
            yield augment(split.images.index_select(0, chosen).permute(0, 3, 1, 2).float().div(255))


def contestants(dataset: Dataset) -> dict[str, Iterator[Tensor]]:
    """Return what is compared, each an endless stream of batches."""
    split = dataset.train
    per_image = v2.Compose(
        [
            v2.RandomCrop(32, padding=PADDING),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(dataset.mean, dataset.std),
        ]
    )
    images = PerImage(split, per_image)
    own = {"batch_size": BATCH, "augment": True, "shuffle": True, "drop_last": True}
    return {
        BASELINE: endlessly(
            DataLoader(images, BATCH, shuffle=True, drop_last=True, num_workers=2, persistent_workers=True)
        ),
        "torchvision v2, per image, in this process": endlessly(
            DataLoader(images, BATCH, shuffle=True, drop_last=True)
        ),
        "kornia, whole batch, float32": kornia_batches(split, dataset),
        "deploykit, uint8": ours_uint8(split),
        "deploykit, normalised float32": endlessly(Batches(split, dataset, **own)),
        "deploykit, normalised bfloat16": endlessly(Batches(split, dataset, dtype=torch.bfloat16, **own)),
    }


def images_per_s(stream: Iterator[Tensor]) -> float:
    """Draw batches for a while, after some that are not counted."""
    next(stream)
    # Workers fetch ahead while the others have their turn: the queue (2 workers, 2 batches each) is emptied first.
    for _ in range(4):
        next(stream)
    started, count = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - started) < SECONDS:
        count += len(next(stream))
    return count / elapsed


def main() -> None:
    """Measure, write, print."""
    torch.set_num_threads(2)
    dataset = load_dataset()
    streams = contestants(dataset)
    rates: dict[str, list[float]] = {name: [] for name in streams}
    for _ in range(ROUNDS):
        for name, stream in streams.items():
            rates[name].append(images_per_s(stream))
    rows = []
    for name, measured in rates.items():
        ratios = [rate / baseline for rate, baseline in zip(measured, rates[BASELINE], strict=True)]
        rows.append(
            {
                "loader": name,
                "images_per_s": round(statistics.median(measured)),
                "times_the_baseline": round(statistics.median(ratios), 2),
                "lowest_ratio": round(min(ratios), 2),
                "highest_ratio": round(max(ratios), 2),
            }
        )
    write_recorded(
        "loader",
        rows,
        what=f"Augmented images per second on {dataset.name}, batches of {BATCH}, 2 threads, {ROUNDS} rounds in turns; "
        f"the ratios are over the baseline of the same round: {BASELINE}",
        command="python benchmarks/loader.py",
    )
    print(recorded("loader"))


if __name__ == "__main__":
    main()
