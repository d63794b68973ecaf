"""Static int8 quantization by ONNX Runtime: scales from calibration images, written into the graph as Q/DQ pairs."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .checks import calibration_images
from .onnx_layers import (
    ELEMENT_TYPES,
    INTEGER_OPERATORS,
    layer_names,
    name_all_nodes,
    report_layers,
    skipped_layers,
)
from .qdq import insert_qdq
from .report import Quantized, require_change

if TYPE_CHECKING:
    import onnx

TARGETS = ("x86", "tensorrt", "arm")
METHODS = {"minmax": "MinMax", "entropy": "Entropy", "percentile": "Percentile"}
# They have no integer kernel worth it, and what they give is what a transformer is most sensitive to.
FLOAT_OPERATORS = ("LayerNormalization", "InstanceNormalization", "BatchNormalization", "Softmax", "Gelu")
QDQ_INPUTS = ("integers", "scale", "zero point")
MOST_HELD_IMAGES = 512  # entropy and percentile keep every activation of every image in memory
# TensorRT's parser refuses zero points other than 0 and biases in int32 (its documentation, explicit quantization).
SYMMETRIC = {"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False}


def quantize_onnx(
    path: Path | str | onnx.ModelProto,
    calibration: Iterable[Any],
    *,
    target: str = "x86",
    method: str = "minmax",
    percentile: float = 99.99,
    skip: Collection[str] = (),
    reduce_range: bool = False,
) -> Quantized:
    """Return an ONNX model quantized to int8, with the list of its layers; what is given is not changed.

    Weights get a scale for each output channel and zero point 0, activations one scale and zero point for all.

    Args:
        path: the float32 model: a file, or what ``export_onnx`` returns. One input [N, C, H, W].
        calibration: batches of images, float32 [N, C, H, W], or pairs of images and labels; not the test split.
        target: "x86" takes activations as uint8, for which these processors have instructions; "tensorrt" as int8
            with zero point 0 and leaves biases in float, which it insists on; "arm" as int8 with any zero point. A form
            runs everywhere else too, but slowly.
        method: how a range comes from the values seen: "minmax" takes all, "percentile" cuts off the outermost,
            "entropy" those whose loss changes the distribution least (Kullback-Leibler).
        percentile: of the values that are kept; only for that method.
        skip: names of layers that stay in float, or of modules with all that is in them: "blocks.0.conv1".
        reduce_range: 7-bit weights. On x86 without VNNI instructions, pairs of products are added in 16 bits and
            overflow with 8-bit ones: without a message, and at a loss of accuracy.

    Raises:
        FileNotFoundError: no such file.
        ValueError: an unknown target, method or layer; a file that is no ONNX model, quantized already or not float32;
            images that cannot be used or are too many for the method; or nothing was quantized.
        ImportError: onnx or onnxruntime is missing.
    """
    _check_choices(target, method, percentile)
    images = torch.cat(calibration_images(calibration)).contiguous()
    if method != "minmax" and len(images) > MOST_HELD_IMAGES:
        raise ValueError(
            f"{method} keeps the activations of all images in memory, and {len(images)} are given; give at most "
            f"{MOST_HELD_IMAGES} (a few hundred are enough), or use minmax, which keeps two numbers"
        )
    source = _read(path)
    _check_source(source, images)
    name_all_nodes(source)
    names = layer_names(source)
    skipped = skipped_layers(skip, names.values())
    options: dict[str, Any] = dict(SYMMETRIC) if target == "tensorrt" else {}
    if method == "percentile":
        options["CalibPercentile"] = percentile
    excluded = [node for node, layer in names.items() if layer in skipped]
    excluded += [node.name for node in source.graph.node if node.op_type in FLOAT_OPERATORS]
    model = insert_qdq(
        source,
        images,
        method=METHODS[method],
        unsigned=target == "x86",
        reduce_range=reduce_range,
        excluded=excluded,
        options=options,
    )
    _drop_zero_points_of_zero(model)
    layers = report_layers(source, model, skipped)
    backend = f"ONNX Runtime ({target})"
    require_change(layers, backend, "it knows Conv, Gemm and MatMul with weights, and skip must leave some")
    del model.graph.value_info[:], model.metadata_props[:]  # noted by the quantizer; no runtime reads them
    return Quantized(model, backend, layers)


def _drop_zero_points_of_zero(model: onnx.ModelProto) -> None:
    """Leave out, in place, the zero points of convolutions' weights and biases: they are 0, which is the default.

    That saves a small network a few per cent. Of a Gemm ONNX Runtime makes an integer kernel only where they are given.
    """
    from onnx import numpy_helper

    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    constants = {name for node in model.graph.node if node.op_type == "Conv" for name in node.input[1:]}
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.output[0] in constants and len(node.input) == len(QDQ_INPUTS):
            zero_point = stored.get(node.input[-1])
            if zero_point is not None and not numpy_helper.to_array(zero_point).any():
                del node.input[-1]
    used = {name for node in model.graph.node for name in node.input}
    for name, tensor in stored.items():
        if name not in used:
            model.graph.initializer.remove(tensor)


def _check_choices(target: str, method: str, percentile: float) -> None:
    for what, given, known in (("target", target, TARGETS), ("method", method, tuple(METHODS))):
        if given not in known:
            raise ValueError(f"there is no {what} {given!r}; choose one of {', '.join(map(repr, known))}")
    if not 50 < percentile <= 100:  # noqa: PLR2004 - of a whole; half of the values would be cut off
        raise ValueError(f"percentile is {percentile}; give more than 50 and at most 100, 99.99 is usual")


def _read(path: Path | str | onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy, or what is in the file."""
    try:
        import onnx
        import onnxruntime.quantization  # noqa: F401
        from google.protobuf.message import DecodeError
    except ImportError as error:
        raise ImportError("onnx or onnxruntime is missing: pip install 'deploykit[onnx]'") from error
    if isinstance(path, onnx.ModelProto):
        copied = onnx.ModelProto()
        copied.CopyFrom(path)
        return copied
    if not isinstance(path, Path | str):
        raise TypeError(
            f"quantize_onnx takes a path or an onnx.ModelProto, not {type(path).__name__}; export_onnx makes one"
        )
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}; export_onnx and onnx.save make one")
    try:
        return onnx.load(path)
    except DecodeError as error:
        raise ValueError(f"{path} is no ONNX model, or is truncated: {error}") from error


