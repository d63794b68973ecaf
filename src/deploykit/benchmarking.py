"""One model in every runtime and precision that this machine has, in one table; a row that fails says why."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from deploykit.artifacts import batch_of, load_openvino, read_model
from deploykit.contestants import FLOAT_ROWS, QUANTIZED_ROWS, Setting, rows_of_file, rows_of_module
from deploykit.data import Batches, Dataset
from deploykit.evaluation import Accuracy, evaluate
from deploykit.measure import Measurement, Ratio, compare, measure
from deploykit.rows import Row, words_for
from deploykit.significance import paired_difference
from deploykit.untrusted import tried_apart

if TYPE_CHECKING:
    import pandas as pd

OPENING_S = 120.0  # that the child may take for a file


@dataclass(frozen=True)
class Benchmark:
    """What :func:`benchmark` found.

    Attributes:
        rows: in the order of the table; speeds and points are relative to the first that works.
        test_images: that the accuracies are of.
        calibration_images: of the training split, for int8.
        latency_batch: images in a batch where latency is meant: 1, unless the file takes another number only.
        batch: images in a batch where throughput is meant.
        untimed: why there are no times, or not those of one batch size; "" where there are.
    """

    rows: tuple[Row, ...]
    test_images: int
    calibration_images: int
    latency_batch: int
    batch: int
    untimed: str = ""

    def table(self) -> pd.DataFrame:
        """Return one row for each way to run the model, see :meth:`Row.figures`."""
        import pandas as pd

        return pd.DataFrame([row.figures() for row in self.rows])


def benchmark(
    model: nn.Module | Path | str,
    dataset: Dataset,
    *,
    batch: int = 64,
    test_images: int = 2000,
    calibration_images: int = 256,
    budget_s: float = 20.0,
    compiled: bool = False,
    report: Callable[[str], None] | None = None,
) -> Benchmark:
    """Measure a model in PyTorch, ONNX Runtime and OpenVINO, in float and int8: accuracy, speed and size.

    All rows see the same test images, and all speeds of a batch size come from one interleaved comparison. The
    artifacts of ONNX Runtime and OpenVINO, and an ONNX file from elsewhere, are made and tried in a child process: what
    crashes, hangs or takes all memory there is a row with a status here.

    Args:
        model: a module, of which a copy is measured in evaluation mode on the CPU; or the path of an ONNX file, for
            which there are no rows of PyTorch.
        dataset: its test images are only reported on, its training images calibrate int8.
        batch: images in a batch for throughput; the accuracy is computed in such batches, too.
        test_images: how many of the test split, in its classes' proportions.
        calibration_images: how many of the training split.
        budget_s: seconds of timing for each of the two batch sizes.
        compiled: add Inductor's packages, each of which takes a C++ compiler a minute or so.
        report: is told what is being done.

    Raises:
        FileNotFoundError: no such file.
        TypeError: neither a module nor a path.
        ValueError: a number below 1; a file that cannot be opened safely, or takes batches of one size only and of
            another than ``batch``; a model that does not fit the images or the classes; or a budget too small.
        ImportError: an ONNX file is given and onnx is missing.
    """
    counts = {"batch": batch, "test_images": test_images, "calibration_images": calibration_images}
    if wrong := [f"{name} is {value}" for name, value in counts.items() if value < 1]:
        raise ValueError(f"{wrong[0]}; give at least 1")
    if not isinstance(model, nn.Module | Path | str):
        raise TypeError(f"benchmark takes a torch.nn.Module or the path of an ONNX file, not {type(model).__name__}")
    report = report or (lambda _: None)
    calibration = _images(dataset, calibration_images)
    with tempfile.TemporaryDirectory(prefix="deploykit-benchmark-", ignore_cleanup_errors=True) as folder:
        setting = Setting(Path(folder), calibration, tuple(sorted({1, batch})), len(dataset.classes), report)
        if isinstance(model, nn.Module):
            rows = rows_of_module(model, setting, compiled=compiled)
        else:
            report(f"opening {Path(model).name} in a process of its own")
            facts = opened_apart(model, setting.model)
            setting = replace(setting, batches=_batch_sizes(facts, batch, calibration, Path(model).name))
            rows = list(rows_of_file(QUANTIZED_ROWS if facts["quantized"] else FLOAT_ROWS, setting))
        fixed = 1 not in setting.batches
        judge_rows(rows, Batches(dataset.test.take(test_images), dataset, batch_size=batch, drop_last=fixed), report)
        untimed = "; ".join(filter(None, [time_rows(rows, size, setting, budget_s) for size in setting.batches]))
        seen = next((row.accuracy.images for row in rows if row.accuracy), 0)
    return Benchmark(tuple(rows), seen, len(calibration), min(setting.batches), batch, untimed)


def opened_apart(source: Path | str, target: Path) -> dict[str, Any]:
    """Have a child process open an ONNX file and write it anew as one whole file; returns what ``read_model`` does.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it cannot be opened; also where the process that tried it died, hung, or took too much memory.
        ImportError: onnx is missing.
    """
    if not Path(source).is_file():
        raise FileNotFoundError(f"there is no file {source}; export_onnx makes a model, and onnx.save the file")
    facts: dict[str, Any] = _apart(read_model, source, {"source": str(source), "target": str(target)})
    return facts


def loaded_apart(source: Path | str) -> None:
    """Have a child process load an OpenVINO model, .xml with its .bin beside it, and compile it.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it cannot be loaded; also where the process that tried it died, hung, or took too much memory.
        ImportError: openvino is missing.
    """
    if not Path(source).is_file():
        raise FileNotFoundError(f"there is no file {source}")
    _apart(load_openvino, source, {"source": str(source)})


def _apart(function: Callable[..., Any], source: Path | str, job: Mapping[str, Any]) -> Any:
    (outcome,) = tried_apart(function, [job], seconds=OPENING_S)
    if outcome.kind == "ImportError":
        raise ImportError(outcome.error)
    if outcome.kind in ("died", "time", "MemoryError"):
        raise ValueError(f"{source} is not safe to open: {outcome.error}; do not use it")
    if outcome.error:
        raise ValueError(outcome.error)
    return outcome.value


def _images(dataset: Dataset, count: int) -> Tensor:
    """Return training images, float32 [N, 3, H, W]."""
    batches = Batches(dataset.train.take(count), dataset, batch_size=count)
    return torch.cat([images for images, _ in batches]).contiguous()


def _batch_sizes(facts: dict[str, Any], batch: int, images: Tensor, name: str) -> tuple[int, ...]:
    """Return the sizes to time: 1 and ``batch``, or the only one that the file takes.

    Raises:
        ValueError: the file takes other images, or batches of another size only.
    """
    wanted = [facts[side] for side in ("channels", "height", "width")]
    if any(size not in (None, found) for size, found in zip(wanted, images.shape[1:], strict=True)):
        sizes = ", ".join("any" if size is None else str(size) for size in wanted)
        raise ValueError(f"{name} takes images [{sizes}], and the data has {list(images.shape[1:])}; give other data")
    if facts["batch"] is None:
        return tuple(sorted({1, batch}))
    if facts["batch"] != batch:
        raise ValueError(
            f"{name} takes batches of {facts['batch']} only, and the batch is {batch}; give that number, or export the "
            "model with a free batch size"
        )
    return (batch,)


def _working(rows: list[Row]) -> Iterator[tuple[Row, Callable[[Tensor], Tensor]]]:
    for row in rows:
        if row.ok and row.predictor is not None:
            yield row, row.predictor


def judge_rows(rows: list[Row], batches: Batches, report: Callable[[str], None]) -> None:
    """Add accuracies, and the differences to the first row that has one."""
    first: Accuracy | None = None
    for row, predictor in _working(rows):
        report(f"accuracy of {row.name}")
        try:
            row.accuracy = evaluate(predictor, batches)
        except Exception as error:  # noqa: BLE001 - whatever a runtime raises; the other rows go on
            row.status = words_for(error)
            continue
        if first is not None:
            row.difference = paired_difference(first.correct, row.accuracy.correct)
        first = first or row.accuracy


def time_rows(rows: list[Row], size: int, setting: Setting, budget_s: float) -> str:
    """Add the times of batches of one size, of all rows in turns; returns why there are none, "" where there are.

    A budget that turns out too small must not cost what minutes of work have found before.
    """
    contestants = {row.name: predictor for row, predictor in _working(rows)}
    images = batch_of(setting.calibration, size)
    setting.report(f"timing batches of {size}")
    taken: dict[str, Measurement] = {}
    ratios: dict[str, Ratio] = {}
    try:
        if len(contestants) == 1:
            ((name, predictor),) = contestants.items()
            taken[name] = measure(predictor, images, label=name, budget_s=budget_s)
        elif contestants:
            compared = compare(contestants, images, budget_s=budget_s)
            taken, ratios = dict(compared.measurements), {name: compared.ratio(name) for name in contestants}
    except ValueError as error:
        return f"batches of {size}: {error}"
    for row, _ in _working(rows):
        if size == min(setting.batches):
            row.latency, row.latency_ratio = taken.get(row.name), ratios.get(row.name)
        if size == max(setting.batches):
            row.throughput, row.ratio = taken.get(row.name), ratios.get(row.name)
    return ""
