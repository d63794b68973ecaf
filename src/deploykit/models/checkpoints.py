"""Checkpoints: ``config.json`` + ``model.safetensors`` + a model card, and those that the course starts from.

A network is fully described by its configuration, whose ``architecture`` is looked up in a closed table. Loading a
checkpoint therefore never runs or imports anything that a file names.
"""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import nn

from deploykit.models.mlp_mixer import MLPMixer, MLPMixerConfig
from deploykit.models.named import ARCHITECTURES
from deploykit.models.network import Network, NetworkConfig
from deploykit.models.resnet import ResNet, ResNetConfig
from deploykit.models.row_lstm import RowLSTM, RowLSTMConfig
from deploykit.places import atomic_write, data_folder

FAMILIES: dict[str, tuple[type[NetworkConfig], type[Network]]] = {
    config.architecture: (config, network)
    for config, network in ((ResNetConfig, ResNet), (RowLSTMConfig, RowLSTM), (MLPMixerConfig, MLPMixer))
}


def save_checkpoint(model: Network, folder: Path | str, *, card: str) -> None:
    """Write ``config.json``, ``model.safetensors`` and ``README.md`` into ``folder``, each complete or not at all.

    Args:
        model: its weights are written as they are (float32).
        folder: created if missing.
        card: the model card, Markdown with a YAML head in the Hugging Face form.
    """
    folder = Path(folder)
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    with atomic_write(folder / "model.safetensors") as partial:
        partial.write_bytes(safetensors.torch.save(weights))  # save_file leaves a file of its own when it is killed
    for name, text in (("config.json", json.dumps(model.config.to_dict(), indent=2) + "\n"), ("README.md", card)):
        with atomic_write(folder / name) as partial:
            partial.write_text(text, encoding="utf-8")


def load_checkpoint(folder: Path | str, *, classes: int | None = None) -> Network:
    """Load a network from a checkpoint folder, in eval mode.

    Args:
        folder: holds ``config.json`` and ``model.safetensors``.
        classes: when given, what the network must tell apart.

    Raises:
        FileNotFoundError: one of the two files is missing.
        ValueError: the files do not fit each other or ``classes``, are damaged, hold NaN, or are a pickle; or the
            network is none of this project.
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
    model = _build(described)
    if classes is not None and classes != described["classes"]:
        raise ValueError(
            f"{folder.name} tells {described['classes']} classes apart and {classes} are needed; "
            "replace its last layer and fine-tune"
        )
    _load_weights(model, weights_path)
    return model.eval()


def _build(described: Any) -> Network:
    if not isinstance(described, dict):
        raise ValueError(f"config.json must hold an object, {{…}}, and holds {type(described).__name__}")  # noqa: TRY004
    architecture = described.get("architecture", ResNetConfig.architecture)  # the first files did not say
    if not isinstance(architecture, str) or architecture not in FAMILIES:
        *first, last = map(repr, FAMILIES)
        raise ValueError(
            f"this checkpoint is a {architecture!r}, and this loader builds {', '.join(first)} and {last} only"
        )
    config, network = FAMILIES[architecture]
    return network(config.from_dict(described))


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


def load_pretrained(name: str, dataset: str = "cifar10") -> Network:
    """Load a network trained by this project, in eval mode; its folder holds the model card and the training log.

    Args:
        name: "resnet20", "row-lstm", …
        dataset: "cifar10" or "shapes32".

    Raises:
        FileNotFoundError: no such checkpoint; the message lists those there are, and how to train one that is missing.
        ValueError: it is damaged.
    """
    return load_checkpoint(find_pretrained(name, dataset))


def find_pretrained(name: str, dataset: str = "cifar10") -> Path:
    """Return the folder of a network trained by this project, and open nothing in it.

    Args:
        name: "resnet20", "row-lstm", …
        dataset: "cifar10" or "shapes32".

    Raises:
        FileNotFoundError: no such checkpoint; the message lists those there are, and how to train one that is missing.
    """
    checkpoints = data_folder() / "checkpoints"
    folder = checkpoints / f"{name}-{dataset}"
    if not folder.is_dir():
        there = sorted(path.parent.name for path in checkpoints.glob("*/config.json"))
        end = f"-{dataset}"
        names = [found.removesuffix(end) for found in there if found.endswith(end)]
        near = difflib.get_close_matches(name.removesuffix(end), names, n=1)  # of the folder, the name is what is asked
        hint = f"did you mean {near[0]!r}? " if near else ""
        if name in ARCHITECTURES:
            options = "" if name.startswith("resnet") else " --optimizer adamw"
            hint = f"train it with: deploykit train {name} --dataset {dataset} --split train+val{options}; "
        raise FileNotFoundError(
            f"no checkpoint {folder.name!r} in {checkpoints}; {hint}there are: {', '.join(there) or 'none'}. "
            "Outside a checkout of the repository, set DEPLOYKIT_HOME to one"
        )
    return folder
