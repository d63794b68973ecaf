"""OpenVINO: an .xml of the graph and a .bin of the weights, for Intel's and other x86 and ARM processors."""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .files import complete_or_absent, existing
from .predictor import Predictor, default_threads

if TYPE_CHECKING:
    import openvino as ov
    import pandas as pd

NAME = "OpenVINO"
RUNS = 5  # of the census
PRECISIONS = {"u8": "uint8", "i8": "int8", "f32": "float32", "bf16": "bfloat16", "f16": "float16", "i32": "int32"}
NO_KERNELS = ("Input", "Output", "Const")  # of its graph, and nothing to compute


def save(model: ov.Model, path: Path | str) -> Path:
    """Write the model's artifact, complete or not at all, and return its path.

    It is two files that belong together, .xml and .bin of one name. Weights are written as they are: by itself
    OpenVINO would halve float32 ones to float16.

    Args:
        model: an OpenVINO model; it is not changed.
        path: ends in ".xml".

    Raises:
        TypeError: another kind of model.
        ValueError: another ending.
    """
    ov = import_openvino()
    if not isinstance(model, ov.Model):
        raise TypeError(f"{NAME} saves an openvino.Model, not {type(model).__name__}; openvino.convert_model makes one")
    with complete_or_absent(path, ".xml") as partial:
        ov.save_model(model, partial, compress_to_fp16=False)
    return Path(path)


def load(source: Path | str | ov.Model, *, threads: int | None = None, precision: str | None = "f32") -> Predictor:
    """Return the model as a predictor.

    Args:
        source: the path of an artifact (.xml, or .onnx, which it reads as well), or the model itself.
        threads: for one call; as many as torch uses if None.
        precision: of what is not quantized: "f32", "bf16" or "f16". None leaves it to OpenVINO, which takes bf16 where
            the processor has instructions for it, also for a model whose weights are float32.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that is truncated or no model, or one that this runtime cannot run.
        ImportError: openvino is missing.
    """
    threads = default_threads(threads)
    hints = {"INFERENCE_NUM_THREADS": threads} | ({"INFERENCE_PRECISION_HINT": precision} if precision else {})
    compiled = _compiled(source, hints)
    dimensions = list(compiled.input(0).partial_shape)[1:]
    shape = tuple(None if size.is_dynamic else size.get_length() for size in dimensions)

    def forward(batch: Tensor) -> Tensor:
        return torch.from_numpy(compiled([batch.numpy()])[0].copy())  # of memory that the next call may reuse

    return Predictor(NAME, shape, threads, (source, hints), forward)


def kernels(predictor: Predictor, images: Tensor) -> pd.DataFrame:
    """Return what really computes: operator, precision, count, and share of the time, largest first.

    The precision is that of the activations. The model is loaded a second time, with the profiler.

    Args:
        predictor: from :func:`load`.
        images: float32 [N, C, H, W].
    """
    import pandas as pd

    source, hints = predictor.source
    compiled = _compiled(source, hints | {"PERF_COUNT": "YES"})
    compiled([images.contiguous().numpy()])
    first = _mean_times(compiled)  # in the first call kernels are made, and its time stays in all later means
    for _ in range(RUNS):
        compiled([images.contiguous().numpy()])
    means = _mean_times(compiled)
    rows = []
    for operation in compiled.get_runtime_model().get_ops():
        name = operation.get_friendly_name()
        kind, precision = (operation.get_rt_info()[key].value for key in ("layerType", "runtimePrecision"))
        if name in means and kind not in NO_KERNELS:
            time = max((1 + RUNS) * means[name] - first.get(name, 0), 0)
            rows.append((kind, PRECISIONS.get(precision, precision), time))
    table = pd.DataFrame(rows, columns=["operator", "precision", "time"]).groupby(["operator", "precision"])
    census = table.agg(count=("time", "size"), time=("time", "sum")).reset_index()
    census["share_of_time"] = census.pop("time") / max(sum(row[-1] for row in rows), 1)
    return census.sort_values("share_of_time", ascending=False, ignore_index=True)


def import_openvino() -> Any:
    """Return the package, with its reports to a web service switched off unless DEPLOYKIT_TELEMETRY=1.

    OpenVINO sends what it is used for, without asking. Where the reporting package seems absent it falls back to a
    stub of its own; this has to be so before the first import.
    """
    if os.environ.get("DEPLOYKIT_TELEMETRY") != "1":
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import openvino
    except ImportError as error:
        raise ImportError("OpenVINO is missing: pip install 'deploykit[openvino]'") from error
    return openvino


@functools.cache
def _core() -> Any:
    """Return the one Core of this process.

    Each has a stack for signals and puts the one before back when it ends. Where the older of two ended first, that one
    is gone, and the next Ctrl-C ends the process with a segmentation fault. One that never ends keeps its own in place.
    """
    return import_openvino().Core()


def _mean_times(compiled: Any) -> dict[str, int]:
    """Return the mean microseconds of each operation that was executed."""
    operations = compiled.get_runtime_model().get_ops()
    times = {op.get_friendly_name(): str(op.get_rt_info()["execTimeMcs"].value) for op in operations}
    return {name: int(time) for name, time in times.items() if time.isdigit()}


def _compiled(source: Path | str | ov.Model, hints: dict[str, Any]) -> Any:
    ov, core = import_openvino(), _core()
    in_memory = isinstance(source, ov.Model)
    given = source if in_memory else existing(source)
    try:
        return core.compile_model(given if in_memory else core.read_model(given), "CPU", hints)
    except Exception as error:  # some of its errors have no root but this
        what = "the model" if in_memory else str(source)
        raise ValueError(f"{NAME} cannot load {what}; is it whole, its .bin beside it? It says: {error}") from error
