"""What Triton has to know of a model's file, and how the file gets into its repository."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.export import load_onnx
from deploykit.runtimes import onnxruntime

if TYPE_CHECKING:
    import onnx
    import openvino as ov

FREE = -1  # a size
# What ONNX and OpenVINO call the types of tensors, in Triton's words.
ONNX_TYPES = {
    "FLOAT": "FP32", "DOUBLE": "FP64", "FLOAT16": "FP16", "BFLOAT16": "BF16", "BOOL": "BOOL", "STRING": "STRING",
    **{f"{sign}INT{bits}": f"{sign}INT{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64)},
}  # fmt: skip
OPENVINO_TYPES = {
    "f32": "FP32", "f64": "FP64", "f16": "FP16", "bf16": "BF16", "boolean": "BOOL", "string": "STRING",
    **{f"{sign}{bits}": f"{'U' * (sign == 'u')}INT{bits}" for sign in ("i", "u") for bits in (8, 16, 32, 64)},
}  # fmt: skip


@dataclass(frozen=True)
class Tensor:
    """What a model takes or gives.

    Attributes:
        name: in the model.
        type: in Triton's words, without ``TYPE_``.
        dims: without the first one, the batch; -1 is a size that is free.
    """

    name: str
    type: str
    dims: tuple[int, ...]


@dataclass(frozen=True)
class Artifact:
    """A model's file, read.

    Attributes:
        backend: of Triton, that runs it.
        file: what it is called in the repository.
        inputs: what the model takes.
        outputs: what it gives.
        save: writes it into a folder.
    """

    backend: str
    file: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    save: Callable[[Path], None]


def read_artifact(path: Path) -> Artifact:
    """Read a model's file.

    Raises:
        FileNotFoundError: no such file, or no .bin.
        ValueError: another kind of file, or one that is damaged, for batches of a fixed size, or of a type that Triton
            does not know.
        ImportError: onnx or openvino is missing.
    """
    if path.suffix == ".onnx":
        return _onnx(path)
    if path.suffix == ".xml":
        return _openvino(path)
    raise ValueError(f"{path.name} ends in neither .onnx nor .xml; export the model to one of them")


def _onnx(path: Path) -> Artifact:
    model = load_onnx(path)
    from onnx import TensorProto

    def tensor(value: onnx.ValueInfoProto) -> Tensor:
        kind = value.type.tensor_type
        dims = [size.dim_value if size.HasField("dim_value") else FREE for size in kind.shape.dim]
        return _tensor(path, value.name, ONNX_TYPES.get(TensorProto.DataType.Name(kind.elem_type)), dims)

    weights = {weight.name for weight in model.graph.initializer}
    inputs = tuple(tensor(value) for value in model.graph.input if value.name not in weights)
    outputs = tuple(tensor(value) for value in model.graph.output)

    def save(folder: Path) -> None:
        onnxruntime.save(model, folder / "model.onnx")

    return Artifact("onnxruntime", "model.onnx", inputs, outputs, save)


def _openvino(path: Path) -> Artifact:
    try:
        import openvino as ov
    except ImportError as error:
        raise ImportError("OpenVINO is missing: pip install 'deploykit[openvino]'") from error
    weights = path.with_suffix(".bin")
    for file in (path, weights):
        if not file.is_file():
            raise FileNotFoundError(f"there is no file {file}; an OpenVINO model is an .xml and a .bin beside it")
    try:
        model = ov.Core().read_model(path)
    except RuntimeError as error:
        raise ValueError(f"{path} cannot be read; is it whole, and OpenVINO? It says: {error}") from error

    def tensor(port: ov.Output) -> Tensor:
        dims = [FREE if size.is_dynamic else size.get_length() for size in port.partial_shape]
        return _tensor(path, port.any_name, OPENVINO_TYPES.get(port.element_type.get_type_name()), dims)

    def save(folder: Path) -> None:
        shutil.copyfile(path, folder / "model.xml")
        shutil.copyfile(weights, folder / "model.bin")

    inputs, outputs = (tuple(map(tensor, ports)) for ports in (model.inputs, model.outputs))
    return Artifact("openvino", "model.xml", inputs, outputs, save)


def _tensor(path: Path, name: str, kind: str | None, dims: list[int]) -> Tensor:
    """Return a tensor without its batch.

    Raises:
        ValueError: the batch has a fixed size, or Triton does not know the type.
    """
    if kind is None:
        raise ValueError(f"{name} of {path.name} has a type that Triton does not know; convert the model")
    if len(dims) < 2 or dims[0] != FREE:  # noqa: PLR2004 - Triton takes no tensor without dimensions besides the batch
        raise ValueError(
            f"{name} of {path.name} has the shape {dims}, and the first of at least two dimensions has to be free: "
            "it is the batch; export the model with a free batch size"
        )
    return Tensor(name, kind, tuple(dims[1:]))
