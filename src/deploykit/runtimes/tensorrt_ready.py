"""What TensorRT will make of an ONNX file, found without TensorRT: what it refuses, changes, or computes slowly."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .onnx_file import read_onnx
from .tensorrt_findings import CHANGED, QUANTIZE, REFUSED, SLOW, Finding
from .tensorrt_graph import PAIR, Graph
from .tensorrt_pairs import MOVED_ACROSS, WITH_WEIGHTS, float_layers, pairs

if TYPE_CHECKING:
    import onnx

# Standard operators that the parser of TensorRT-RTX 1.7.1 says it does not support (OnnxParser.supports_operator).
UNSUPPORTED = {
    "AffineGrid", "Bernoulli", "BitCast", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor",
    "CenterCropPad", "Col2Im", "Compress", "ConcatFromSequence", "ConvInteger", "CumProd", "DFT", "DeformConv",
    "Det", "DynamicQuantizeLinear", "ImageDecoder", "MatMulInteger", "MaxRoiPool", "MaxUnpool", "MelWeightMatrix",
    "Multinomial", "NegativeLogLikelihoodLoss", "Optional", "OptionalGetElement", "OptionalHasElement",
    "QLinearConv", "QLinearMatMul", "RegexFullMatch", "SequenceAt", "SequenceConstruct", "SequenceEmpty",
    "SequenceErase", "SequenceInsert", "SequenceLength", "SequenceMap", "SoftmaxCrossEntropyLoss",
    "SplitToSequence", "StringConcat", "StringNormalizer", "StringSplit", "SwiGLU", "TfIdfVectorizer", "Unique",
}  # fmt: skip
TAKEN_TYPES = {
    "FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE", "FLOAT8E4M3FN", "FLOAT4E2M1", "INT4", "INT8", "UINT8", "INT32",
    "INT64", "BOOL", "UNDEFINED",
}  # fmt: skip

QUANTIZED = ("INT4", "INT8", "FLOAT8E4M3FN")
TAKES_QUANTIZED = (*PAIR, *WITH_WEIGHTS, *MOVED_ACROSS, "Concat", "Shape")


def check_tensorrt_ready(source: Path | str | onnx.ModelProto) -> tuple[Finding, ...]:
    """Return what TensorRT will refuse, change or compute slowly, worst first; none is good news.

    Args:
        source: a file, or the model itself.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no ONNX model, a truncated one, or weights in a file outside the model's folder.
        ImportError: onnx is missing.
    """
    proto = read_onnx(source)[0] if isinstance(source, Path | str) else source
    graph = Graph(proto)
    found = [*_operators(proto), *_tensors(graph), *_types(graph), *pairs(graph), *float_layers(graph), *_batch(graph)]
    order = (REFUSED, CHANGED, SLOW)
    return tuple(sorted(dict.fromkeys(found), key=lambda finding: order.index(finding.severity)))


def _operators(proto: Any) -> Iterator[Finding]:
    import onnx

    known = {schema.name for schema in onnx.defs.get_all_schemas() if not schema.domain} - UNSUPPORTED
    known |= {function.name for function in proto.functions}
    for node in _nodes(proto.graph):
        if node.op_type in known:
            continue
        integer = "Integer" in node.op_type or node.op_type.startswith(("QLinear", "QGemm", "DynamicQuantize"))
        remedy = (
            f"integers are written as pairs of QuantizeLinear and DequantizeLinear around float operators: {QUANTIZE}"
            if integer
            else "write that part with other operators, or as a plugin"
        )
        yield Finding(node.name or node.output[0], f"there is no operator {node.op_type}", remedy, REFUSED)


def _nodes(graph: Any) -> Iterator[Any]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _nodes(attribute.g)


def _tensors(graph: Any) -> Iterator[Finding]:
    for name, kind in graph.types.items():
        if kind not in TAKEN_TYPES:
            remedy = "int8 with zero point 0, or float8 E4M3FN, are taken" if graph.is_quantized else "convert it"
            place = graph.producer(name) or next(iter(graph.users(name)), None)
            yield Finding(
                graph.name(place, name), f"{name} is {kind.lower()}, a type it does not have", remedy, REFUSED
            )
        elif kind in QUANTIZED and graph.is_constant(name):
            wrong = [user for user in graph.users(name) if user.op_type not in (*TAKES_QUANTIZED, *UNSUPPORTED)]
            for user in wrong:
                what = f"{user.op_type} takes {name}, which is {kind.lower()}"
                remedy = "a constant of this type may stand before a DequantizeLinear only"
                yield Finding(graph.name(user), what, remedy, REFUSED)
    doubles = [name for name, kind in graph.types.items() if kind == "DOUBLE"]
    if doubles:
        what = f"{len(doubles)} tensors are float64, which becomes float32 without a word"
        yield Finding(doubles[0], what, "export the model in float32", CHANGED)


def _types(graph: Any) -> Iterator[Finding]:
    """Yield operators whose inputs have to be of one type by ONNX's own definition, and are not."""
    for node in graph.proto.graph.node:
        types = graph.differing_inputs(node)
        if types:
            what = f"{node.op_type} of {' and '.join(types)}"
            remedy = "convert the whole file, with casts at both ends: convert_precision(proto, 'float16')"
            yield Finding(graph.name(node), what, remedy, REFUSED)


def _batch(graph: Any) -> Iterator[Finding]:
    for value in graph.inputs:
        sizes = value.type.tensor_type.shape.dim
        if sizes and sizes[0].HasField("dim_value"):
            what = f"takes batches of {sizes[0].dim_value} only"
            yield Finding(value.name, what, "export with a dynamic batch", SLOW)
