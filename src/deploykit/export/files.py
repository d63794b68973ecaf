"""ONNX files: read whole or refused, and freed of what tells where they were made."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx

OPSET = 20  # what torch's exporter writes by itself
SUPPORTED_OPSETS = range(18, 24)  # that it can write


def load_onnx(source: Path | str | onnx.ModelProto) -> onnx.ModelProto:
    """Return a model with all of its weights, checked against ONNX's rules.

    Weights in other files are read from the model's own folder and nowhere else: a path upwards, an absolute one and
    a link are refused, since a file that came from somewhere could otherwise read any other of yours.

    Args:
        source: a path, or a model that is in memory already, of which a copy is returned.

    Raises:
        FileNotFoundError: no such file.
        TypeError: neither a path nor a model.
        ValueError: it is truncated, no ONNX, against ONNX's rules, or its weights are not where they may be.
        ImportError: onnx is missing.
    """
    onnx = import_onnx()
    if isinstance(source, onnx.ModelProto):
        model = onnx.ModelProto()
        model.CopyFrom(source)
        what = "the model"
    elif isinstance(source, Path | str):
        what = str(source)
        if not Path(source).is_file():
            raise FileNotFoundError(f"there is no file {source}; export_onnx makes a model, and onnx.save the file")
        model = _read(Path(source))
    else:
        raise TypeError(f"an ONNX model is a path or an onnx.ModelProto, not {type(source).__name__}")
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # of the checker and of shape inference, which have no common root but this
        raise ValueError(f"{what} is against the rules of ONNX: {_first_line(error)}; export it again") from error
    return model


def strip(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Remove from ``proto``, in place, all that no runtime reads: notes of exporters (machine paths) and shapes."""
    for node in proto.graph.node:
        del node.metadata_props[:]
        node.ClearField("doc_string")
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.initializer):
        del value.metadata_props[:]
        value.ClearField("doc_string")
    for holder in (proto, proto.graph):
        del holder.metadata_props[:]
        holder.ClearField("doc_string")
    del proto.graph.value_info[:]
    return proto


def opset_of(proto: onnx.ModelProto) -> int:
    """Return the version of ONNX's own operators that a model asks for; 0 if it names none."""
    return max((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), default=0)


def import_onnx() -> Any:
    """Return the package.

    Raises:
        ImportError: it is missing; the message names the extra.
    """
    try:
        import onnx
    except ImportError as error:
        raise ImportError("onnx is missing: pip install 'deploykit[onnx]'") from error
    return onnx


def _read(path: Path) -> onnx.ModelProto:
    onnx = import_onnx()
    try:
        return onnx.load(path)
    except onnx.checker.ValidationError as error:
        raise ValueError(
            f"the weights of {path} lie where they may not: {_first_line(error)}. Only files in the model's folder "
            "are read; put them there, or save the model as one file"
        ) from error
    except Exception as error:  # protobuf's own error has a different home in each of its versions
        raise ValueError(f"{path} cannot be read; is it whole, and ONNX? It says: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
