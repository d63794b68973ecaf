"""Small networks with what asks something of channel pruning, for tests of the recipes."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from deploykit.pruning.layers import INPUTS, Weighted
from deploykit.pruning.plan import PruningPlan


class TwoConvs(nn.Module):
    """Two convolutions without bias or norm and a classifier; images [N, 2, 4, 4], three classes.

    The first has four filters of norms 3, 1, 4 and 2 (each entry of filter i is the same), and what reads them is all
    ones.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.second = nn.Conv2d(4, 5, 3, padding=1, bias=False)
        self.fc = nn.Linear(5, 3)
        with torch.no_grad():
            self.first.weight.copy_((torch.tensor([3.0, 1.0, 4.0, 2.0]) / 18**0.5).view(4, 1, 1, 1))
            self.second.weight.fill_(1.0)

    def forward(self, images: Tensor) -> Tensor:
        """Map float32 [N, 2, 4, 4] to logits [N, 3]."""
        return self.fc(self.second(self.first(images).relu()).relu().mean(dim=(2, 3)))


class Flattened(nn.Module):
    """A convolution, a batch norm and a classifier behind a flatten; images [N, 3, 4, 4], four classes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.hidden = nn.Linear(6 * 4 * 4, 8)
        self.fc = nn.Linear(8, 4)

    def forward(self, images: Tensor) -> Tensor:
        """Map float32 [N, 3, 4, 4] to logits [N, 4]."""
        return self.fc(self.hidden(self.depthwise(self.bn(self.conv(images)).relu()).flatten(1)).relu())


def batches(number: int, shape: tuple[int, ...], classes: int) -> list[tuple[Tensor, Tensor]]:
    """Draw batches of eight images and labels."""
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(8, *shape, generator=generator), torch.randint(classes, (8,), generator=generator))
        for _ in range(number)
    ]


def silence(model: nn.Module, plan: PruningPlan) -> None:
    """Zero, in place, what reads the channels that a plan removes: they can be removed then without changing logits."""
    with torch.no_grad():
        for cut, entries in plan.cuts():
            layer = model.get_submodule(cut.layer)
            if isinstance(layer, Weighted) and cut.side == INPUTS:
                dimension = 0 if getattr(layer, "transposed", False) else 1
                layer.weight.index_fill_(dimension, torch.tensor(entries), 0)


def names(rows: Iterable[tuple[str, str]]) -> set[str]:
    """Return the layers of a plan's list of what was left alone."""
    return {name for name, _ in rows}
