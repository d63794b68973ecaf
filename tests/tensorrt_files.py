"""Small ONNX files for the tests of TensorRT: what its parser takes, and what it refuses, each for one reason."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CHANNELS, CLASSES, SIZE = 3, 4, 8
ZERO = np.int8(0)
IMAGE = (CHANNELS, SIZE, SIZE)
FEATURES = (CLASSES, SIZE, SIZE)


def tensor(name: str, value: Any) -> TensorProto:
    """Return a constant."""
    return numpy_helper.from_array(np.asarray(value), name)


def node(operator: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> onnx.NodeProto:
    """Return a node, named after what it computes."""
    return helper.make_node(operator, inputs, outputs, name=f"{outputs[0]}_node", **attributes)


def model(
    nodes: Sequence[onnx.NodeProto],
    constants: Sequence[TensorProto] = (),
    *,
    batch: str | int = "N",
    taken: int = TensorProto.FLOAT,
    given: int = TensorProto.FLOAT,
    shape: Sequence[int] = FEATURES,
    opset: int = 20,
    domains: Sequence[str] = (),
) -> onnx.ModelProto:
    """Return a model from ``images`` [batch, 3, 8, 8] to ``logits`` [batch, *shape]."""
    inputs = [helper.make_tensor_value_info("images", taken, [batch, *IMAGE])]
    outputs = [helper.make_tensor_value_info("logits", given, [batch, *shape])]
    graph = helper.make_graph(nodes, "graph", inputs, outputs, constants)
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def weights() -> np.ndarray[Any, Any]:
    """Return those of a convolution, float32 [4, 3, 3, 3]."""
    return np.random.default_rng(0).normal(size=(CLASSES, CHANNELS, 3, 3)).astype(np.float32)


def convolution(kind: type = np.float32, **options: Any) -> onnx.ModelProto:
    """Return one float convolution with weights of a type."""
    conv = node("Conv", ["images", "weights"], ["logits"], pads=[1] * 4)
    return model([conv], [tensor("weights", weights().astype(kind))], **options)


def classifier(batch: str | int = "N") -> onnx.ModelProto:
    """Return a convolution, a pool and nothing else: logits [batch, 4]."""
    nodes = [
        node("Conv", ["images", "weights"], ["features"], pads=[1] * 4),
        node("GlobalAveragePool", ["features"], ["pooled"]),
        node("Flatten", ["pooled"], ["logits"]),
    ]
    return model(nodes, [tensor("weights", weights())], batch=batch, shape=(CLASSES,))


def quantized(
    *,
    zero_point: Any = ZERO,
    weight_zero_point: Any = ZERO,
    weight_scales: int = CLASSES,
    axis: int = 0,
    scale: float = 0.02,
    bias: type = np.float32,
    stored_in: type = np.int8,
    **options: Any,
) -> onnx.ModelProto:
    """Return a convolution with pairs around its input and its weights, in the form that TensorRT takes."""
    constants = [
        tensor("scale", np.float32(scale)),
        tensor("weight_scale", np.full(weight_scales, 0.01, np.float32)),
        tensor("weight_zero", np.full(weight_scales, weight_zero_point)),
        tensor("quantized", np.round(weights() * 30).astype(stored_in)),
        tensor("bias" if bias is np.float32 else "stored_bias", np.zeros(CLASSES, bias)),
    ]
    pair = ["scale"]
    if zero_point is not None:
        constants.append(tensor("zero", zero_point))
        pair = ["scale", "zero"]
    nodes = [
        node("QuantizeLinear", ["images", *pair], ["integers"]),
        node("DequantizeLinear", ["integers", *pair], ["numbers"]),
        node("DequantizeLinear", ["quantized", "weight_scale", "weight_zero"], ["weights"], axis=axis),
        node("Conv", ["numbers", "weights", "bias"], ["logits"], pads=[1] * 4),
    ]
    if bias is np.int32:
        constants.append(tensor("bias_scale", np.full(CLASSES, 2e-4, np.float32)))
        nodes.insert(3, node("DequantizeLinear", ["stored_bias", "bias_scale"], ["bias"], axis=0))
    return model(nodes, constants, **options)


def pair_of(kind: int, *, opset: int = 21) -> onnx.ModelProto:
    """Return one pair with a zero point of a type."""
    constants = [tensor("scale", np.float32(0.02)), helper.make_tensor("zero", kind, [], [0])]
    nodes = [
        node("QuantizeLinear", ["images", "scale", "zero"], ["integers"]),
        node("DequantizeLinear", ["integers", "scale", "zero"], ["logits"]),
    ]
    return model(nodes, constants, shape=IMAGE, opset=opset)


def integer_operator(operator: str) -> onnx.ModelProto:
    """Return a model in one of the forms that hold integer operators instead of pairs."""
    stored = np.round(weights() * 30).astype(np.int8)
    if operator == "ConvInteger":
        nodes = [
            node("DynamicQuantizeLinear", ["images"], ["integers", "scale", "zero"]),
            node("ConvInteger", ["integers", "weights", "zero"], ["logits"], pads=[1] * 4),
        ]
        return model(nodes, [tensor("weights", stored)], given=TensorProto.INT32)
    constants = [tensor("scale", np.float32(0.02)), tensor("zero", np.int8(0)), tensor("weights", stored)]
    pair = ["scale", "zero"]
    nodes = [
        node("QuantizeLinear", ["images", *pair], ["integers"]),
        node("QLinearConv", ["integers", *pair, "weights", *pair, *pair], ["features"], pads=[1] * 4),
        node("DequantizeLinear", ["features", *pair], ["logits"]),
    ]
    return model(nodes, constants)


def foreign_operator() -> onnx.ModelProto:
    """Return a model with an operator that is in no standard."""
    return model([node("Fancy", ["images"], ["logits"], domain="my.own")], shape=IMAGE, domains=["my.own"])


def float_weights(axis: int, scales: int) -> onnx.ModelProto:
    """Return a quantized convolution whose weights are stored as float, with a pair behind them."""
    proto = quantized(weight_scales=scales, axis=axis)
    for stored in proto.graph.initializer:
        if stored.name == "quantized":
            stored.CopyFrom(tensor("stored", weights()))
    pair = ["weight_scale", "weight_zero"]
    proto.graph.node.insert(2, node("QuantizeLinear", ["stored", *pair], ["quantized"], axis=axis))
    return proto


def half_scale() -> onnx.ModelProto:
    """Return a pair whose scale is float16 although its numbers are float32: not by ONNX's book, and taken."""
    constants = [tensor("scale", np.float16(0.02)), tensor("zero", ZERO)]
    nodes = [
        node("QuantizeLinear", ["images", "scale", "zero"], ["integers"]),
        node("DequantizeLinear", ["integers", "scale", "zero"], ["logits"]),
    ]
    return model(nodes, constants, shape=IMAGE, given=TensorProto.FLOAT16)


