"""What commands take as MODEL: a network of the course, a checkpoint folder, or a function in the reader's file."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.cli import output
from deploykit.cli.contract import Status, StopError
from deploykit.cli.data import open_dataset

if TYPE_CHECKING:
    from torch import nn

    from deploykit.data import Dataset

PIXELS = 32
WEIGHTS = "Safetensors file for the module of FILE.py:FUNCTION."
SIZE = "Pixels of a side that a folder's images are brought to."


def refuse_what_is_not_there(model: str, weights: Path | None) -> None:
    """Refuse, before data are loaded, a file that is missing.

    Raises:
        StopError: ``--weights`` for something that brings its own.
        FileNotFoundError: no such file.
    """
    file, function = of_code(model)
    if weights is not None and not function:
        raise StopError("--weights is for FILE.py:FUNCTION; other models bring their own", Status.USAGE)
    named = [Path(file) if function else None, weights, Path(model) if model.endswith(".onnx") else None]
    for path in named:
        if path is not None and not path.is_file():
            raise FileNotFoundError(f"there is no file {path}; check the path")


def of_code(model: str) -> tuple[str, str]:
    """Split FILE.py:FUNCTION; the function is "" where it is something else."""
    file, colon, function = model.rpartition(":")
    return (file, function) if colon and file.endswith(".py") else (model, "")


def sized_dataset(name: str, size: int) -> Dataset:
    """Load the dataset that ``--data`` names, a folder's images at ``--size`` pixels."""
    from deploykit.data import load_dataset

    return open_dataset(name) if size == PIXELS else load_dataset(name, size=size)


def module_of(model: str, weights: Path | None, dataset: Dataset) -> nn.Module:
    """Return the module that MODEL names; a file of the reader's is executed for it.

    Raises:
        StopError: the reader's file fails, has no such function, or that returns something else than a module.
        FileNotFoundError, ValueError: no such checkpoint, or one that does not fit.
    """
    from deploykit import models

    file, function = of_code(model)
    if function:
        return _built(Path(file), function, weights)
    if Path(model).is_dir():
        return models.load_checkpoint(model, classes=len(dataset.classes))
    return models.load_pretrained(model, dataset.name)


def knows_val(model: str, dataset: Dataset) -> bool:
    """Tell whether a checkpoint's card says that it was trained on the validation images, too."""
    from deploykit.places import data_folder

    folder = Path(model) if Path(model).is_dir() else data_folder() / "checkpoints" / f"{model}-{dataset.name}"
    card = folder / "README.md"
    return card.is_file() and "trained on train+val" in card.read_text(encoding="utf-8")


def _built(file: Path, function: str, weights: Path | None) -> nn.Module:
    """Execute the reader's file and return what its function builds."""
    from torch import nn

    output.say(f"executing {file}, and {function}() in it")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None:
        raise StopError(f"{file} cannot be imported; check that it is a Python file", Status.USAGE)
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(file.resolve().parent))  # as Python does for a program: it may import its neighbours
    sys.modules[spec.name] = module  # dataclasses, and export's traces, look it up there
    try:
        with _nothing_written():
            spec.loader.exec_module(module)
            built = getattr(module, function)()
    except (Exception, SystemExit) as error:  # a file that ends the program would end this one, as if all were well
        raise StopError(
            f"{file.name}:{function} failed with {type(error).__name__}: {error}; it is called without arguments and "
            "returns a torch module",
            Status.USAGE,
        ) from error
    if not isinstance(built, nn.Module):
        raise StopError(
            f"{file.name}:{function} returned {type(built).__name__}; it has to return a torch module", Status.USAGE
        )
    if weights is not None:
        _load(built, weights)
    return built


@contextlib.contextmanager
def _nothing_written() -> Iterator[None]:
    """Import without leaving ``__pycache__`` beside the reader's files."""
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield
    finally:
        sys.dont_write_bytecode = before


def _load(module: nn.Module, weights: Path) -> None:
    import safetensors.torch

    try:
        module.load_state_dict(safetensors.torch.load_file(weights))
    except (safetensors.SafetensorError, RuntimeError) as error:
        words = " ".join(str(error).split())
        raise ValueError(f"{weights} does not hold the weights of {type(module).__name__}: {words}") from error
