"""A small LSTM that reads an image row by row: what a recurrent network costs and how it quantizes.

It is no good way to classify pictures. It stands here for the networks of speech and text, whose time goes into the
matrix products of :class:`torch.nn.LSTM` and which cannot be computed all at once, since each step waits for the last.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from torch import Tensor, nn

from deploykit.models.network import IMAGE_SIZE, Network, NetworkConfig, refuse_other_images, refuse_sizes_below_one


@dataclasses.dataclass(frozen=True)
class RowLSTMConfig(NetworkConfig):
    """Everything needed to build a :class:`RowLSTM`.

    Attributes:
        hidden: numbers in the state of a layer.
        layers: LSTMs, each reading the states of the one below.
        classes: number of logits.
    """

    architecture: ClassVar[str] = "row-lstm"

    hidden: int = 256
    layers: int = 2
    classes: int = 10

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        refuse_sizes_below_one(self)

    @property
    def description(self) -> str:
        """Its size."""
        return f"a {self.layers}-layer LSTM of {self.hidden} hidden units that reads an image as {IMAGE_SIZE} rows"


class RowLSTM(Network):
    """An LSTM over the 32 rows of an image, and a linear layer on the mean of its states.

    Args:
        config: the sizes.
    """

    def __init__(self, config: RowLSTMConfig) -> None:
        super().__init__(config)
        self.lstm = nn.LSTM(3 * IMAGE_SIZE, config.hidden, config.layers, batch_first=True)
        self.fc = nn.Linear(config.hidden, config.classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images, float [N, 3, 32, 32], to logits, float [N, classes].

        Raises:
            ValueError: images of another size.
        """
        refuse_other_images(images, reader="RowLSTM")
        # A row is 32 pixels of 3 colours: for images in channels_last that is how they lie in memory, and a view.
        rows = images.permute(0, 2, 3, 1).flatten(2)
        states, _ = self.lstm(rows)
        return self.fc(states.mean(dim=1))
