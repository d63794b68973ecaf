"""How far one predictor's logits are from another's, on the same images."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

LOGITS_DIMENSIONS = 2  # [N, classes]


@dataclass(frozen=True)
class OutputDifference:
    """The logits of predictor b against those of a, the reference. It prints itself in one line.

    Attributes:
        mean_error: mean absolute difference of a logit.
        max_error: the largest absolute difference of a logit.
        cosine: cosine similarity of the two vectors of logits of an image, mean over images; 1 is the same direction.
        agreement: share of images with the same largest logit, 0 to 1.
        sqnr_db: signal to quantization noise ratio of all logits together, 10 log10(sum a² / sum (a - b)²) dB
            (Lin, Talathi, Annapureddy 2016, Fixed Point Quantization of Deep Convolutional Networks, arXiv:1511.06393,
            section 3); infinite where nothing differs. One bit more of precision is worth 6 dB.
        images: how many were seen.
    """

    mean_error: float
    max_error: float
    cosine: float
    agreement: float
    sqnr_db: float
    images: int

    def __str__(self) -> str:
        """Say it in one line."""
        return (
            f"logits differ by {self.mean_error:.2g} on average and {self.max_error:.2g} at most, "
            f"cosine {self.cosine:.6f}, SQNR {self.sqnr_db:.1f} dB, same class for {self.agreement:.2%} "
            f"of {self.images:,} images"
        )

    __repr__ = __str__


def compare_outputs(a: Callable[[Tensor], Any], b: Callable[[Tensor], Any], batches: Iterable[Any]) -> OutputDifference:
    """Run two predictors on the same batches and return how far their logits are apart; sums are kept in float64.

    Args:
        a: the reference, float32 [N, 3, H, W] -> logits float [N, classes], tensor or NumPy array.
        b: the one that is compared with it.
        batches: images, or pairs of images and labels.

    Raises:
        ValueError: there is no image, the two return different shapes or no [N, classes], or one returns NaN or
            infinity.
    """
    total = worst = error = signal = noise = cosine = 0.0
    images = agreed = 0
    with torch.inference_mode():
        for batch in batches:
            given = batch[0] if isinstance(batch, tuple | list) else batch
            first, second = (_logits(predictor, name, given) for name, predictor in (("a", a), ("b", b)))
            if first.shape != second.shape:
                raise ValueError(
                    f"a returns {tuple(first.shape)} and b {tuple(second.shape)}; "
                    "compare predictors of the same classes"
                )
            difference = (first - second).abs()
            images, total = images + len(first), total + first.numel()
            worst, error = max(worst, float(difference.max())), error + float(difference.sum())
            signal, noise = signal + float(first.square().sum()), noise + float(difference.square().sum())
            cosine += float(torch.cosine_similarity(first, second).sum())
            agreed += int((first.argmax(dim=1) == second.argmax(dim=1)).sum())
    if not images:
        raise ValueError("there is no image to compare on; give batches of at least one")
    return OutputDifference(error / total, worst, cosine / images, agreed / images, decibels(signal, noise), images)


def decibels(signal: float, noise: float) -> float:
    """Return 10 log10(signal / noise) of two sums of squares; infinite where there is no noise."""
    if not noise:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf


def _logits(predictor: Callable[[Tensor], Any], name: str, images: Tensor) -> Tensor:
    logits = torch.as_tensor(predictor(images)).double().cpu()
    if logits.ndim != LOGITS_DIMENSIONS or len(logits) != len(images):
        raise ValueError(
            f"{name} turned images {tuple(images.shape)} into {tuple(logits.shape)}; logits are [N, classes]"
        )
    if not bool(logits.isfinite().all()):
        raise ValueError(f"{name} returned NaN or infinity; look at its weights, its scales and its precision")
    return logits