def with_function() -> onnx.ModelProto:
    """Return a model that brings the definition of its operator along."""
    proto = foreign_operator()
    opsets = [helper.make_opsetid("", 20)]
    relu = helper.make_node("Relu", ["x"], ["y"])
    proto.functions.append(helper.make_function("my.own", "Fancy", ["x"], ["y"], [relu], opsets))
    return proto


def pooled() -> onnx.ModelProto:
    """Return a quantized convolution with a pool between its pair and itself: the pool changes no number."""
    proto = quantized(shape=FEATURES)
    conv = proto.graph.node[-1]
    conv.input[0] = "pooled"
    pool = node("MaxPool", ["numbers"], ["pooled"], kernel_shape=[3, 3], pads=[1] * 4)
    proto.graph.node.insert(len(proto.graph.node) - 1, pool)
    return proto


def residual(*, on_shortcut: bool, on_branch: bool) -> onnx.ModelProto:
    """Return a quantized convolution whose output and whose input are added, with pairs before the addition or not."""
    proto = quantized(shape=FEATURES)
    conv = proto.graph.node[-1]
    conv.output[0] = "branch"
    projection = node("Conv", ["numbers", "weights"], ["first"], pads=[1] * 4)
    proto.graph.node.insert(3, projection)
    proto.graph.node.insert(4, node("Relu", ["first"], ["shortcut"]))
    sides = []
    for side, has_pair in (("branch", on_branch), ("shortcut", on_shortcut)):
        if has_pair:
            proto.graph.node.append(node("QuantizeLinear", [side, "scale", "zero"], [f"{side}_integers"]))
            pair = node("DequantizeLinear", [f"{side}_integers", "scale", "zero"], [f"{side}_numbers"])
            proto.graph.node.append(pair)
        sides.append(f"{side}_numbers" if has_pair else side)
    proto.graph.node.append(node("Add", sides, ["logits"]))
    return proto


def inside(kind: str) -> onnx.ModelProto:
    """Return a convolution in a smaller float type between two casts."""
    element = TensorProto.FLOAT16 if kind.startswith("half") else TensorProto.BFLOAT16
    stored = helper.make_tensor("weights", element, weights().shape, weights().ravel().tolist())
    nodes = [
        node("Cast", ["images"], ["small"], to=element),
        node("Conv", ["small", "weights"], ["features"], pads=[1] * 4),
        node("Cast", ["features"], ["logits"], to=TensorProto.FLOAT),
    ]
    return model(nodes, [stored], opset=22)


def two_outputs() -> onnx.ModelProto:
    """Return a classifier that gives its features as well."""
    proto = classifier()
    features = helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", *FEATURES])
    proto.graph.output.append(features)
    return proto


def any_size() -> onnx.ModelProto:
    """Return a classifier of images of any height."""
    proto = classifier()
    proto.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    return proto


def pair_without_zero_point(kind: int) -> onnx.ModelProto:
    """Return a pair that says its type by an attribute, as opset 21 allows."""
    nodes = [
        node("QuantizeLinear", ["images", "scale"], ["integers"], output_dtype=kind),
        node("DequantizeLinear", ["integers", "scale"], ["logits"]),
    ]
    return model(nodes, [tensor("scale", np.float32(0.02))], shape=IMAGE, opset=21)


def int8_in_a_sum() -> onnx.ModelProto:
    """Return a model that stores an int8 number and adds it as a float."""
    nodes = [
        node("Cast", ["stored"], ["value"], to=TensorProto.FLOAT),
        node("Add", ["images", "value"], ["logits"]),
    ]
    return model(nodes, [tensor("stored", np.int8([1]))], shape=IMAGE)
