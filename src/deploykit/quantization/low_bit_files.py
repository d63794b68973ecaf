"""What a low-bit network is once it is trained: integers of a few bits, their steps, and what stayed in float."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from .low_bits import LayerBits, LowBit, low_bit_layers, with_low_bit_layers

LAYERS, WEIGHTS = "low-bits.json", "model.safetensors"


@dataclass(frozen=True)
class IntegerWeights:
    """The weights of one layer as they would be stored.

    Attributes:
        integers: int8 [out, in, ...], each within the range of ``bits``.
        step: float32 [1] or [out]; the weight that the layer computes with is ``(integers + offset) * step``.
        bits: 2 to 8.
        offset: 0, or ½ where no level is 0.
    """

    integers: Tensor
    step: Tensor
    bits: int
    offset: float

    @property
    def levels(self) -> int:
        """How many different integers occur, at most 2^bits."""
        return len(self.integers.unique())

    @property
    def kib(self) -> float:
        """Size with the bits packed: integers and steps, KiB."""
        return (self.integers.numel() * self.bits / 8 + self.step.nbytes) / 1024


def integer_weights(model: nn.Module) -> dict[str, IntegerWeights]:
    """Return the weights of each low-bit layer as integers and steps, by the layer's name.

    Raises:
        ValueError: no layer is one that ``prepare_low_bits`` made.
    """
    found = {}
    for name, layer in model.named_modules():
        if isinstance(layer, LowBit):
            quantizer = layer.weight_quantizer
            integers = quantizer.integers(layer.weight).contiguous()
            found[name] = IntegerWeights(
                integers, quantizer.positive_step().detach().clone(), quantizer.bits, quantizer.offset
            )
    if not found:
        raise ValueError(f"{type(model).__name__} has no low-bit layers; call prepare_low_bits first")
    return found


def save_low_bits(model: nn.Module, folder: Path | str) -> None:
    """Write ``low-bits.json`` and ``model.safetensors`` into ``folder``, each complete or not at all.

    The weights of low-bit layers are written as int8, a byte each whatever their bits: the file is readable without
    this module, and no layer can hold more levels than it should. The float weights behind them are not kept.

    Args:
        model: prepared by ``prepare_low_bits``, trained or not.
        folder: created if missing.

    Raises:
        ValueError: no layer is a low-bit one.
    """
    import safetensors.torch

    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    for name, weights in integer_weights(model).items():
        state[f"{name}.weight"] = weights.integers.cpu()
        state[f"{name}.weight_quantizer.step"] = weights.step.cpu()
    layers = {name: dataclasses.asdict(bits) for name, bits in low_bit_layers(model).items()}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / WEIGHTS, safetensors.torch.save(state))
    _write(folder / LAYERS, (json.dumps({"layers": layers}, indent=1) + "\n").encode())


def load_low_bits(model: nn.Module, folder: Path | str) -> nn.Module:
    """Return a copy of ``model`` with the low-bit layers and the weights that ``folder`` holds, in evaluation mode.

    Args:
        model: a network of the architecture that was saved; only its form matters, not its weights.
        folder: written by :func:`save_low_bits`.

    Raises:
        FileNotFoundError: one of the two files is missing.
        ValueError: the files are damaged, or belong to another architecture.
    """
    import safetensors.torch

    folder = Path(folder)
    for path in (folder / LAYERS, folder / WEIGHTS):
        if not path.is_file():
            raise FileNotFoundError(f"no {path.name} in {folder}; save_low_bits writes {LAYERS} and {WEIGHTS}")
    try:
        described = json.loads((folder / LAYERS).read_text(encoding="utf-8"))["layers"]
        layers = {name: LayerBits(**bits) for name, bits in described.items()}
        state = safetensors.torch.load_file(folder / WEIGHTS)
        prepared = with_low_bit_layers(model, layers)
        for name, bits in layers.items():
            integers, step = state[f"{name}.weight"], state[f"{name}.weight_quantizer.step"]
            state[f"{name}.weight"] = (integers + bits.weight_offset) * step.view(-1, *[1] * (integers.ndim - 1))
        prepared.load_state_dict(state)
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(
            f"{folder} holds no low-bit {type(model).__name__} of this form ({error}); restore the files, or give a "
            "network of the architecture that was saved"
        ) from error
    return prepared


def _write(path: Path, content: bytes) -> None:
    """Write under a name of its own beside the target, then rename: a reader finds all of it or nothing."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".partial-") as partial:
        written = Path(partial) / path.name
        written.write_bytes(content)
        written.replace(path)
