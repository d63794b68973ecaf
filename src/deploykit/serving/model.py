"""What is served: a predictor in NumPy's terms, and all that its clients need to know of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from deploykit.data import Dataset
    from deploykit.runtimes.predictor import Predictor

PLATFORMS = {"ONNX Runtime": "onnxruntime_onnx", "OpenVINO": "openvino", "Inductor": "pytorch_aotinductor"}


@dataclass(frozen=True)
class Served:
    """A model behind the service.

    Attributes:
        name: in the paths, ``/v2/models/<name>``; letters, digits, ``-``, ``_`` and ``.``.
        predict: from images float32 [n, channels, height, width], normalised, to logits float32 [n, classes]; called by
            one thread.
        shape: channels, height and width of an image.
        classes: names, in the order of the logits.
        mean: per channel, of pixels in 0..1, that pictures are normalised with.
        std: likewise.
        platform: who computes, in the protocol's words.
    """

    name: str
    predict: Callable[[NDArray[np.float32]], NDArray[np.float32]]
    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    mean: Sequence[float]
    std: Sequence[float]
    platform: str = "python"

    def __post_init__(self) -> None:
        """Refuse what could not be served.

        Raises:
            ValueError: a name that is no part of a path, or a mean or std that is not one number per channel.
        """
        if not self.name or not all(letter.isascii() and (letter.isalnum() or letter in "-_.") for letter in self.name):
            raise ValueError(f"the model's name is {self.name!r}; use letters, digits, '-', '_' and '.'")
        if not len(self.mean) == len(self.std) == self.shape[0]:
            raise ValueError(
                f"mean has {len(self.mean)} numbers and std {len(self.std)}; give one for each channel, {self.shape[0]}"
            )

    def normalise(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return pictures as the model takes them.

        Args:
            pixels: uint8 [n, height, width, 3].

        Returns:
            float32 [n, 3, height, width].
        """
        mean, std = (np.asarray(numbers, np.float32) for numbers in (self.mean, self.std))
        scaled = (pixels.astype(np.float32) / 255 - mean) / std
        return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))


def served(predictor: Predictor, dataset: Dataset, name: str) -> Served:
    """Return a runtime's predictor as what is served, for pictures like those of a dataset.

    Args:
        predictor: from ``load`` of a runtime.
        dataset: that the model was trained on: its classes, mean and std, and the size where the model takes any.
        name: of the model.

    Raises:
        ValueError: the predictor takes other images than the dataset has, or a name that is no part of a path.
    """
    import torch

    height, width, channels = dataset.train.images.shape[1:]
    shape = (channels, height, width)
    if any(wanted not in (None, given) for wanted, given in zip(predictor.shape, shape, strict=True)):
        wanted = ", ".join("any" if size is None else str(size) for size in predictor.shape)
        raise ValueError(f"the model takes images [{wanted}], and {dataset.name} has {list(shape)}; give other data")

    def predict(images: NDArray[np.float32]) -> NDArray[np.float32]:
        found: NDArray[Any] = predictor(torch.from_numpy(images)).numpy()
        return found

    platform = PLATFORMS.get(predictor.runtime, "python")
    return Served(name, predict, shape, dataset.classes, dataset.mean, dataset.std, platform)
