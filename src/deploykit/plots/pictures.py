"""Pictures with the names of their classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from deploykit.figures import WIDTH_IN, Plot, new_figure, style
from deploykit.plots._marks import wrapped

if TYPE_CHECKING:
    from torch import Tensor


def image_grid(
    images: Tensor | np.ndarray, labels: Sequence[int], classes: Sequence[str], *, columns: int = 10
) -> Plot:
    """Show pictures with the names of their classes.

    Args:
        images: uint8 [N, H, W, 3].
        labels: N class indices (a tensor will do).
        classes: names by index.
        columns: pictures per row.

    Raises:
        ValueError: no pictures, another shape or dtype, or a number of labels other than N.
    """
    pictures, indices = np.asarray(images), [int(label) for label in labels]
    if pictures.dtype != np.uint8 or pictures.shape[3:] != (3,) or not len(pictures):
        raise ValueError(
            f"images are {pictures.dtype} {pictures.shape}; a grid needs uint8 [N, H, W, 3] with N of 1 or more "
            "(take them from split.images, before normalisation)"
        )
    if len(indices) != len(pictures):
        raise ValueError(f"{len(pictures)} images but {len(indices)} labels; give one label for each image")
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    with style():
        cell = WIDTH_IN / columns
        plot = new_figure(rows * (cell + 0.06))
        for axes in (grid := plot.subplots(rows, columns, squeeze=False)).flat:
            axes.set_axis_off()
        for axes, picture, index in zip(grid.flat, pictures, indices, strict=False):
            axes.imshow(picture, interpolation="nearest")
            name = wrapped(classes[index], max(6, int(cell * 13)))
            axes.set_title(name, fontsize=8, fontweight="normal", loc="center", pad=3)
    counts = {classes[index]: indices.count(index) for index in sorted(set(indices))}
    listed = ", ".join(f"{count} {name}" for name, count in counts.items())
    plot.alt = f"{len(pictures)} pictures in {rows} rows: {listed}."
    return plot
