"""CIFAR-form residual networks, described by their widths.

The width of the residual stream in each stage and the inner width of each block are enough to write down every
channel- or block-pruned descendant, so a pruned network is saved and loaded like any other.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import ClassVar

from torch import Tensor, nn

from deploykit.models.network import Network, NetworkConfig

STAGE_WIDTHS = (16, 32, 64)


@dataclasses.dataclass(frozen=True)
class ResNetConfig(NetworkConfig):
    """Everything needed to build a :class:`ResNet`.

    Attributes:
        stage_widths: channels of the residual stream, one number a stage; later stages start with stride 2.
        block_widths: inner channels of each block (between its two convolutions), one tuple a stage. The first may be
            empty: then the first convolution alone works at full resolution.
        classes: number of logits.
    """

    architecture: ClassVar[str] = "cifar-resnet"

    stage_widths: tuple[int, ...]
    block_widths: tuple[tuple[int, ...], ...]
    classes: int = 10

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        widths = [*self.stage_widths, *(width for stage in self.block_widths for width in stage), self.classes]
        if len(self.stage_widths) != len(self.block_widths) or not self.stage_widths:
            raise ValueError(
                f"{len(self.stage_widths)} stage widths and {len(self.block_widths)} stages of blocks; "
                "give one width and one tuple of block widths for each stage"
            )
        if any(not isinstance(width, int) or width < 1 for width in widths) or not all(self.block_widths[1:]):
            raise ValueError(
                f"widths and classes must be whole numbers of at least 1, stages after the first need a block: {self}"
            )

    @property
    def depth(self) -> int:
        """Layers as papers count them: two a block, the first convolution and the classifier."""
        return 2 * sum(map(len, self.block_widths)) + 2

    @property
    def description(self) -> str:
        """Its depth, and the width of its stages."""
        *first, last = self.stage_widths
        return f"a ResNet-{self.depth} with {', '.join(map(str, first))} and {last} channels"


class BasicBlock(nn.Module):
    """Two 3x3 convolutions added to a shortcut (He et al. 2016, "Deep Residual Learning", section 3.3)."""

    def __init__(self, in_width: int, inner_width: int, out_width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_width, inner_width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner_width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(inner_width, out_width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_width)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_width != out_width:
            projection = nn.Conv2d(in_width, out_width, 1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(out_width))
        self.relu2 = nn.ReLU()

    def forward(self, features: Tensor) -> Tensor:
        """Map float [N, in_width, H, W] to float [N, out_width, H / stride, W / stride]."""
        hidden = self.relu1(self.bn1(self.conv1(features)))
        return self.relu2(self.bn2(self.conv2(hidden)) + self.shortcut(features))


class ResNet(Network):
    """The residual network of He et al. 2016, section 4.2, with 1x1 convolutions where a shortcut changes width.

    Args:
        config: the widths; :func:`resnet` makes the usual ones.
    """

    config: ResNetConfig

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__(config)
        in_width = config.stage_widths[0]
        self.conv = nn.Conv2d(3, in_width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(in_width)
        self.relu = nn.ReLU()
        blocks = []
        for stage, (out_width, inner_widths) in enumerate(zip(config.stage_widths, config.block_widths, strict=True)):
            for position, inner_width in enumerate(inner_widths):
                stride = 2 if stage > 0 and position == 0 else 1
                blocks.append(BasicBlock(in_width, inner_width, out_width, stride))
                in_width = out_width
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(in_width, config.classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Map images, float [N, 3, H, W], to logits, float [N, classes]."""
        features = self.blocks(self.relu(self.bn(self.conv(images))))
        return self.fc(features.mean(dim=(2, 3)))


def resnet(depth: int, *, width: float = 1.0, classes: int = 10) -> ResNet:
    """Build the CIFAR ResNet with ``depth`` layers (8, 20, 32, 56: any 6n + 2), randomly initialised.

    Args:
        depth: layers as papers count them.
        width: factor on the channels 16, 32, 64; 4 gives the net that is called "width 64" after its first stage.
        classes: number of logits.

    Raises:
        ValueError: a depth that is not 6n + 2, or a width that leaves a layer without channels.
    """
    blocks, rest = divmod(depth - 2, 6)
    if rest or blocks < 1:
        raise ValueError(f"depth {depth} does not exist in this family; use 6n + 2: 8, 14, 20, 32, 44, 56, 110")
    widths = tuple(round(channels * width) for channels in STAGE_WIDTHS)
    return ResNet(ResNetConfig(widths, tuple((channels,) * blocks for channels in widths), classes))


def resnet_like(model: ResNet) -> ResNet:
    """Build the network that a pruned one has become, with a configuration that says so, so that it can be saved.

    Pruning changes the tensors of a network, or replaces blocks by ``nn.Identity``, and leaves ``.config`` as it was.

    Args:
        model: what a pruning recipe made of a :class:`ResNet`; it is not changed.

    Returns:
        A network of its own with the same weights, mode and device, without the replaced blocks.

    Raises:
        ValueError: a block that is neither a :class:`BasicBlock` nor an identity, a stage after the first without any
            left, or tensors that fit no configuration.
    """
    blocks = iter(enumerate(model.blocks))
    stages: list[list[BasicBlock]] = []
    for widths in model.config.block_widths:
        stages.append([])
        for position, block in itertools.islice(blocks, len(widths)):
            if isinstance(block, BasicBlock):
                stages[-1].append(block)
            elif not isinstance(block, nn.Identity):
                raise ValueError(  # noqa: TRY004 - a network of the right type with a part that is not
                    f"blocks.{position} is a {type(block).__name__}; it must be a BasicBlock or an nn.Identity"
                )
    if not all(stages[1:]):
        raise ValueError("a stage has no block left; a ResNet needs one in each after the first, to halve the size")
    config = ResNetConfig(
        stage_widths=(model.conv.out_channels, *(stage[0].conv2.out_channels for stage in stages[1:])),
        block_widths=tuple(tuple(block.conv1.out_channels for block in stage) for stage in stages),
        classes=model.fc.out_features,
    )
    smaller = ResNet(config)
    kept = nn.Sequential(*(block for stage in stages for block in stage))
    weights = {name: value for name, value in model.state_dict().items() if not name.startswith("blocks.")}
    weights |= {f"blocks.{name}": value for name, value in kept.state_dict().items()}
    try:
        smaller.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"the tensors of this network fit no configuration of a ResNet: {error}") from error
    return smaller.to(model.fc.weight.device).train(model.training)
