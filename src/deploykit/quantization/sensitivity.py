"""Which layers suffer from quantization: one layer at a time is made coarse, and the whole network looked at."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .checks import calibration_images, check_bits, check_model, check_runs
from .outputs import decibels

if TYPE_CHECKING:
    import pandas as pd

Weighted = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear


def sensitivity(
    model: nn.Module,
    calibration: Iterable[Any],
    validation: Iterable[tuple[Tensor, Tensor]],
    *,
    weight_bits: int = 8,
    activation_bits: int = 8,
) -> pd.DataFrame:
    """Quantize each convolution and linear layer alone, all others in float32, and measure what the network loses.

    The layer's weights become symmetric integers with a scale per output channel, its input integers with one scale
    and zero point from the range that the calibration images span (Jacob et al. 2018, section 2.1); both are simulated
    in float32. Batch norm need not be folded first: it scales whole output channels, and so does a scale per channel.

    Args:
        model: float32, in evaluation mode; it is not changed.
        calibration: batches of images, float32 [N, C, H, W], or pairs of images and labels; not the test split.
        validation: batches of images and labels, on which the loss is measured; not the test split either, because
            the table is there to choose by.
        weight_bits: 2 to 8.
        activation_bits: 2 to 8.

    Returns:
        One row per layer in the model's order: layer, kind, parameters (of its weight), sqnr_db (signal to quantization
        noise of the logits: 10 log10 of the power of the float32 logits over that of the error; higher is better),
        agreement (share of images with the same answer as in float32) and accuracy_drop (in points, against float32).

    Raises:
        ValueError: training mode, a quantized model, bits out of range, an unusable calibration or validation set, or a
            model without a convolution or linear layer.
    """
    check_model(model, "sensitivity")
    check_bits(weight_bits=weight_bits, activation_bits=activation_bits)
    images = calibration_images(calibration)
    seen, labels = _labelled(validation)
    check_runs(model, images[0])
    copied = copy.deepcopy(model)
    layers = {name: layer for name, layer in copied.named_modules() if isinstance(layer, Weighted)}
    if not layers:
        raise ValueError(f"{type(model).__name__} has no convolution and no linear layer: there is nothing to quantize")
    ranges = _input_ranges(copied, layers, images)
    exact = _logits(copied, seen)
    right = (exact.argmax(1) == labels).double().mean()
    rows = []
    for name, layer in layers.items():
        with _coarse(layer, ranges[name], weight_bits, activation_bits):
            found = _logits(copied, seen)
        answers, noise = found.argmax(1), found.double() - exact.double()
        rows.append({
            "layer": name,
            "kind": type(layer).__name__,
            "parameters": layer.weight.numel(),
            "sqnr_db": decibels(float(exact.double().square().sum()), float(noise.square().sum())),
            "agreement": float((answers == exact.argmax(1)).double().mean()),
            "accuracy_drop": 100 * float(right - (answers == labels).double().mean()),
        })  # fmt: skip
    import pandas as pd

    return pd.DataFrame(rows)


def fake_quantized_weight(weight: Tensor, bits: int) -> Tensor:
    """Round weights [out, ...] to symmetric integers of ``bits`` with a scale per output channel, and back to float."""
    largest = 2 ** (bits - 1) - 1
    scale = weight.detach().flatten(1).abs().amax(dim=1).clamp(min=torch.finfo(torch.float32).tiny) / largest
    zeros = torch.zeros_like(scale, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scale, zeros, 0, -largest, largest)


def fake_quantized_input(values: Tensor, low: float, high: float, bits: int) -> Tensor:
    """Round activations to integers of ``bits`` that span ``low`` to ``high``, 0 always among them, and back to float.

    Zero has to be exact because padding is made of it (Jacob et al. 2018, section 2.1).
    """
    steps = 2**bits - 1
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / steps or 1.0
    return torch.fake_quantize_per_tensor_affine(values, scale, round(-low / scale), 0, steps)


def _labelled(validation: Iterable[tuple[Tensor, Tensor]]) -> tuple[list[Tensor], Tensor]:
    pairs = []
    if getattr(validation, "split", None) != "test":  # else the check below says why not
        for pair in validation:
            if not (isinstance(pair, tuple | list) and len(pair) == 2):  # noqa: PLR2004 (images and labels)
                raise ValueError("validation needs pairs of images and labels: the accuracy is measured on them")
            pairs.append(pair)
    images = calibration_images(pairs or validation, purpose="validation")
    return images, torch.cat([labels for _, labels in pairs]).cpu()


def _input_ranges(
    model: nn.Module, layers: dict[str, Weighted], images: list[Tensor]
) -> dict[str, tuple[float, float]]:
    ranges = dict.fromkeys(layers, (math.inf, -math.inf))

    def widen(name: str, values: Tensor) -> None:
        low, high = ranges[name]
        ranges[name] = min(low, float(values.min())), max(high, float(values.max()))

    hooks = [
        layer.register_forward_pre_hook(lambda _, given, name=name: widen(name, given[0]))
        for name, layer in layers.items()
    ]
    _logits(model, images)
    for hook in hooks:
        hook.remove()
    if unused := [name for name, (low, _) in ranges.items() if low == math.inf]:
        raise ValueError(f"the layer {unused[0]} takes no part in the forward pass: nothing could be observed of it")
    return ranges


@contextmanager
def _coarse(layer: Weighted, span: tuple[float, float], weight_bits: int, activation_bits: int) -> Iterator[None]:
    weight = layer.weight.data
    layer.weight.data = fake_quantized_weight(weight, weight_bits)
    hook = layer.register_forward_pre_hook(
        lambda _, given: (fake_quantized_input(given[0], *span, activation_bits), *given[1:])
    )
    try:
        yield
    finally:
        hook.remove()
        layer.weight.data = weight


def _logits(model: nn.Module, batches: list[Tensor]) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(images) for images in batches])
