"""CIFAR-form residual networks and the pretrained checkpoints that the course starts from.

A network is fully described by its configuration: the width of the residual stream in each stage and the inner
width of each block. That is enough to write down every channel- or block-pruned descendant, so a checkpoint is
always ``config.json`` + ``model.safetensors``, and loading one never runs code from a file.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors
import safetensors.torch
from torch import Tensor, nn

from deploykit.places import atomic_write, data_folder

if TYPE_CHECKING:
    from collections.abc import Mapping

ARCHITECTURE = "cifar-resnet"
STAGE_WIDTHS = (16, 32, 64)


@dataclasses.dataclass(frozen=True)
class ResNetConfig:
    """Everything needed to build a :class:`ResNet`.

    Attributes:
        stage_widths: channels of the residual stream, one number a stage; later stages start with stride 2.
        block_widths: inner channels of each block (between its two convolutions), one tuple a stage.
        classes: number of logits.
    """

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
        if any(not isinstance(width, int) or width < 1 for width in widths) or not all(self.block_widths):
            raise ValueError(
                f"widths and classes must be whole numbers of at least 1, every stage needs a block: {self}"
            )

    @property
    def depth(self) -> int:
        """Layers as papers count them: two a block, the first convolution and the classifier."""
        return 2 * sum(map(len, self.block_widths)) + 2

    def to_dict(self) -> dict[str, Any]:
        """Return what ``config.json`` holds."""
        return {
            "architecture": ARCHITECTURE,
            "stage_widths": list(self.stage_widths),
            "block_widths": [list(stage) for stage in self.block_widths],
            "classes": self.classes,
        }

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> ResNetConfig:
        """Build from the contents of a ``config.json``.

        Raises:
            ValueError: another architecture, missing keys, or impossible widths.
        """
        if config.get("architecture") != ARCHITECTURE:
            raise ValueError(
                f"this checkpoint is a {config.get('architecture')!r}, and this loader builds {ARCHITECTURE!r} only"
            )
        try:
            stages, blocks, classes = config["stage_widths"], config["block_widths"], config["classes"]
            return cls(tuple(stages), tuple(tuple(stage) for stage in blocks), classes)
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"config.json must hold stage_widths, block_widths and classes; reading it failed with {error!r}"
            ) from error


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


class ResNet(nn.Module):
    """The residual network of He et al. 2016, section 4.2, with 1x1 convolutions where a shortcut changes width.

    Args:
        config: the widths; :func:`resnet` makes the usual ones.
    """

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        self.config = config
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


def save_checkpoint(model: ResNet, folder: Path | str, *, card: str) -> None:
    """Write ``config.json``, ``model.safetensors`` and ``README.md`` into ``folder``, each complete or not at all.

    Args:
        model: its weights are written as they are (float32).
        folder: created if missing.
        card: the model card, Markdown with a YAML head in the Hugging Face form.
    """
    folder = Path(folder)
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    with atomic_write(folder / "model.safetensors") as partial:
        safetensors.torch.save_file(weights, partial)
    for name, text in (("config.json", json.dumps(model.config.to_dict(), indent=2) + "\n"), ("README.md", card)):
        with atomic_write(folder / name) as partial:
            partial.write_text(text, encoding="utf-8")


def load_checkpoint(folder: Path | str, *, classes: int | None = None) -> ResNet:
    """Load a network from a checkpoint folder, in eval mode.

    Args:
        folder: holds ``config.json`` and ``model.safetensors``.
        classes: when given, what the network must tell apart.

    Raises:
        FileNotFoundError: one of the two files is missing.
        ValueError: the files do not fit each other or ``classes``, are damaged, hold NaN, or are a pickle.
    """
    folder = Path(folder)
    config_path, weights_path = folder / "config.json", folder / "model.safetensors"
    for path in (config_path, weights_path):
        if not path.is_file():
            raise FileNotFoundError(
                f"no {path.name} in {folder}; a checkpoint is a folder with config.json and model.safetensors"
            )
    try:
        described = json.loads(config_path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{config_path} is not valid JSON ({error}); restore it, e.g. git checkout -- {config_path.name}"
        ) from error
    config = ResNetConfig.from_dict(described)
    if classes is not None and classes != config.classes:
        raise ValueError(
            f"{folder.name} tells {config.classes} classes apart and {classes} are needed; "
            "replace its last layer and fine-tune"
        )
    model = ResNet(config)
    _load_weights(model, weights_path)
    return model.eval()


def _load_weights(model: nn.Module, path: Path) -> None:
    try:
        weights = safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        with path.open("rb") as file:
            head = file.read(2)
        # A zip archive or a pickle's first opcode: what torch.save writes.
        pickled = head in {b"PK", b"\x80\x02", b"\x80\x04"}
        kind = "a pickle (torch.save); deploykit never unpickles" if pickled else "truncated or damaged"
        raise ValueError(
            f"{path} is not a complete safetensors file: {kind} ({error}); restore it from the repository"
        ) from error
    needed = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    if needed != found:
        different = sorted(name for name in needed.keys() | found.keys() if needed.get(name) != found.get(name))
        first = different[0]
        raise ValueError(
            f"{path} belongs to another network: {len(different)} tensors differ from config.json, first {first!r}: "
            f"needed {needed.get(first, 'nothing')}, found {found.get(first, 'nothing')}"
        )
    broken = [name for name, value in weights.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise ValueError(
            f"{path} holds NaN or infinite values in {', '.join(broken[:3])}; the training that wrote it had diverged"
        )
    model.load_state_dict(weights)


def load_pretrained(name: str, dataset: str = "cifar10") -> ResNet:
    """Load a network trained by this project, in eval mode; its folder holds the model card and the training log.

    Args:
        name: "resnet20", "resnet8", …
        dataset: "cifar10" or "shapes32".

    Raises:
        FileNotFoundError: no such checkpoint; the message lists those there are.
    """
    checkpoints = data_folder() / "checkpoints"
    folder = checkpoints / f"{name}-{dataset}"
    if not folder.is_dir():
        there = sorted(path.parent.name for path in checkpoints.glob("*/config.json"))
        near = difflib.get_close_matches(folder.name, there, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise FileNotFoundError(
            f"no checkpoint {folder.name!r} in {checkpoints}; {hint}there are: {', '.join(there) or 'none'}. "
            "Outside a checkout of the repository, set DEPLOYKIT_HOME to one"
        )
    return load_checkpoint(folder)
