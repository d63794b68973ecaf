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
from deploykit.cli.data import NAMED, open_dataset, refuse_no_dataset

if TYPE_CHECKING:
    from torch import nn

    from deploykit.data import Dataset

PIXELS = 32
WEIGHTS = "Safetensors file for the module of FILE.py:FUNCTION."
SIZE = (
    "Pixels of a side: a folder's images are cropped to a square, scaled to that, and normalised by their own mean and "
    "standard deviation. A network trained on ImageNet wants 224."
)
OF_TORCH_SAVE = (".pt", ".pth", ".ckpt", ".bin", ".pkl")
CONVERT = (
    "weights are read from safetensors: write them with safetensors.torch.save_file(model.state_dict(), "
    "'weights.safetensors')"
)


def refuse_mistakes(model: str, weights: Path | None, data: str) -> None:
    """Refuse what cannot be a model, its weights or its data, before data are fetched and a reader's file is executed.

    Raises:
        StopError: MODEL is a file of another kind, or FILE.py without its function; or ``--weights`` for something
            that brings its own.
        FileNotFoundError: no such file, checkpoint or folder of data.
        ValueError: the weights are no safetensors file, or the checkpoint is damaged.
    """
    file, function = of_code(model)
    if not function:
        _refuse_no_model(model)
    if weights is not None and not function:
        raise StopError("--weights is for FILE.py:FUNCTION; other models bring their own", Status.USAGE)
    named = [Path(file) if function else None, weights, Path(model) if model.endswith(".onnx") else None]
    for path in named:
        if path is not None and not path.is_file():
            raise FileNotFoundError(f"there is no file {path}; check the path")
    if weights is not None:
        _refuse_other_weights(weights)
    refuse_no_dataset(data)
    if not function and not model.endswith(".onnx"):
        _refuse_no_checkpoint(model, data)


def _refuse_no_model(model: str) -> None:
    if (file := model.removesuffix(":")).endswith(".py"):
        raise StopError(
            f"{model} does not say which function returns the module; write {file}:build for build() in it",
            Status.USAGE,
        )
    if model.endswith(OF_TORCH_SAVE) and not Path(model).is_dir():
        raise StopError(
            f"{model} is a file of torch.save, and deploykit loads no pickle; {CONVERT}, and give FILE.py:FUNCTION "
            "--weights weights.safetensors to benchmark or optimize",
            Status.USAGE,
        )
    if Path(model).is_file() and not model.endswith(".onnx"):
        raise StopError(
            f"{model} is no model; give a network of the course (resnet20), a checkpoint folder, or FILE.py:FUNCTION, "
            "to which --weights adds a safetensors file",
            Status.USAGE,
        )


def _refuse_other_weights(weights: Path) -> None:
    import safetensors

    try:
        with safetensors.safe_open(weights, framework="numpy"):  # reads its head only
            pass
    except safetensors.SafetensorError as error:
        raise ValueError(f"{weights} is no whole safetensors file ({error}); {CONVERT}") from error


def _refuse_no_checkpoint(model: str, data: str) -> None:
    from deploykit import models
    from deploykit.places import data_folder

    if Path(model).is_dir():
        models.load_checkpoint(model)
    elif len(Path(model).parts) > 1:
        raise FileNotFoundError(f"there is no checkpoint folder {model}; check the path")
    elif data in NAMED:
        models.find_pretrained(model, data)
    elif not any(folder.name.startswith(f"{model}-") for folder in (data_folder() / "checkpoints").glob("*")):
        models.find_pretrained(model)  # whatever auto turns out to be, there is none


def of_code(model: str) -> tuple[str, str]:
    """Split FILE.py:FUNCTION; the function is "" where it is something else."""
    file, colon, function = model.rpartition(":")
    return (file, function) if colon and file.endswith(".py") else (model, "")


def sized_dataset(name: str, size: int) -> Dataset:
    """Load the dataset that ``--data`` names, a folder's images at ``--size`` pixels, and say what was done to them."""
    from deploykit.data import load_dataset

    dataset = open_dataset(name) if size == PIXELS else load_dataset(name, size=size)
    if dataset.name not in NAMED:
        output.say(
            f"{dataset.name}: images cropped to their central square, scaled to {size}x{size} pixels (--size), and "
            "normalised by the folder's own mean and standard deviation"
        )
    return dataset


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
