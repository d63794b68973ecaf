"""How sparse each layer is, and the network: zeros counted, whether they are masked or not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from torch import Tensor, nn
from torch.nn.utils import parametrize

from .prunable import PRUNABLE
from .semi_structured import is_2_4

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class LayerSparsity:
    """The zeros of one layer.

    Attributes:
        name: as in ``model.named_modules()``.
        kind: the class of the layer, "Conv2d".
        weights: numbers in its weight, the bias not counted.
        zeros: how many of them are 0.
        is_2_4: whether at least two of every four consecutive inputs are 0.
    """

    name: str
    kind: str
    weights: int
    zeros: int
    is_2_4: bool

    @property
    def sparsity(self) -> float:
        """Share of zeros, 0 to 1."""
        return self.zeros / self.weights


@dataclass(frozen=True, repr=False)
class SparsityReport:
    """The layers of a network and their zeros; it prints itself.

    Attributes:
        layers: in the order of the model.
    """

    layers: tuple[LayerSparsity, ...]

    @property
    def total(self) -> LayerSparsity:
        """All of them together."""
        weights, zeros = (sum(getattr(layer, of) for layer in self.layers) for of in ("weights", "zeros"))
        return LayerSparsity("total", "", weights, zeros, all(layer.is_2_4 for layer in self.layers))

    @property
    def sparsity(self) -> float:
        """Share of zeros in all of these weights, 0 to 1."""
        return self.total.sparsity

    def table(self) -> pd.DataFrame:
        """Return one row per layer, and the total: name, kind, weights, zeros, sparsity, is_2_4."""
        import pandas as pd

        columns = ["name", "kind", "weights", "zeros", "sparsity", "is_2_4"]
        rows = [[getattr(layer, column) for column in columns] for layer in (*self.layers, self.total)]
        return pd.DataFrame(rows, columns=columns)

    def __str__(self) -> str:
        """Say it in a line for each layer and one for all."""
        rows = (*self.layers, self.total)
        width = max(len(row.name) for row in rows)
        return "\n".join(
            f"{row.name:{width}}  {row.zeros:>10,} of {row.weights:>10,} weights are 0, {row.sparsity:6.1%}"
            + ("  2:4" if row.is_2_4 else "")
            for row in rows
        )

    __repr__ = __str__


def sparsity_report(model: nn.Module, *, layers: tuple[type[nn.Module], ...] = PRUNABLE) -> SparsityReport:
    """Count the zeros in the weights of each layer.

    Args:
        model: with or without masks.
        layers: classes of layers to look at.

    Raises:
        TypeError: the model is no ``torch.nn.Module``.
        ValueError: it has no such layer.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"sparsity_report takes a torch.nn.Module, not {type(model).__name__}")
    found = [_count(name, layer) for name, layer in model.named_modules() if isinstance(layer, layers)]
    if not found:
        wanted = " or ".join(kind.__name__ for kind in layers)
        raise ValueError(f"{type(model).__name__} has no {wanted} whose zeros could be counted; see layers")
    return SparsityReport(tuple(found))


def _count(name: str, layer: nn.Module) -> LayerSparsity:
    weight = cast("Tensor", layer.weight).detach()
    kind = parametrize.type_before_parametrizations(layer).__name__
    return LayerSparsity(name, kind, weight.numel(), int((weight == 0).sum()), is_2_4(weight))
