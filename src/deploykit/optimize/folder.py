"""The folder that a run writes into, and what in it is still good when the same command comes again."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import inspect
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from deploykit.data import Dataset
from deploykit.places import atomic_write, clean_leftovers

OWN = "deploykit-optimize.txt"  # by which a folder of an earlier call is known
OWN_TEXT = "Written by deploykit optimize. The same command goes on here; delete the folder to start afresh.\n"
PACKAGES = ("torch", "torch-pruning", "onnx", "onnxruntime", "openvino", "nncf")  # whose version may change a result


def usable(folder: Path) -> Path:
    """Create the folder, or see that it is empty or that of an earlier call, which may have left hidden files.

    Raises:
        ValueError: it holds something else.
        OSError: it cannot be written.
    """
    refuse_foreign(folder)
    with atomic_write(folder / OWN) as partial:
        partial.write_text(OWN_TEXT, encoding="ascii")
    clean_leftovers(folder)
    return folder


def refuse_foreign(folder: Path) -> None:
    """Refuse, and write nothing, a folder that has files and is not that of an earlier call.

    Raises:
        ValueError: it holds something else.
    """
    entries = sorted(folder.glob("[!.]*"))
    if entries and not (folder / OWN).exists():
        raise ValueError(f"{folder} holds something else ({entries[0].name}); give a new folder, or an earlier call's")


def origin(model: nn.Module, calibration: Tensor, dataset: Dataset, *settings: object) -> str:
    """Return a hash of all that a result is made of: weights, code, calibration images, data, versions, settings.

    Args:
        model: what it is made of.
        calibration: float32 [N, 3, H, W].
        dataset: that trains and judges.
        settings: what else decides; they print themselves.
    """
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    digest = hashlib.sha256(f"{model}\0{dataset.fingerprint}\0{versions}\0{settings}".encode())
    for source in _sources(model):
        digest.update(source)
    # Buffers that are not saved are no part of the state, and of the answers they are.
    for name, tensor in (*model.state_dict().items(), *model.named_buffers(), ("", calibration)):
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _sources(model: nn.Module) -> Iterator[bytes]:
    """Iterate over the files in which the classes of the modules are written, but for torch's, which have a version."""
    files = set()
    for kind in {type(module) for module in model.modules()}:
        if not kind.__module__.startswith("torch."):
            with contextlib.suppress(TypeError, OSError):  # one that was typed in has no file
                files.add(inspect.getfile(kind))
    for file in sorted(files):
        with contextlib.suppress(OSError):
            yield Path(file).read_bytes()
