"""Weights and activations of 4, 3 and 2 bits, where rounding alone loses the network and training wins it back."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F  # noqa: N812 - the name that PyTorch code uses
from torch import Tensor, nn

from .checks import FEWEST_BITS, calibration_images, check_bits, check_model, check_runs
from .learned_steps import LearnedQuantizer, quantizers

MID_RISE = 0.5
SAMPLE = 32_768  # activations a layer from which its first step is found


@dataclass(frozen=True)
class LayerBits:
    """How one layer is quantized.

    Attributes:
        weight_bits: of its weights, 2 to 8.
        input_bits: of its inputs, 2 to 8.
        signed_inputs: whether its inputs can be negative: the images can, what comes out of a ReLU cannot.
        per_channel: whether each output channel has a step of its own.
        weight_offset: 0 or ½; a weight is (integer + weight_offset) * step.
    """

    weight_bits: int
    input_bits: int
    signed_inputs: bool
    per_channel: bool
    weight_offset: float


class LowBitConv2d(nn.Conv2d):
    """A convolution of fake-quantized inputs with fake-quantized weights; its parameters keep their names."""

    weight_quantizer: LearnedQuantizer
    input_quantizer: LearnedQuantizer

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name that PyTorch gives it
        """Map float [N, in, H, W] to float [N, out, H', W']."""
        return self._conv_forward(self.input_quantizer(input), self.weight_quantizer(self.weight), self.bias)


class LowBitLinear(nn.Linear):
    """A linear layer of fake-quantized inputs with fake-quantized weights; its parameters keep their names."""

    weight_quantizer: LearnedQuantizer
    input_quantizer: LearnedQuantizer

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name that PyTorch gives it
        """Map float [N, ..., in] to float [N, ..., out]."""
        return F.linear(self.input_quantizer(input), self.weight_quantizer(self.weight), self.bias)


LowBit = LowBitConv2d | LowBitLinear
REPLACED: dict[type[nn.Module], type[LowBit]] = {nn.Conv2d: LowBitConv2d, nn.Linear: LowBitLinear}


def prepare_low_bits(
    model: nn.Module,
    calibration: Iterable[Any],
    *,
    weight_bits: int,
    activation_bits: int,
    edge_bits: int = 8,
    per_channel: bool = True,
) -> nn.Module:
    """Return a copy whose convolutions and linear layers compute with weights and inputs of a few bits.

    The copy rounds them to the grid and computes in float (fake quantization); the step of each grid is a parameter,
    set here to the one with the least squared error and, like the weights, trained on by any training loop (give it
    :func:`parameter_groups`). Used without training, the copy is post-training quantization. Batch norms are not
    folded: in training they adapt to the rounded activations.

    Args:
        model: float32, in evaluation mode; it is not changed.
        calibration: batches of images, or of images and labels, from which the activations' steps are found.
        weight_bits: 2 to 8, of every layer but the first and the last. The levels are those of LSQ, -Qn to Qp steps;
            of 2 bits they are ±½ and ±1½ steps, since -2, -1, 0 and 1 would serve the positive weights badly.
        activation_bits: 2 to 8, of the inputs of the same layers; unsigned where no input was negative.
        edge_bits: 2 to 8, of weights and inputs of the first and the last layer, on which a network depends most.
        per_channel: one step for each output channel of the weights instead of one for each layer.

    Returns:
        A module in evaluation mode whose ``state_dict`` is the model's and two ``step`` a layer.

    Raises:
        TypeError: the model is no ``torch.nn.Module``.
        ValueError: bits outside 2 to 8, a model in training mode or quantized already, no usable calibration image, or
            no layer that could be quantized.
    """
    check_bits(weight_bits=weight_bits, activation_bits=activation_bits, edge_bits=edge_bits)
    check_model(model, "low-bit quantization")
    if next(quantizers(model), None):
        raise ValueError(f"{type(model).__name__} is quantized already; low-bit quantization takes the float32 model")
    batches = calibration_images(calibration)
    check_runs(model, batches[0])
    samples = _inputs(model, batches)
    if not samples:
        raise ValueError(
            f"{type(model).__name__} uses no Conv2d and no Linear, the layers that low-bit quantization replaces"
        )
    edges = {next(iter(samples)), next(reversed(samples))}
    layers = {
        name: LayerBits(
            edge_bits if name in edges else weight_bits,
            edge_bits if name in edges else activation_bits,
            signed_inputs=bool(values.min() < 0),
            per_channel=per_channel,
            weight_offset=MID_RISE if weight_bits == FEWEST_BITS and name not in edges else 0.0,
        )
        for name, values in samples.items()
    }
    prepared = with_low_bit_layers(model, layers)
    for name, values in samples.items():
        layer = cast("LowBit", prepared.get_submodule(name))
        layer.input_quantizer.start_from(values)
        layer.weight_quantizer.start_from(layer.weight)
    return prepared


def with_low_bit_layers(model: nn.Module, layers: Mapping[str, LayerBits]) -> nn.Module:
    """Return a copy with low-bit layers whose steps are not set yet, to load a saved ``state_dict`` into.

    Args:
        model: of the same architecture as the one that was prepared.
        layers: what :func:`low_bit_layers` returned for that one.
    """
    prepared = copy.deepcopy(model)
    for name, bits in layers.items():
        plain = prepared.get_submodule(name)
        plain.__class__ = REPLACED[type(plain)]  # keeps everything else: weights, padding, hooks
        layer = cast("LowBit", plain)
        device, channels = layer.weight.device, len(layer.weight) if bits.per_channel else 1
        layer.weight_quantizer = LearnedQuantizer(
            bits.weight_bits, signed=True, channels=channels, offset=bits.weight_offset
        ).to(device)
        layer.input_quantizer = LearnedQuantizer(bits.input_bits, signed=bits.signed_inputs, per_image=True).to(device)
    return prepared.eval()


def low_bit_layers(model: nn.Module) -> dict[str, LayerBits]:
    """Return how each low-bit layer of a prepared model is quantized, in the order of the model."""
    return {
        name: LayerBits(
            layer.weight_quantizer.bits,
            layer.input_quantizer.bits,
            signed_inputs=layer.input_quantizer.signed,
            per_channel=len(layer.weight_quantizer.step) > 1,
            weight_offset=layer.weight_quantizer.offset,
        )
        for name, layer in model.named_modules()
        if isinstance(layer, LowBit)
    }


def parameter_groups(
    model: nn.Module, *, lr: float, weight_decay: float, step_lr: float | None = None
) -> list[dict[str, Any]]:
    """Return two groups for an optimizer: the model's own parameters, and the steps, which do not decay.

    A decaying step would shrink the grid until it clips what the network needs.

    Args:
        model: prepared by :func:`prepare_low_bits`.
        lr: peak learning rate.
        weight_decay: of the model's own parameters.
        step_lr: of the steps, ``lr`` when not given.

    Raises:
        ValueError: the model has no steps.
    """
    steps = [quantizer.step for quantizer in quantizers(model)]
    if not steps:
        raise ValueError(f"{type(model).__name__} has no learned steps; call prepare_low_bits first")
    known = set(map(id, steps))
    own = [parameter for parameter in model.parameters() if id(parameter) not in known]
    return [
        {"params": own, "lr": lr, "weight_decay": weight_decay},
        {"params": steps, "lr": lr if step_lr is None else step_lr, "weight_decay": 0.0},
    ]


def _inputs(model: nn.Module, batches: list[Tensor]) -> dict[str, Tensor]:
    """Return a sample of each layer's inputs, float32 [n], in the order in which the layers run.

    A layer that does not run, or whose weights another module uses, is not among them.
    """
    found: dict[str, list[Tensor]] = {}
    generator = torch.Generator().manual_seed(0)

    def watch(name: str) -> Any:
        def note(_layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            values = inputs[0].detach().flatten().cpu()
            places = torch.randint(len(values), (SAMPLE // len(batches) + 1,), generator=generator)
            # The least value decides the sign, and a sample could miss it.
            found.setdefault(name, []).extend([values[places], values.min()[None]])

        return note

    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    watched = {name: layer for name, layer in model.named_modules() if type(layer) in REPLACED}
    handles = [layer.register_forward_pre_hook(watch(name)) for name, layer in watched.items()]
    try:
        with torch.no_grad():
            for images in batches:
                model(images.to(device))
    finally:
        for handle in handles:
            handle.remove()
    return {name: torch.cat(values).to(device) for name, values in found.items()}
