"""ONNX Runtime: one .onnx file, any machine."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .files import complete_or_absent, existing
from .predictor import Predictor, default_threads

if TYPE_CHECKING:
    import onnx
    import pandas as pd

NAME = "ONNX Runtime"
RUNS = 5  # of the census, after one that is left out
ELEMENT_TYPES = {"float": "float32", "double": "float64"}  # its names, where they are not those of torch


def save(model: onnx.ModelProto, path: Path | str) -> Path:
    """Write the model's artifact, complete or not at all, and return its path.

    It is one file with the weights inside, without the notes of exporters: they hold machine paths, and up to a third
    of an int8 file.

    Args:
        model: an ONNX model with its weights; it is not changed.
        path: ends in ".onnx".

    Raises:
        TypeError: another kind of model.
        ValueError: another ending, or a model whose weights lie in another file.
    """
    onnx = _onnx()
    if not isinstance(model, onnx.ModelProto):
        raise TypeError(f"{NAME} saves an onnx.ModelProto, not {type(model).__name__}; export_onnx makes one")
    if outside := [tensor.name for tensor in model.graph.initializer if tensor.data_location == tensor.EXTERNAL]:
        raise ValueError(f"the weights lie in another file ({outside[0]}, ...); load the model with onnx.load")
    with complete_or_absent(path, ".onnx") as partial:
        partial.write_bytes(_without_notes(model).SerializeToString())
    return Path(path)


def load(source: Path | str | onnx.ModelProto, *, threads: int | None = None, spinning: bool = False) -> Predictor:
    """Return the model as a predictor.

    Args:
        source: the path of an artifact, or the model itself.
        threads: for one call; as many as torch uses if None.
        spinning: let threads without work wait at full load, ready for the next call. That is what ONNX Runtime does
            by itself and what is best where nothing else runs; beside other contestants it robs them of the processor.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that is truncated or no ONNX model, or one that this runtime cannot run.
        ImportError: onnxruntime is missing.
    """
    threads = default_threads(threads)
    session = _session(source, threads, spinning=spinning)
    (images,) = session.get_inputs()
    shape = tuple(size if isinstance(size, int) else None for size in images.shape[1:])

    def forward(batch: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {images.name: batch.numpy()})[0])

    return Predictor(NAME, shape, threads, source, forward)


def kernels(predictor: Predictor, images: Tensor) -> pd.DataFrame:
    """Return what really computes: operator, precision, count, and share of the time, largest first.

    The precision is that of the first input, the activations. The model is loaded a second time, with the profiler.

    Args:
        predictor: from :func:`load`.
        images: float32 [N, C, H, W].
    """
    import pandas as pd

    with tempfile.TemporaryDirectory() as folder:
        session = _session(predictor.source, predictor.threads, profile=Path(folder) / "profile")
        feed = {session.get_inputs()[0].name: images.contiguous().numpy()}
        for _ in range(1 + RUNS):
            session.run(None, feed)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    nodes = [event for event in events if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")]
    rows = [(event["args"]["op_name"], _precision(event), event["name"], event["dur"]) for event in nodes]
    rows = rows[len(rows) // (1 + RUNS) :]
    table = pd.DataFrame(rows, columns=["operator", "precision", "name", "time"]).groupby(["operator", "precision"])
    census = table.agg(count=("name", "nunique"), time=("time", "sum")).reset_index()
    census["share_of_time"] = census.pop("time") / sum(row[-1] for row in rows)
    return census.sort_values("share_of_time", ascending=False, ignore_index=True)


def _session(
    source: Path | str | onnx.ModelProto, threads: int, *, spinning: bool = False, profile: Path | None = None
) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError("ONNX Runtime is missing: pip install 'deploykit[onnx]'") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    if profile:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    in_memory = not isinstance(source, Path | str)
    given = source.SerializeToString() if in_memory else str(existing(source))  # type: ignore[union-attr]
    try:
        return onnxruntime.InferenceSession(given, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no common root but this
        what = "the model" if in_memory else str(source)
        raise ValueError(f"{NAME} cannot load {what}; is it whole, and ONNX? It says: {error}") from error


def _precision(event: dict[str, Any]) -> str:
    inputs = event["args"].get("input_type_shape") or [{"": []}]
    name = next(iter(inputs[0]))
    return ELEMENT_TYPES.get(name, name)


def _without_notes(model: onnx.ModelProto) -> onnx.ModelProto:
    copied = _onnx().ModelProto()
    copied.CopyFrom(model)
    graph = copied.graph
    for holder in (copied, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        del holder.metadata_props[:]
        holder.ClearField("doc_string")
    del graph.value_info[:]
    return copied


def _onnx() -> Any:
    try:
        import onnx
    except ImportError as error:
        raise ImportError("onnx is missing: pip install 'deploykit[onnx]'") from error
    return onnx
