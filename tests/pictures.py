"""Small image folders for the tests of data loading."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def write_picture(path: Path, seed: int = 0, size: tuple[int, int] = (32, 32), mode: str = "RGB") -> Path:
    """Write a random picture in the format of the path's suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return path


def write_folder(root: Path, classes: tuple[str, ...] = ("cat", "dog"), train: int = 20, test: int = 5) -> Path:
    """Write ``root/train/<class>/*.png`` and ``root/test/<class>/*.png``, all different."""
    seed = 0
    for name in classes:
        for split, count in {"train": train, "test": test}.items():
            for number in range(count):
                seed += 1
                write_picture(root / split / name / f"{number:03}.png", seed)
    return root
