"""What ``load`` returns in every runtime: images in, logits out, and bad input refused in the same words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

IMAGE_DIMENSIONS = 4  # [N, channels, height, width]


@dataclass(frozen=True)
class Predictor:
    """A loaded model: call it with images float32 [N, C, H, W], it returns logits float32 [N, classes] of their own.

    The logits are a copy: no later call overwrites them.

    Attributes:
        runtime: who computes: "ONNX Runtime", "OpenVINO", "Inductor".
        shape: channels, height and width that it was made for; None where any will do.
        threads: how many it computes with.
        source: what it was loaded from.
        forward: from contiguous float32 images on the CPU to logits; it does not check.
        max_batch: the largest N; None where any will do.
    """

    runtime: str
    shape: tuple[int | None, ...]
    threads: int
    source: Any
    forward: Callable[[Tensor], Tensor]
    max_batch: int | None = None

    def __call__(self, images: Tensor) -> Tensor:
        """Return the logits.

        Raises:
            TypeError: something else than a tensor.
            ValueError: another dtype, device or shape than the model takes.
        """
        self._check(images)
        with torch.no_grad():
            return self.forward(images.detach().contiguous())

    def _check(self, images: Tensor) -> None:
        if not isinstance(images, Tensor):
            raise TypeError(f"{self.runtime} was given {type(images).__name__}; give a torch tensor")
        if images.dtype != torch.float32 or images.device.type != "cpu":
            given = f"{str(images.dtype).removeprefix('torch.')} on {images.device}"
            raise ValueError(f"{self.runtime} was given images of {given}; give float32 on cpu")
        fits = images.ndim == IMAGE_DIMENSIONS and all(
            wanted in (None, given) for wanted, given in zip(self.shape, images.shape[1:], strict=True)
        )
        if not fits or not len(images) or len(images) > (self.max_batch or len(images)):
            size = ", ".join("any" if wanted is None else str(wanted) for wanted in self.shape)
            most = f" of at most {self.max_batch}" if self.max_batch else ""
            raise ValueError(
                f"{self.runtime} was given images of shape {list(images.shape)}; give [N, {size}], a batch{most}"
            )


def default_threads(threads: int | None) -> int:
    """Return ``threads``, or as many as torch uses, so that a comparison is fair unless told otherwise.

    Raises:
        ValueError: fewer than one.
    """
    if threads is not None and threads < 1:
        raise ValueError(f"threads is {threads}; give at least 1, or None for as many as torch uses")
    return threads or torch.get_num_threads()
