"""What every recipe of this folder refuses before any work is done, with what to do instead."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

FEWEST_BITS, MOST_BITS = 2, 8
IMAGE_DIMENSIONS = 4  # [N, channels, height, width]
INTEGER_OR_OBSERVED = ("torch.ao.nn.quantized", "torch.ao.nn.qat", "torch.ao.nn.intrinsic.q", "torch.ao.quantization")
# Homes within these of what a float model may hold: marks of where to quantize, additions that could be observed.
FLOAT_WITHIN = ("torch.ao.quantization.stubs", "torch.ao.nn.quantized.modules.functional_modules")


def check_model(model: nn.Module, purpose: str) -> None:
    """Raise unless ``model`` is a float32 module in evaluation mode that nobody has quantized.

    Raises:
        TypeError: it is no ``torch.nn.Module``.
        ValueError: it is in training mode, quantized already, or has floating-point weights other than float32.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"{purpose} takes a torch.nn.Module, not {type(model).__name__}")
    found = next((name for name, module in model.named_modules() if is_quantized(module)), None)
    if found is not None:
        raise ValueError(
            f"{type(model).__name__} is quantized already ({found or 'itself'}); {purpose} takes the float32 model"
        )
    if any(module.training for module in model.modules()):
        raise ValueError(
            f"{type(model).__name__} is in training mode, where batch norm and dropout depend on the batch; "
            f"call .eval() before {purpose}"
        )
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and parameter.dtype != torch.float32:
            raise ValueError(
                f"{name} is {dtype_name(parameter.dtype)}; {purpose} takes float32 weights: call .float() on the model"
            )


def check_bits(**bits: int) -> None:
    """Raise ValueError unless each is a whole number from 2 to 8: what int8 holds, and more than a sign."""
    for name, number in bits.items():
        if not isinstance(number, int) or not FEWEST_BITS <= number <= MOST_BITS:
            raise ValueError(f"{name} is {number}; choose a whole number from {FEWEST_BITS} to {MOST_BITS}")


def is_quantized(module: nn.Module) -> bool:
    """Tell whether a single module holds integer weights, observers or fake quantization of any torch library."""
    home = type(module).__module__
    if home.startswith(INTEGER_OR_OBSERVED) and (
        not home.startswith(FLOAT_WITHIN) or type(module).__name__ == "QFunctional"
    ):
        return True
    if home.startswith("torchao.quantization") or "fake_quantize" in home:
        return True
    if isinstance(module, torch.fx.GraphModule) and any("quantize" in str(node.target) for node in module.graph.nodes):
        return True
    return any(type(tensor).__module__.startswith("torchao.") for tensor in module.parameters(recurse=False))


def calibration_images(calibration: Iterable[Any], *, purpose: str = "calibration") -> list[Tensor]:
    """Return the batches of images that a calibration set consists of, after looking at every one.

    Args:
        calibration: batches of images, float32 [N, C, H, W], or pairs of images and labels; normalised as in training.
            Where it says what it was drawn from (``.split``), "test" is refused.
        purpose: for the messages.

    Raises:
        TypeError: a batch is no tensor.
        ValueError: it comes from the test split, is empty, or a batch is not float32 [N, C, H, W] of one C, H and W,
            or has NaN or infinity in it.
    """
    if getattr(calibration, "split", None) == "test":
        raise ValueError(
            f"{purpose} was given the test split, which is only for reporting: a choice made on it would make the "
            "reported accuracy too good. Use training or validation images"
        )
    batches: list[Tensor] = []
    for number, batch in enumerate(calibration):
        images = batch[0] if isinstance(batch, tuple | list) else batch
        _check_images(images, f"batch {number} of the {purpose} images", like=batches[0] if batches else None)
        batches.append(images.detach().cpu())
    if not sum(map(len, batches)):
        raise ValueError(f"there is no {purpose} image; a few dozen to a few hundred are usual")
    return batches


def check_runs(model: nn.Module, images: Tensor) -> None:
    """Raise ValueError if the model cannot process the images, with the shape that they have and what it said."""
    try:
        with torch.no_grad():
            model(images[:1])
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise ValueError(
            f"{type(model).__name__} cannot process images of shape {tuple(images.shape)}: {error}"
        ) from error


def dtype_name(dtype: torch.dtype) -> str:
    """Say a dtype as people do: "float32"."""
    return str(dtype).removeprefix("torch.")


def _check_images(images: Any, what: str, *, like: Tensor | None) -> None:
    if not isinstance(images, Tensor):
        raise TypeError(f"{what} is {type(images).__name__}; give tensors float32 [N, C, H, W]")
    if images.dtype != torch.float32:
        raise ValueError(f"{what} is {dtype_name(images.dtype)}; give float32, normalised as in training")
    if images.ndim != IMAGE_DIMENSIONS or (like is not None and images.shape[1:] != like.shape[1:]):
        wanted = "[N, C, H, W]" if like is None else f"[N, {', '.join(map(str, like.shape[1:]))}] as the first"
        raise ValueError(f"{what} has shape {tuple(images.shape)}; give {wanted}")
    if not math.isfinite(float(images.sum())) and not bool(images.isfinite().all()):
        raise ValueError(f"{what} has NaN or infinity in it; a scale computed from that would be one as well")
