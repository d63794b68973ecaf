"""One evaluation for every predictor: eager, compiled and exported modules, runtimes' sessions and engines."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from deploykit import distributed
from deploykit.significance import wilson_interval

if TYPE_CHECKING:
    from deploykit.data import Batches

Predictor = Callable[[Tensor], Tensor]


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """How often a predictor is right on a split.

    Attributes:
        correct: bool [N], in the order of the split, so that two models can be compared image by image.
        split: "train", "val" or "test".
    """

    correct: Tensor
    split: str

    @property
    def images(self) -> int:
        """How many images were seen."""
        return len(self.correct)

    @property
    def accuracy(self) -> float:
        """Share of images whose largest logit is the label's, 0 to 1."""
        return float(self.correct.double().mean())

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval of the accuracy."""
        return wilson_interval(int(self.correct.sum()), self.images)

    def __str__(self) -> str:
        """Say it in one line."""
        low, high = self.interval
        return f"{self.accuracy:.2%} of {self.images:,} {self.split} images (95 % interval {low:.2%} to {high:.2%})"


def evaluate(predictor: Predictor, batches: Batches) -> Accuracy:
    """Return the top-1 accuracy of any predictor: a module, a compiled or exported one, a runtime's session.

    A module is put into eval mode and afterwards back into the mode it had. Exported modules that refuse to change
    modes (``torch.export``) are taken as they are.

    Args:
        predictor: maps float [N, 3, H, W] to logits [N, classes], tensor or NumPy array.
        batches: images and labels, not augmented.

    Raises:
        ValueError: the predictor returns another shape than [N, classes], NaN, or there are no images.
    """
    modules = [module for module in predictor.modules() if module.training] if isinstance(predictor, nn.Module) else []
    device = next((p.device for p in predictor.parameters()), None) if isinstance(predictor, nn.Module) else None
    correct = []
    with contextlib.suppress(NotImplementedError):
        if modules:
            predictor.eval()  # type: ignore[attr-defined]
    try:
        with torch.inference_mode():
            for images, labels in batches:
                logits = torch.as_tensor(predictor(images.to(device) if device else images)).cpu()
                if logits.shape[:-1] != images.shape[:1]:
                    raise ValueError(
                        f"the predictor turned images {tuple(images.shape)} into {tuple(logits.shape)}; "
                        "logits must be [N, classes]"
                    )
                if logits.isnan().any():
                    raise ValueError("the predictor returned NaN; look at its weights and at its precision")
                correct.append(logits.argmax(dim=1) == labels.cpu())
    finally:
        for module in modules:
            module.training = True
    if not correct:
        raise ValueError("there are no images to evaluate on; give batches of at least one image")
    return Accuracy(torch.cat(correct), batches.split)


def evaluate_together(predictor: Predictor, batches: Batches) -> Accuracy:
    """Do what :func:`evaluate` does, each process of a distributed run on its share of the images.

    All processes must call it, and all get the accuracy on all images, or the same error; :func:`evaluate` itself
    never waits for another process. In a single process the two are one.

    Args:
        predictor: as for :func:`evaluate`, the same on every process.
        batches: all images on every process, not shuffled.

    Raises:
        ValueError: as :func:`evaluate`.
    """
    rank, processes = distributed.place()
    if processes == 1 or len(batches.source) < processes:
        return evaluate(predictor, batches)
    parts = distributed.on_each(lambda: evaluate(predictor, batches.section(rank, processes)).correct)
    return Accuracy(torch.cat(parts), batches.split)
