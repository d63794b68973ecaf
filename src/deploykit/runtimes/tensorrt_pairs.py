"""Pairs of QuantizeLinear and DequantizeLinear: which of them TensorRT takes, and what stays in float without them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .tensorrt_findings import CHANGED, QUANTIZE, REFUSED, SLOW, Finding
from .tensorrt_graph import DQ, PAIR, Graph, Q, attribute

WITH_WEIGHTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
OUTPUT_AXIS = {"Conv": (0,), "ConvTranspose": (1,)}  # of matrices it depends on which side the weights stand
MOVED_ACROSS = ("MaxPool", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Identity")
INT8, UINT8 = "INT8", "UINT8"


def pairs(graph: Graph) -> Iterator[Finding]:
    """Yield the nodes of either kind that are refused, or read as something else."""
    for node in graph.proto.graph.node:
        if node.op_type in PAIR and len(node.input) > 1:
            yield from _pair(graph, node)


def _pair(graph: Graph, node: Any) -> Iterator[Finding]:
    name, (numbers, scale, *zero_point) = graph.name(node), node.input
    scales, zeros = graph.value(scale), graph.value(zero_point[0]) if zero_point and zero_point[0] else None
    stored = graph.stored_types.get(numbers)
    if scales is not None and not (scales > 0).all():
        yield Finding(name, "a scale is 0, negative or no number", QUANTIZE, REFUSED)
    if node.op_type == DQ and stored == "INT32":
        yield Finding(name, "the bias is int32", f"leave biases in float, QuantizeBias=False: {QUANTIZE}", REFUSED)
    elif node.op_type == DQ and stored == UINT8:
        yield Finding(name, "the weights are uint8", f"weights have to be int8: {QUANTIZE}", REFUSED)
    elif zeros is not None and zeros.astype("float32").any():
        kind = graph.stored_types[zero_point[0]].lower()
        yield Finding(name, f"the zero point of {kind} is {zeros.ravel()[0]}, not 0", QUANTIZE, REFUSED)
    elif node.op_type == Q and (kind := _written(graph, node, zero_point)) == UINT8:
        asked = attribute(node, "output_dtype", 0)
        what = "asks for uint8" if asked else "uint8 is read as int8: numbers above half of the range are cut off"
        yield Finding(name, what, QUANTIZE, REFUSED if asked else CHANGED)
    if stored and scales is not None and scales.size > 1 and not _block(node):
        yield from _channels(graph, node, scales.size)


def _written(graph: Graph, node: Any, zero_point: list[str]) -> str:
    """Return the type that a QuantizeLinear writes: that of its zero point; without one it is uint8 by definition."""
    import onnx

    if zero_point and zero_point[0]:
        return graph.types.get(zero_point[0], INT8)
    asked = attribute(node, "output_dtype", 0)
    return str(onnx.TensorProto.DataType.Name(asked)) if asked else UINT8


def _block(node: Any) -> bool:
    return attribute(node, "block_size", 0) > 0


def _channels(graph: Graph, node: Any, scales: int) -> Iterator[Finding]:
    """Yield weights whose scales do not go with their output channels."""
    axis, sizes = attribute(node, "axis", 1), graph.dimensions(node.input[0])
    name, user = graph.name(node), _user(graph, node)
    channels = sizes[axis] if -len(sizes) <= axis < len(sizes) else 0
    if channels != scales:
        what = f"there are {scales} scales for the {channels} channels of axis {axis}"
        yield Finding(name, what, QUANTIZE, REFUSED)
    elif user is not None and (wanted := OUTPUT_AXIS.get(user.op_type)) and axis not in wanted:
        what = f"the scales belong to axis {axis}, not to the output channels (axis {wanted[0]})"
        yield Finding(name, what, f"the convolution may be computed in float: {QUANTIZE}", SLOW)


def _user(graph: Graph, node: Any) -> Any:
    """Return the layer behind the weights' pair."""
    user = next(iter(graph.users(node.output[0])), None)
    return _user(graph, user) if user is not None and user.op_type == DQ else user


def float_layers(graph: Graph) -> Iterator[Finding]:
    """Yield what is computed in float in a file that has pairs elsewhere."""
    if not graph.is_quantized:
        return
    for node in graph.proto.graph.node:
        if node.op_type in WITH_WEIGHTS:
            without = [tensor for tensor in node.input[:2] if not _is_dequantized(graph, tensor)]
            if without:
                what = f"{node.op_type} is computed in float: no pair before {' and '.join(without)}"
                yield Finding(graph.name(node), what, "give its input and its weights a pair each", SLOW)
        elif node.op_type == "Add" and not any(map(graph.is_constant, node.input)):
            yield from _addition(graph, node)


def _addition(graph: Graph, node: Any) -> Iterator[Finding]:
    """Yield a residual addition that cannot be fused into the convolution before it.

    It can where the shortcut comes as integers; the convolution's own output may, but need not
    (github.com/NVIDIA/TensorRT/issues/1992 and 1144).
    """
    dequantized = [_is_dequantized(graph, tensor) for tensor in node.input]
    computed = [getattr(graph.producer(tensor), "op_type", None) in WITH_WEIGHTS for tensor in node.input]
    fused = any(dequantized) and all(integer or layer for integer, layer in zip(dequantized, computed, strict=True))
    if not fused:
        bare = [tensor for tensor, integer in zip(node.input, dequantized, strict=True) if not integer]
        what = f"the addition, and the convolution before it, is computed in float: no pair on {' and '.join(bare)}"
        yield Finding(graph.name(node), what, "put a pair on the shortcut, too", SLOW)


def _is_dequantized(graph: Graph, tensor: str) -> bool:
    node = graph.producer(tensor)
    if node is not None and node.op_type in MOVED_ACROSS:
        return _is_dequantized(graph, node.input[0])
    return node is not None and node.op_type == DQ
