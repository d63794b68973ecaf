"""The layers with weights of an ONNX graph, by the names that they have in torch."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

from .report import Layer

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

RECURRENT = ("LSTM", "GRU", "RNN")
LAYER_OPERATORS = ("Conv", "ConvTranspose", "Gemm", "MatMul", *RECURRENT)
INTEGER_OPERATORS = ("QuantizeLinear", "DequantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger")
# As TensorProto.DataType numbers them; written out so that this module can be read without onnx.
ELEMENT_TYPES = {1: "float32", 2: "uint8", 3: "int8", 10: "float16", 11: "float64", 16: "bfloat16"}


def layer_weights(proto: ModelProto) -> dict[str, list[str]]:
    """Return for each node with weights their names; they may be transposed, sliced or joined on the way to it."""
    shapes = {tensor.name: tensor.dims for tensor in proto.graph.initializer}
    made_of = {name: {name} for name in shapes}  # of each constant, the stored tensors that it is computed from
    layers = {}
    for node in proto.graph.node:
        if node.input and all(name in made_of for name in node.input if name):
            for output in node.output:
                made_of[output] = set().union(*(made_of[name] for name in node.input if name))
        if node.op_type in LAYER_OPERATORS:
            given = node.input[1:3] if node.op_type in RECURRENT else node.input[:2]
            weights = {stored for name in given for stored in made_of.get(name, ()) if len(shapes[stored]) > 1}
            if weights:
                layers[node.name] = sorted(weights)
    return layers


def layer_names(proto: ModelProto) -> dict[str, str]:
    """Return for each node with weights the name of its layer: "blocks.0.conv1" for "blocks.0.conv1/Conv".

    The weight says it ("blocks.0.conv1.weight"), else the node as ``export_onnx`` names it, else the node's name is
    all there is.
    """
    names = {}
    for node, weights in layer_weights(proto).items():
        named = [weight.partition(".weight")[0] for weight in weights if ".weight" in weight]
        names[node] = named[0] if named else re.sub(r"/\w+$", "", node)
    return names


def name_all_nodes(proto: ModelProto) -> None:
    """Give each node without a name one, in place: names are how nodes are left out."""
    for number, node in enumerate(proto.graph.node):
        node.name = node.name or f"{node.op_type}_{number}"


def skipped_layers(skip: Collection[str], layers: Iterable[str]) -> set[str]:
    """Return the layers that ``skip`` names, itself or as part of a module: "blocks.0" is all layers in it.

    Raises:
        TypeError: one text instead of a list.
        ValueError: a name of no layer; the message has names that are near it.
    """
    if isinstance(skip, str):
        raise TypeError(f"skip is the text {skip!r}; give a list of names of layers: [{skip!r}]")
    layers = list(dict.fromkeys(layers))
    skipped: set[str] = set()
    for name in skip:
        found = {layer for layer in layers if layer == name or layer.startswith(f"{name}.")}
        if not found:
            near = difflib.get_close_matches(name, layers, cutoff=0.4) or layers[:5]
            raise ValueError(f"skip names {name!r}, and the model has no such layer; near it: {', '.join(near)}")
        skipped |= found
    return skipped


def report_layers(before: ModelProto, after: ModelProto, skipped: Collection[str]) -> tuple[Layer, ...]:
    """List the layers of ``before`` and what they store and take in ``after``, where Q/DQ nodes stand around them."""
    names, weights = layer_names(before), layer_weights(before)
    sizes = {tensor.name: _size(tensor.dims) for tensor in before.graph.initializer}
    nodes = {node.name: node for node in after.graph.node}
    producers = {output: node for node in after.graph.node for output in node.output}
    types = {tensor.name: ELEMENT_TYPES.get(tensor.data_type, "other") for tensor in after.graph.initializer}
    layers = []
    for node_name, layer in names.items():
        node, parameters = nodes[node_name], sum(sizes[weight] for weight in weights[node_name])
        taken, stored = (_integer_type(name, producers, types) for name in node.input[:2])
        why = "" if "int" in stored and "int" in taken else _why(layer, node.op_type, skipped)
        layers.append(Layer(layer, node.op_type, parameters, stored, taken, why))
    return tuple(layers)


def _size(dimensions: Iterable[int]) -> int:
    size = 1
    for dimension in dimensions:
        size *= dimension
    return size


def _why(layer: str, operator: str, skipped: Collection[str]) -> str:
    if layer in skipped:
        return "skipped on request"
    rule = "has no rule for" if operator in RECURRENT else "left alone this"
    return f"ONNX Runtime's quantizer {rule} {operator}"


def _integer_type(name: str, producers: dict[str, NodeProto], types: dict[str, str]) -> str:
    """Return the type of the integers that a value is dequantized from; "float32" if it is not."""
    node = producers.get(name)
    if node is None or node.op_type != "DequantizeLinear":
        return "float32"
    return types.get(node.input[0]) or types.get(node.input[-1], "float32")  # stored as such, or by its zero point
