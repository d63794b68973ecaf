"""Which layers a recipe changed and which it left: a quantized model comes with the list."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Layer:
    """One layer with weights, after quantization.

    Attributes:
        name: as in ``model.named_modules()``: "blocks.0.conv1".
        kind: the class of the layer, "Conv2d", or the operator where there are no classes.
        parameters: numbers in its weights, biases not counted.
        weights: what its weights are stored as, "int8" or "float32".
        inputs: what its arithmetic takes the activations as, "uint8", "int8" or "float32".
        why: where it was left in float, the reason.
    """

    name: str
    kind: str
    parameters: int
    weights: str
    inputs: str
    why: str = ""

    @property
    def quantized(self) -> bool:
        """Whether weights and activations are both integers."""
        return "int" in self.weights and "int" in self.inputs


@dataclass(frozen=True, repr=False)
class Quantized:
    """A quantized model with the list of its layers; it prints what was changed and what was not.

    Attributes:
        model: what the backend runs: a module, an exported program's module, an ONNX or an OpenVINO model.
        backend: which recipe made it.
        layers: every layer that has weights, in the model's order.
    """

    model: Any
    backend: str
    layers: tuple[Layer, ...]

    @property
    def changed(self) -> tuple[Layer, ...]:
        """The layers that now compute with integers."""
        return tuple(layer for layer in self.layers if layer.quantized)

    @property
    def left(self) -> tuple[Layer, ...]:
        """The layers that compute in float as before."""
        return tuple(layer for layer in self.layers if not layer.quantized)

    def table(self) -> pd.DataFrame:
        """Return one row per layer: name, kind, parameters, weights, inputs, why."""
        import pandas as pd

        columns = ["name", "kind", "parameters", "weights", "inputs", "why"]
        return pd.DataFrame([[getattr(layer, column) for column in columns] for layer in self.layers], columns=columns)

    def __str__(self) -> str:
        """Say it in one line, and a line for each layer left in float."""
        of_all, of_changed = (sum(layer.parameters for layer in some) for some in (self.layers, self.changed))
        first = (
            f"{self.backend}: {len(self.changed)} of {len(self.layers)} layers compute with integers, "
            f"{of_changed / of_all:.1%} of the weights"
        )
        reasons = [
            f"  {layer.name} ({layer.kind}) stays in float: {layer.why or 'no reason known'}" for layer in self.left
        ]
        return "\n".join([first, *reasons])

    __repr__ = __str__


def require_change(layers: Sequence[Layer], backend: str, remedy: str) -> None:
    """Raise ValueError if no layer was quantized: a technique that touched nothing must not return quietly."""
    if not any(layer.quantized for layer in layers):
        kinds = ", ".join(sorted({layer.kind for layer in layers})) or "none with weights"
        raise ValueError(f"{backend} quantized no layer (the model's layers: {kinds}); {remedy}")
