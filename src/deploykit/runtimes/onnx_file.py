"""An ONNX file, and the files beside it that hold its weights; none from elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .files import existing


def read_onnx(source: Path | str) -> tuple[Any, ...]:
    """Return the model, without the weights that lie in other files, and the paths of these files.

    Raises:
        FileNotFoundError: no such file, or one with weights is missing.
        ValueError: no ONNX model, or a file with weights that is not in the model's folder.
        ImportError: onnx is missing.
    """
    path = existing(source)
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError as error:
        raise ImportError("onnx is missing: pip install 'deploykit[onnx]'") from error
    try:
        proto = onnx.load(path, load_external_data=False)
    except DecodeError as error:
        raise ValueError(f"{path} is no ONNX model, or is truncated: {error}") from error
    if not proto.graph.node or not proto.opset_import:
        raise ValueError(f"{path} is no ONNX model: there is not one operator in it")
    outside = [stored for stored in proto.graph.initializer if stored.data_location == stored.EXTERNAL]
    named = sorted({entry.value for stored in outside for entry in stored.external_data if entry.key == "location"})
    return proto, *(_beside(path, name) for name in named)


def _beside(path: Path, name: str) -> Path:
    folder, file = path.parent.resolve(), path.parent / name
    if not file.resolve().is_relative_to(folder):
        raise ValueError(
            f"{path.name} takes weights from {name}, outside its folder; a model may read files beside it and no "
            "others: save it again with its weights inside"
        )
    if not file.is_file():
        raise FileNotFoundError(f"{path.name} has weights in {name}, and there is no such file beside it; copy both")
    return file
