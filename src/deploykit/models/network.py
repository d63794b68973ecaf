"""What every network of this project has: a configuration that describes it fully, and room for 32x32 images."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from torch import Tensor, nn

IMAGE_SIZE = 32


@dataclasses.dataclass(frozen=True)
class NetworkConfig:
    """The constructor arguments of a network, in the form that ``config.json`` keeps.

    Subclasses add fields; each is a whole number of at least 1, or a tuple of tuples of such numbers.

    Attributes:
        architecture: the name under which a checkpoint says which network it is.
    """

    architecture: ClassVar[str]

    @property
    def description(self) -> str:
        """The network in a few words, for its model card: "a ResNet-20"."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """Return what ``config.json`` holds."""
        return {"architecture": self.architecture, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Self:
        """Build from the contents of a ``config.json``; every field has to be there.

        Raises:
            ValueError: missing keys, or sizes that cannot be built.
        """
        fields = [field.name for field in dataclasses.fields(cls)]
        try:
            return cls(**{name: _as_tuple(config[name]) for name in fields})
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"config.json must hold {', '.join(fields[:-1])} and {fields[-1]}; reading it failed with {error!r}"
            ) from error


def _as_tuple(value: Any) -> Any:
    """Turn the lists of JSON into tuples, which are hashable and cannot be changed."""
    return tuple(map(_as_tuple, value)) if isinstance(value, list) else value


def refuse_sizes_below_one(config: NetworkConfig) -> None:
    """Raise a ValueError unless every field of ``config`` is a whole number of at least 1."""
    sizes = dataclasses.asdict(config)
    if any(not isinstance(size, int) or size < 1 for size in sizes.values()):
        raise ValueError(f"{', '.join(sizes)} must be whole numbers of at least 1: {config}")


class Network(nn.Module):
    """A module that knows its configuration, so that a checkpoint can be made of it.

    Args:
        config: describes it fully.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config


def refuse_other_images(images: Tensor, *, reader: str) -> None:
    """Raise a ValueError unless ``images`` is [N, 3, 32, 32].

    Args:
        images: what a network was given.
        reader: the network's name, for the message.
    """
    if images.ndim != 4 or images.shape[1:] != (3, IMAGE_SIZE, IMAGE_SIZE):  # noqa: PLR2004 - N, C, H, W
        raise ValueError(
            f"{reader} reads images of one size, float32 [N, 3, {IMAGE_SIZE}, {IMAGE_SIZE}], and was given "
            f"{list(images.shape)}; resize them to {IMAGE_SIZE}x{IMAGE_SIZE}, or use a ResNet, which takes any size"
        )