def _check_source(source: onnx.ModelProto, images: Tensor) -> None:
    if found := next((node.op_type for node in source.graph.node if node.op_type in INTEGER_OPERATORS), None):
        raise ValueError(f"the ONNX model is quantized already ({found}); quantize_onnx takes the float32 model")
    stored = {tensor.name for tensor in source.graph.initializer}
    inputs = [value for value in source.graph.input if value.name not in stored]
    if len(inputs) != 1:
        raise ValueError(f"the ONNX model has {len(inputs)} inputs; quantize_onnx takes one with images as only input")
    taken = ELEMENT_TYPES.get(inputs[0].type.tensor_type.elem_type, "another type")
    if taken != "float32":
        raise ValueError(f"the ONNX model takes {taken}; quantize_onnx takes the float32 model")
    wanted = _dimensions(source)
    fits = len(wanted) == images.ndim and all(
        size in (None, given) for size, given in zip(wanted[1:], images.shape[1:], strict=True)
    )
    if not fits or len(images) < (wanted[0] or 1):
        size = ", ".join("any" if size is None else str(size) for size in wanted)
        raise ValueError(f"the calibration images have shape {list(images.shape)}; the model takes [{size}]")


def _dimensions(source: onnx.ModelProto) -> list[int | None]:
    sizes = source.graph.input[0].type.tensor_type.shape.dim
    return [size.dim_value if size.HasField("dim_value") else None for size in sizes]
