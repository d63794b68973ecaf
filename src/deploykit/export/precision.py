"""The same ONNX model in a smaller float type: half of the bytes, and float32 where it enters and leaves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .files import import_onnx, load_onnx, opset_of, strip

if TYPE_CHECKING:
    import onnx

TYPES = ("float16", "bfloat16")
BFLOAT16_OPSET = 22  # the first in which ONNX's convolution takes it


def convert_precision(source: Path | str | onnx.ModelProto, dtype: str) -> onnx.ModelProto:
    """Return a float32 model that stores its weights and computes in ``dtype``; what is given is not changed.

    Input and output stay float32, with a Cast beside each, so that callers notice nothing. This is how a strongly
    typed runtime such as TensorRT is told to use a type: there is no other switch. On a CPU ONNX Runtime casts float16
    back to float32 around each operator, and has no bfloat16 convolution at all.

    Args:
        source: a path, or a model in memory.
        dtype: "float16", which keeps 11 bits of a number and overflows beyond 65,504: operators known to suffer stay in
            float32. Or "bfloat16", with the range of float32 and 8 bits.

    Raises:
        FileNotFoundError: no such file.
        ValueError: an unknown type, a model that is not float32, or, for bfloat16, of an opset below 22.
        ImportError: onnx or onnxruntime is missing.
    """
    if dtype not in TYPES:
        raise ValueError(f"dtype is {dtype!r}; choose one of {', '.join(map(repr, TYPES))}")
    model = load_onnx(source)
    _check_float32(model)
    return strip(_to_float16(model) if dtype == "float16" else _to_bfloat16(model))


def _check_float32(model: onnx.ModelProto) -> None:
    if quantized := [node.name for node in model.graph.node if "Quantize" in node.op_type or "QLinear" in node.op_type]:
        raise ValueError(
            f"the model is quantized already ({quantized[0]}, ...); convert the float32 model, and quantize it instead "
            "of halving it where integers are what you want"
        )
    element = import_onnx().TensorProto
    other = [t.name for t in model.graph.initializer if t.data_type in (element.FLOAT16, element.BFLOAT16)]
    if other:
        raise ValueError(f"{other[0]} is not float32; convert the float32 model")


def _to_float16(model: onnx.ModelProto) -> onnx.ModelProto:
    try:
        from onnxruntime.transformers.float16 import convert_float_to_float16
        from onnxruntime.transformers.onnx_model import OnnxModel
    except ImportError as error:
        raise ImportError("ONNX Runtime is missing: pip install 'deploykit[onnx]'") from error
    converted = convert_float_to_float16(model, keep_io_types=True)
    OnnxModel.graph_topological_sort(converted.graph)  # it appends the Casts, wherever they belong
    return load_onnx(converted)


def _to_bfloat16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Make every float32 tensor of the graph bfloat16; with the range of float32 no operator needs an exception."""
    onnx = import_onnx()
    if opset_of(model) < BFLOAT16_OPSET:
        raise ValueError(
            f"the model is of opset {opset_of(model)}, whose convolution does not take bfloat16; export it with "
            f"opset={BFLOAT16_OPSET}"
        )
    graph, element = model.graph, onnx.TensorProto
    for tensor in graph.initializer:
        _halve(tensor)
    for attribute in (attribute for node in graph.node for attribute in node.attribute):
        if attribute.name == "to" and attribute.i == element.FLOAT:
            attribute.i = element.BFLOAT16
        elif attribute.type == onnx.AttributeProto.TENSOR:
            _halve(attribute.t)
    first = [_cast_input(graph, value.name) for value in graph.input if _is_float(value)]
    last = [_cast_output(graph, value.name) for value in graph.output if _is_float(value)]
    nodes = [*first, *graph.node, *last]
    del graph.node[:]
    graph.node.extend(nodes)
    return load_onnx(model)


def _halve(tensor: onnx.TensorProto) -> None:
    onnx = import_onnx()
    if tensor.data_type == onnx.TensorProto.FLOAT:
        import ml_dtypes  # a dependency of onnx

        values = onnx.numpy_helper.to_array(tensor).astype(ml_dtypes.bfloat16)
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))


def _is_float(value: onnx.ValueInfoProto) -> bool:
    return value.type.tensor_type.elem_type == import_onnx().TensorProto.FLOAT


def _renamed(graph: onnx.GraphProto, name: str) -> str:
    """Give a tensor another name in every node, so that a Cast fits between it and the outside; return that name."""
    inside = f"{name}_bfloat16"
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [inside if given == name else given for given in names]
    return inside


def _cast_input(graph: onnx.GraphProto, name: str) -> Any:
    onnx = import_onnx()
    return onnx.helper.make_node("Cast", [name], [_renamed(graph, name)], f"{name}/Cast", to=onnx.TensorProto.BFLOAT16)


def _cast_output(graph: onnx.GraphProto, name: str) -> Any:
    onnx = import_onnx()
    return onnx.helper.make_node("Cast", [_renamed(graph, name)], [name], f"{name}/Cast", to=onnx.TensorProto.FLOAT)
