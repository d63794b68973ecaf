"""``deploykit benchmark``: one model in every runtime and precision, in one table."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deploykit.cli import output
from deploykit.cli.contract import Status, StopError
from deploykit.cli.data import DATASETS, open_dataset

if TYPE_CHECKING:
    from torch import nn

    from deploykit.benchmarking import Benchmark
    from deploykit.contestants import Row
    from deploykit.data import Dataset

PIXELS = 32
NOTHING = "-"
HEAD = ("runtime", "precision", "accuracy", "points lost", "ms", "images/s", "faster", "MiB", "status")


def benchmark(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A network of the course (resnet20), a checkpoint folder, an ONNX file, or FILE.py:FUNCTION, which is "
            "executed and returns a torch module.",
        ),
    ],
    *,
    weights: Annotated[
        Path | None, typer.Option(show_default=False, help="Safetensors file for the module of FILE.py:FUNCTION.")
    ] = None,
    data: Annotated[str, typer.Option(help=DATASETS)] = "auto",
    size: Annotated[int, typer.Option(min=1, help="Pixels of a side that a folder's images are brought to.")] = PIXELS,
    images: Annotated[int, typer.Option(min=1, help="Test images for the accuracy.")] = 2000,
    batch: Annotated[int, typer.Option(min=1, help="Images in a batch for the throughput.")] = 64,
    seconds: Annotated[float, typer.Option(min=0.1, help="For the timing at each of the two batch sizes.")] = 20.0,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Add Inductor's packages: a C++ compiler, and minutes.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(show_default=False, help="Folder to write the table to, as benchmark.csv.")
    ] = None,
    as_json: output.Json = False,
) -> None:
    """Measure one model in every runtime and precision.

    Accuracy, speed and size in PyTorch, ONNX Runtime and OpenVINO, in float and int8; all speeds from one interleaved
    comparison, and what is lost or gained is relative to the first row. A row that fails says why; status 1 when all
    do. An ONNX file is opened in a child process first, with limits on its memory and time.
    """
    from deploykit.noise import silence_known_noise

    silence_known_noise()
    from deploykit import benchmarking

    _refuse_what_is_not_there(model, weights)
    dataset = _dataset(data, size)
    given = model if model.endswith(".onnx") else _module(model, weights, dataset)
    found = benchmarking.benchmark(
        given,
        dataset,
        batch=batch,
        test_images=images,
        budget_s=seconds,
        compiled=compiled,
        report=output.say,
    )
    if out is not None:
        _write(found, out)
    if as_json:
        output.document(_as_json(found, model, dataset))
    else:
        output.show(_text(found, model, dataset))
    raise typer.Exit(Status.DONE if any(row.ok for row in found.rows) else Status.FAILED_CHECK)


def _refuse_what_is_not_there(model: str, weights: Path | None) -> None:
    """Refuse, before data are loaded, a file that is missing.

    Raises:
        StopError: ``--weights`` for something that brings its own.
        FileNotFoundError: no such file.
    """
    file, function = _of_code(model)
    if weights is not None and not function:
        raise StopError("--weights is for FILE.py:FUNCTION; other models bring their own", Status.USAGE)
    named = [Path(file) if function else None, weights, Path(model) if model.endswith(".onnx") else None]
    for path in named:
        if path is not None and not path.is_file():
            raise FileNotFoundError(f"there is no file {path}; check the path")


def _of_code(model: str) -> tuple[str, str]:
    """Split FILE.py:FUNCTION; the function is "" where it is something else."""
    file, colon, function = model.rpartition(":")
    return (file, function) if colon and file.endswith(".py") else (model, "")


def _dataset(name: str, size: int) -> Dataset:
    from deploykit.data import load_dataset

    return open_dataset(name) if size == PIXELS else load_dataset(name, size=size)


def _module(model: str, weights: Path | None, dataset: Dataset) -> nn.Module:
    from deploykit import models

    file, function = _of_code(model)
    if function:
        return _built(Path(file), function, weights)
    if Path(model).is_dir():
        return models.load_checkpoint(model, classes=len(dataset.classes))
    return models.load_pretrained(model, dataset.name)


def _built(file: Path, function: str, weights: Path | None) -> nn.Module:
    """Execute the reader's file and return what its function builds.

    Raises:
        StopError: it fails, has no such function, or that returns something else than a module.
        ValueError: the weights do not fit.
    """
    from torch import nn

    output.say(f"executing {file}, and {function}() in it")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None:
        raise StopError(f"{file} cannot be imported; check that it is a Python file", Status.USAGE)
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(file.resolve().parent))  # as Python does for a program: it may import its neighbours
    sys.modules[spec.name] = module  # dataclasses, and export's traces, look it up there
    try:
        spec.loader.exec_module(module)
        built = getattr(module, function)()
    except Exception as error:
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


def _load(module: nn.Module, weights: Path) -> None:
    import safetensors.torch

    try:
        module.load_state_dict(safetensors.torch.load_file(weights))
    except (safetensors.SafetensorError, RuntimeError) as error:
        words = " ".join(str(error).split())
        raise ValueError(f"{weights} does not hold the weights of {type(module).__name__}: {words}") from error


def _write(found: Benchmark, folder: Path) -> None:
    from deploykit.places import atomic_write

    with atomic_write(folder / "benchmark.csv") as partial:
        found.table().to_csv(partial, index=False)


def _as_json(found: Benchmark, model: str, dataset: Dataset) -> dict[str, Any]:
    import torch

    from deploykit.machine import machine

    return {
        "model": model,
        "dataset": dataset.name,
        "test_images": found.test_images,
        "calibration_images": found.calibration_images,
        "latency_batch": found.latency_batch,
        "batch": found.batch,
        "cpu": machine()["cpu"],
        "threads": torch.get_num_threads(),
        "untimed": _untimed(found),
        "rows": [row.figures() for row in found.rows],
    }


def _text(found: Benchmark, model: str, dataset: Dataset) -> str:
    lines = [
        output.paragraph(
            f"{model} on {dataset.name}: {found.test_images:,} test images, {found.calibration_images} training images "
            f"to calibrate int8; ms for a batch of {found.latency_batch}, images/s and faster for batches of "
            f"{found.batch}"
        ),
        "",
        output.table([_cells(row) for row in found.rows], head=HEAD),
    ]
    if found.untimed:
        lines += ["", output.paragraph(f"Not timed: {_untimed(found)}")]
    if failed := [(row.name, row.status) for row in found.rows if not row.ok]:
        lines += ["", "Not measured:", output.table(failed)]
    return "\n".join(lines)


def _untimed(found: Benchmark) -> str:
    """Say why there are no times in the words of the command line."""
    return found.untimed.replace("budget_s=", "--seconds ")


def _cells(row: Row) -> tuple[str, ...]:
    from deploykit.significance import decimals_allowed

    if not row.ok:
        return row.runtime, row.precision, *(NOTHING,) * 6, "failed"
    shown = row.figures()
    faster = lost = NOTHING
    if row.ratio is not None and row.difference is not None:
        value, low, high = row.ratio
        faster = f"{value:.{decimals_allowed(value, high - low)}f}x"
    if row.difference is not None:
        lost = "{points_lost:.2f} ({points_lost_low:.2f} to {points_lost_high:.2f})".format(**shown)
    return (
        row.runtime,
        row.precision,
        "{accuracy:.1%} ({accuracy_low:.1%} to {accuracy_high:.1%})".format(**shown),
        lost,
        "{latency_ms:.3g}".format(**shown) if row.latency else NOTHING,
        "{images_per_s:,.0f}".format(**shown) if row.throughput else NOTHING,
        faster,
        "{size_mib:.2f}".format(**shown),
        row.status,
    )
