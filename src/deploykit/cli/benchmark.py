"""``deploykit benchmark``: one model in every runtime and precision, in one table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deploykit.cli import models, output
from deploykit.cli.contract import Status
from deploykit.cli.data import DATASETS

if TYPE_CHECKING:
    from deploykit.benchmarking import Benchmark
    from deploykit.data import Dataset
    from deploykit.rows import Row

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
    weights: Annotated[Path | None, typer.Option(show_default=False, help=models.WEIGHTS)] = None,
    data: Annotated[str, typer.Option(help=DATASETS)] = "auto",
    size: Annotated[int, typer.Option(min=1, help=models.SIZE)] = models.PIXELS,
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

    models.refuse_mistakes(model, weights, data)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)  # before minutes are spent on what could not be written
    dataset = models.sized_dataset(data, size)
    given = model if model.endswith(".onnx") else models.module_of(model, weights, dataset)
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
    figures = row.shown()
    return row.runtime, row.precision, *(figures[name] for name in HEAD[2:-1]), row.status if row.ok else "failed"
