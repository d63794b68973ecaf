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
OPTIMIZATIONS = {
    "none": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}
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


def load(
    source: Path | str | onnx.ModelProto,
    *,
    threads: int | None = None,
    spinning: bool = False,
    optimization: str = "all",
) -> Predictor:
    """Return the model as a predictor.

    Args:
        source: the path of an artifact, or the model itself.
        threads: for one call; as many as torch uses if None.
        spinning: let threads without work wait at full load, ready for the next call. That is what ONNX Runtime does
            by itself and what is best where nothing else runs; beside other contestants it robs them of the processor.
        optimization: of the graph when it is loaded: "none", "basic" (constants folded, what is redundant removed),
            "extended" (operators fused), or "all" (memory laid out for this processor as well).

    Raises:
        FileNotFoundError: no such file.
        ValueError: an unknown optimization, a file that is truncated or no ONNX model, or one that this runtime cannot
            run.
        ImportError: onnxruntime is missing.
    """
    threads = default_threads(threads)
    session = _session(source, threads, spinning=spinning, optimization=optimization)
    (images,) = session.get_inputs()
    shape = tuple(size if isinstance(size, int) else None for size in images.shape[1:])

    def forward(batch: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {images.name: batch.numpy()})[0])

    return Predictor(NAME, shape, threads, (source, optimization), forward)


def optimized(source: Path | str | onnx.ModelProto, optimization: str = "all") -> onnx.ModelProto:
    """Return the graph that is really executed: what :func:`load` makes of a model before the first call.

    It is for looking at. It may hold operators of one processor, and is loaded by this runtime only.

    Args:
        source: the path of an artifact, or the model itself.
        optimization: as for :func:`load`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: an unknown optimization, or a file that cannot be loaded.
        ImportError: onnx or onnxruntime is missing.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimized.onnx"
        _session(source, 1, optimization=optimization, write=path)
        return _onnx().load(path)


def kernels(predictor: Predictor, images: Tensor) -> pd.DataFrame:
    """Return what really computes: operator, precision, count, and share of the time, largest first.

    The precision is that of the first input, the activations. The model is loaded a second time, with the profiler.

    Args:
        predictor: from :func:`load`.
        images: float32 [N, C, H, W].
    """
    import pandas as pd

    source, optimization = predictor.source
    nodes = _node_events(source, images, predictor.threads, optimization)
    rows = [(event["args"]["op_name"], _precision(event), event["name"], event["dur"]) for event in nodes]
    rows = rows[len(rows) // (1 + RUNS) :]
    table = pd.DataFrame(rows, columns=["operator", "precision", "name", "time"]).groupby(["operator", "precision"])
    census = table.agg(count=("name", "nunique"), time=("time", "sum")).reset_index()
    census["share_of_time"] = census.pop("time") / sum(row[-1] for row in rows)
    return census.sort_values("share_of_time", ascending=False, ignore_index=True)


def memory_traffic(
    source: Path | str | onnx.ModelProto, images: Tensor, *, optimization: str = "all", threads: int | None = None
) -> float:
    """Return how many MiB the operators of one call read and write: activations and weights, as the profiler counts.

    What two operators pass on is counted twice, written and read. Caches may keep some of it from the memory.

    Args:
        source: the path of an artifact, or the model itself.
        images: float32 [N, C, H, W].
        optimization: as for :func:`load`.
        threads: for one call; as many as torch uses if None.
    """
    nodes = _node_events(source, images, default_threads(threads), optimization)
    sizes = ("activation_size", "parameter_size", "output_size")
    return sum(int(node["args"][size]) for node in nodes for size in sizes) / (1 + RUNS) / 2**20


def _node_events(
    source: Path | str | onnx.ModelProto, images: Tensor, threads: int, optimization: str = "all"
) -> list[dict[str, Any]]:
    """Return what the profiler says of each operator in each of ``1 + RUNS`` calls, in the order of time."""
    with tempfile.TemporaryDirectory() as folder:
        session = _session(source, threads, optimization=optimization, profile=Path(folder) / "profile")
        feed = {session.get_inputs()[0].name: images.contiguous().numpy()}
        for _ in range(1 + RUNS):
            session.run(None, feed)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    return [event for event in events if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")]


def _session(
    source: Path | str | onnx.ModelProto,
    threads: int,
    *,
    spinning: bool = False,
    optimization: str = "all",
    profile: Path | None = None,
    write: Path | None = None,
) -> Any:
    if optimization not in OPTIMIZATIONS:
        raise ValueError(f"optimization is {optimization!r}; choose one of {', '.join(map(repr, OPTIMIZATIONS))}")
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError("ONNX Runtime is missing: pip install 'deploykit[onnx]'") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, OPTIMIZATIONS[optimization])
    if write:
        options.optimized_model_filepath = str(write)
        options.log_severity_level = 3  # it warns that the file is for this processor, which is what it is for
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
