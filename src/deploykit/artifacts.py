"""From one ONNX file to what ONNX Runtime and OpenVINO run, each made and tried once in whatever process this is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from deploykit.advisor.situation import target_of
from deploykit.export import load_onnx
from deploykit.machine import machine
from deploykit.quantization.onnx import quantize_onnx
from deploykit.quantization.openvino import quantize_openvino
from deploykit.runtimes import onnxruntime, openvino
from deploykit.runtimes.predictor import Predictor

if TYPE_CHECKING:
    import onnx

KNOWN_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")  # of operators that one of the runtimes has
IMAGE_DIMENSIONS = 4  # [N, channels, height, width]
LOGITS_DIMENSIONS = 2  # [N, classes]
ENDINGS = {"ONNX Runtime": ".onnx", "OpenVINO": ".xml"}
HINTS = {"bfloat16": "bf16"}  # of OpenVINO; what is not quantized is float32 otherwise
SHOWN = 3
# Of ONNX Runtime, by processor: without VNNI, products of eight bits overflow in pairs.
INT8: dict[str, dict[str, Any]] = {"x86-vnni": {}, "x86": {"reduce_range": True}, "arm": {"target": "arm"}}


def read_model(source: str, target: str) -> dict[str, Any]:
    """Write an ONNX file from elsewhere anew as one whole file, and return what it takes.

    Args:
        source: where it is; weights in other files are read from its folder only.
        target: where to write it, without notes and with its weights inside; ends in ".onnx".

    Returns:
        "batch", "channels", "height", "width": a number, or None where any will do. "quantized": whether there are
        integers in it already.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no ONNX, truncated or against the rules; it has operators that are nobody's here, weights
            outside its folder, or another input than one of float32 images.
        ImportError: onnx is missing.
    """
    proto = load_onnx(source)
    if unknown := _unknown_operators(proto):
        more = f" and {len(unknown) - SHOWN} more" if len(unknown) > SHOWN else ""
        raise ValueError(
            f"{Path(source).name} has operators that no runtime here knows: {', '.join(unknown[:SHOWN])}{more}"
        )
    batch, channels, height, width = _dimensions(proto, Path(source).name)
    onnxruntime.save(proto, target)
    quantized = any("Quantize" in node.op_type or "QLinear" in node.op_type for node in proto.graph.node)
    return {"batch": batch, "channels": channels, "height": height, "width": width, "quantized": quantized}


def load_openvino(source: str) -> None:
    """Load an OpenVINO model from elsewhere and compile it, to see whether that can be done.

    Args:
        source: an .xml with its .bin beside it.

    Raises:
        ValueError: it cannot be loaded.
        ImportError: openvino is missing.
    """
    openvino.load(source)


def make_artifact(
    runtime: str, precision: str, source: str, *, artifact: str, calibration: str, batches: Sequence[int]
) -> int:
    """Write what a runtime runs, load it and let it compute batches of these sizes; returns the number of classes.

    Args:
        runtime: "ONNX Runtime" or "OpenVINO".
        precision: "float32", "bfloat16" or "int8", in the form that suits the processor of this machine; "as given"
            leaves a file that is quantized already as it is.
        source: a whole ONNX file.
        artifact: where to write; ends as :data:`ENDINGS` says.
        calibration: a NumPy file of images, float32 [N, C, H, W], none of the test split.
        batches: sizes to try.

    Raises:
        ValueError: the runtime cannot do it, or gives something else than finite logits.
        ImportError: a package is missing; the message names the extra.
    """
    images = torch.from_numpy(np.load(calibration))
    if runtime == "ONNX Runtime":
        onnxruntime.save(_int8(source, images) if precision == "int8" else load_onnx(source), artifact)
    elif precision == "int8":
        openvino.save(quantize_openvino(source, [images]).model, artifact)
    else:
        openvino.save(openvino.import_openvino().convert_model(source), artifact)
    predictor = load_artifact(runtime, precision, artifact)
    return try_out(predictor, images, batches)


def _int8(source: str, images: Tensor) -> onnx.ModelProto:
    """Quantize a file for the processor of this machine."""
    return quantize_onnx(source, [images], **INT8[target_of({**machine(), "gpu": None})]).model


def load_artifact(runtime: str, precision: str, artifact: Path | str) -> Predictor:
    """Return what :func:`make_artifact` wrote as a predictor."""
    if runtime == "ONNX Runtime":
        return onnxruntime.load(artifact)
    return openvino.load(artifact, precision=HINTS.get(precision, "f32"))


def try_out(predictor: Any, images: Tensor, batches: Iterable[int]) -> int:
    """Return how many classes a predictor tells apart, once it has computed batches of these sizes.

    Raises:
        ValueError: it returns something else than finite logits [N, classes], or fails.
    """
    classes = 0
    for size in batches:
        given = batch_of(images, size)
        try:
            with torch.inference_mode():
                logits = torch.as_tensor(predictor(given))
        except Exception as error:  # runtimes and models have no common root of errors but this
            raise ValueError(f"it cannot compute images of shape {list(given.shape)}: {error}") from error
        if logits.ndim != LOGITS_DIMENSIONS or len(logits) != size:
            raise ValueError(
                f"it turned images {list(given.shape)} into {list(logits.shape)}; logits must be [N, classes]"
            )
        if not bool(logits.isfinite().all()):
            raise ValueError("its logits are not all finite; look at its weights and at its precision")
        classes = logits.shape[1]
    return classes


def batch_of(images: Tensor, size: int) -> Tensor:
    """Return the first ``size`` of the images, from the start again where there are fewer."""
    return images.repeat(-(-size // len(images)), 1, 1, 1)[:size]


def _unknown_operators(proto: onnx.ModelProto) -> list[str]:
    """Return operators of foreign domains, "domain.Operator"; of ONNX's own its checker has seen to."""
    own = {(function.domain, function.name) for function in proto.functions}
    bodies = [proto.graph.node, *(function.node for function in proto.functions)]
    found = set()
    while bodies:
        for node in bodies.pop():
            if node.domain not in KNOWN_DOMAINS and (node.domain, node.op_type) not in own:
                found.add(f"{node.domain}.{node.op_type}")
            for attribute in node.attribute:
                bodies += [graph.node for graph in (attribute.g, *attribute.graphs)]
    return sorted(found)


def _dimensions(proto: onnx.ModelProto, name: str) -> list[int | None]:
    """Return the sizes of the only input, None where they are free.

    Raises:
        ValueError: several inputs, or one that is no batch of float32 images.
    """
    import onnx

    stored = {tensor.name for tensor in proto.graph.initializer}
    inputs = [value for value in proto.graph.input if value.name not in stored]
    if len(inputs) != 1:
        named = ", ".join(value.name for value in inputs) or "none"
        raise ValueError(f"{name} has {len(inputs)} inputs ({named}); a model that takes images only can be measured")
    taken = inputs[0].type.tensor_type
    if taken.elem_type != onnx.TensorProto.FLOAT or len(taken.shape.dim) != IMAGE_DIMENSIONS:
        raise ValueError(f"{name} takes something else than images, float32 [N, channels, height, width]")
    return [size.dim_value if size.HasField("dim_value") else None for size in taken.shape.dim]
