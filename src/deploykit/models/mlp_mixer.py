"""A small MLP-Mixer: a network of :class:`torch.nn.Linear`, where dynamic quantization finds what it looks for."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from torch import Tensor, nn

from deploykit.models.network import IMAGE_SIZE, Network, NetworkConfig, refuse_other_images, refuse_sizes_below_one


@dataclasses.dataclass(frozen=True)
class MLPMixerConfig(NetworkConfig):
    """Everything needed to build an :class:`MLPMixer`; the names of the paper in brackets.

    Attributes:
        patch: side of a square patch, pixels (P); divides 32.
        width: numbers that describe a patch (C).
        token_hidden: hidden units where patches are mixed (D_S).
        channel_hidden: hidden units where the numbers of a patch are mixed (D_C).
        depth: mixer layers, each of two MLPs.
        classes: number of logits.
    """

    architecture: ClassVar[str] = "mlp-mixer"

    patch: int = 4
    width: int = 192
    token_hidden: int = 96
    channel_hidden: int = 384
    depth: int = 4
    classes: int = 10

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        refuse_sizes_below_one(self)
        if IMAGE_SIZE % self.patch:
            raise ValueError(f"patch is {self.patch}; it must divide the {IMAGE_SIZE} pixels of a side")

    @property
    def patches(self) -> int:
        """Patches of an image (S)."""
        return (IMAGE_SIZE // self.patch) ** 2

    @property
    def description(self) -> str:
        """Its size."""
        return f"an MLP-Mixer of {self.depth} layers on patches of {self.patch}x{self.patch}, {self.width} numbers each"


class MixerLayer(nn.Module):
    """Two MLPs, one across the patches and one across the channels (Tolstikhin et al. 2021, equation 1)."""

    def __init__(self, config: MLPMixerConfig) -> None:
        super().__init__()
        self.token_norm = nn.LayerNorm(config.width)
        self.token_mlp = _mlp(config.patches, config.token_hidden)
        self.channel_norm = nn.LayerNorm(config.width)
        self.channel_mlp = _mlp(config.width, config.channel_hidden)

    def forward(self, patches: Tensor) -> Tensor:
        """Map float [N, patches, width] to the same shape."""
        mixed = self.token_mlp(self.token_norm(patches).transpose(1, 2)).transpose(1, 2)
        patches = patches + mixed
        return patches + self.channel_mlp(self.channel_norm(patches))


def _mlp(width: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))


class MLPMixer(Network):
    """The network of Tolstikhin et al. 2021, "MLP-Mixer: An all-MLP Architecture for Vision", section 2.

    All its multiply-accumulates are those of ``nn.Linear``: also the embedding of patches, which the paper writes as a
    linear layer and most implementations as the convolution that it equals.

    Args:
        config: the sizes.
    """

    def __init__(self, config: MLPMixerConfig) -> None:
        super().__init__(config)
        self.patch = config.patch
        self.embed = nn.Linear(3 * config.patch**2, config.width)
        self.layers = nn.Sequential(*(MixerLayer(config) for _ in range(config.depth)))
        self.norm = nn.LayerNorm(config.width)
        self.fc = nn.Linear(config.width, config.classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images, float [N, 3, 32, 32], to logits, float [N, classes].

        Raises:
            ValueError: images of another size.
        """
        refuse_other_images(images, reader="MLPMixer")
        return self.fc(self.norm(self.layers(self.embed(self.cut(images)))).mean(dim=1))

    def cut(self, images: Tensor) -> Tensor:
        """Cut images, float [N, 3, 32, 32], into patches in reading order, float [N, patches, 3 * patch ** 2]."""
        across = IMAGE_SIZE // self.patch
        tiles = images.unflatten(3, (across, self.patch)).unflatten(2, (across, self.patch))
        return tiles.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
