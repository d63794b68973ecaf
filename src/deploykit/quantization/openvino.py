"""Static int8 quantization for OpenVINO, by NNCF."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import math
import os
import re
import sys
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .checks import calibration_images, dtype_name
from .onnx_layers import skipped_layers
from .report import Layer, Quantized, require_change

if TYPE_CHECKING:
    import onnx
    import openvino as ov

# The layers, and at which input their weights are.
WEIGHTS_PORT = {
    "Convolution": 1,
    "GroupConvolution": 1,
    "ConvolutionBackpropData": 1,
    "MatMul": 1,
    "LSTMSequence": 4,
    "GRUSequence": 3,
    "RNNSequence": 3,
}
RECURRENT = ("LSTMSequence", "GRUSequence", "RNNSequence")
# What moves or picks numbers and leaves them as they are, between a quantizer or a constant and the layer.
TRANSPARENT = (
    "Reshape",
    "Transpose",
    "Squeeze",
    "Unsqueeze",
    "MaxPool",
    "Relu",
    "Concat",
    "Split",
    "VariadicSplit",
    "Slice",
    "StridedSlice",
    "Gather",
)
SCALING = ("Convert", "Multiply", "Subtract", "FakeQuantize")  # from stored integers to weights


def quantize_openvino(
    model: Path | str | onnx.ModelProto | ov.Model,
    calibration: Iterable[Any],
    *,
    skip: Collection[str] = (),
    correct_biases: bool = False,
) -> Quantized:
    """Return an OpenVINO model quantized to int8, with the list of its layers; what is given is not changed.

    NNCF places integers as OpenVINO computes. Ranges are the extremes over all calibration images; its own default
    takes means over images, which cuts off the rarer values. Recurrent layers stay in float.

    Args:
        model: float32: an ONNX or OpenVINO file or model; ``export_onnx`` makes one of a torch module.
        calibration: batches of images, float32 [N, C, H, W], or pairs of images and labels; not the test split. All
            are used.
        skip: names of layers that stay in float, or of modules with all that is in them: "blocks.0.conv1".
        correct_biases: make up for the mean error that rounded weights cause, estimated layer by layer (Nagel et al.
            2019, section 4.2). Meant for networks that lose much, those of depthwise convolutions; where the mean error
            is small, the estimate's own error can be larger: look at the logits with and without.

    Raises:
        FileNotFoundError: no such file.
        TypeError: no model of these kinds.
        ValueError: a model that is quantized already or not float32; an unknown layer; images that cannot be used; or
            nothing was quantized.
        ImportError: openvino or nncf is missing.
    """
    ov, nncf, _ = _packages()
    batches = calibration_images(calibration)
    source = _as_openvino(model, ov)
    _check_source(source, batches[0])
    names = {operation.get_friendly_name(): name for operation, name in _named_layers(source)}
    skipped = skipped_layers(skip, names.values())
    left = [operation for operation, name in names.items() if name in skipped]
    # NNCF counts items, whatever their batch size is: one image each.
    items = [image[None].numpy() for image in torch.cat(batches).contiguous()]
    from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    with _without_progress():
        quantized = nncf.quantize(
            source,
            nncf.Dataset(items),
            subset_size=len(items),
            fast_bias_correction=False,
            ignored_scope=nncf.IgnoredScope(names=left, types=list(RECURRENT), validate=False),
            model_type=nncf.ModelType.TRANSFORMER if _has_attention(source) else None,
            advanced_parameters=AdvancedQuantizationParameters(
                disable_bias_correction=not correct_biases,
                activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX,
            ),
        )
    layers = tuple(_layer(operation, name, skipped) for operation, name in _named_layers(quantized))
    require_change(layers, "OpenVINO (NNCF)", "it knows convolutions and MatMul, and skip must leave some")
    return Quantized(quantized, "OpenVINO (NNCF)", layers)


@functools.cache
def _packages() -> tuple[Any, Any, Any]:
    """Return openvino, nncf and a Core that lives on; reports to a web service are off unless DEPLOYKIT_TELEMETRY=1.

    Both send what they are used for, without asking. Where the reporting package seems absent they fall back to a
    stub; this has to be so before the first import.
    """
    if os.environ.get("DEPLOYKIT_TELEMETRY") != "1":
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # says a machine path on import of nncf
    try:
        import nncf
        import openvino
    except ImportError as error:
        raise ImportError("OpenVINO or NNCF is missing: pip install 'deploykit[openvino]'") from error
    # NNCF makes and drops such Cores. Each puts a stack for signals in place of the one before, and where the older of
    # two ends first the next Ctrl-C ends the process; not while one is below them that never ends.
    return openvino, nncf, openvino.Core()


def _as_openvino(model: Any, ov: Any) -> ov.Model:
    """Return the model as OpenVINO's, a copy where it is that already."""
    if isinstance(model, ov.Model):
        return model.clone()
    given: Any = model
    if isinstance(model, Path | str):
        if not Path(model).is_file():
            raise FileNotFoundError(f"there is no file {model}; export_onnx and onnx.save make one")
    elif hasattr(model, "SerializeToString"):
        given = io.BytesIO(model.SerializeToString())
    else:
        raise TypeError(
            f"quantize_openvino takes a path, an ONNX or OpenVINO model, not {type(model).__name__}; export_onnx makes "
            "an ONNX model of a torch module"
        )
    try:
        return ov.Core().read_model(given) if str(model).endswith(".xml") else ov.convert_model(given)
    except Exception as error:  # some of its errors have no root but this
        raise ValueError(f"OpenVINO cannot read the model; is it whole? It says: {error}") from error


def _check_source(source: ov.Model, images: torch.Tensor) -> None:
    if any(operation.get_type_name() == "FakeQuantize" for operation in source.get_ops()):
        raise ValueError("the model is quantized already; quantize_openvino takes the float32 model")
    if len(source.inputs) != 1:
        raise ValueError(f"the model has {len(source.inputs)} inputs; quantize_openvino takes one with images only")
    taken = source.input(0)
    if taken.get_element_type().to_string() != "f32":
        raise ValueError(
            f"the model takes {taken.get_element_type().to_string()}; quantize_openvino takes the float32 model"
        )
    if not taken.partial_shape.compatible(_partial_shape(images, taken)):
        raise ValueError(
            f"the calibration images have shape {list(images.shape)}; the model takes {taken.partial_shape}"
        )


def _partial_shape(images: torch.Tensor, like: Any) -> Any:
    return type(like.partial_shape)([1, *images.shape[1:]])


def _has_attention(model: ov.Model) -> bool:
    """Tell whether the result of a softmax goes into a matrix product: NNCF places integers differently there."""
    softmax = (operation for operation in model.get_ops() if operation.get_type_name() == "Softmax")
    users = (user.get_node() for operation in softmax for user in operation.output(0).get_target_inputs())
    return any(user.get_type_name() == "MatMul" for user in users)


def _named_layers(model: ov.Model) -> Iterator[tuple[Any, str]]:
    """Yield the operations with weights and the names of their layers: of the weight, else of the operation."""
    for operation in model.get_ordered_ops():
        if (stored := _weights(operation)) is not None:
            layer, by_weight, _ = stored.get_friendly_name().partition(".weight")
            own = operation.get_friendly_name().removesuffix("/WithoutBiases")
            yield operation, layer if by_weight else re.sub(r"/\w+$", "", own)


def _weights(operation: Any) -> Any:
    """Return the constant that a layer's weights come from, through what converts and scales it; None if none."""
    port = WEIGHTS_PORT.get(operation.get_type_name())
    if port is None:
        return None
    operation = operation.input_value(port).get_node()
    while operation.get_type_name() in (*TRANSPARENT, *SCALING):
        operation = operation.input_value(0).get_node()
    return operation if operation.get_type_name() == "Constant" else None


def _layer(operation: Any, name: str, skipped: Collection[str]) -> Layer:
    stored = _weights(operation)
    weights, inputs = str(stored.get_element_type().to_dtype()), _taken_as(operation)
    why = "NNCF left it alone"
    if operation.get_type_name() in RECURRENT:
        why = "the recipe leaves it: as NNCF quantizes it, the logits are lost"
    why = "skipped on request" if name in skipped else why
    why = "" if "int" in weights and "int" in inputs else why
    return Layer(name, operation.get_type_name(), math.prod(stored.shape), weights, inputs, why)


def _taken_as(operation: Any) -> str:
    """Return "uint8" or "int8" where the activations come from a quantizer: it says whether they have a sign."""
    node = operation.input_value(0).get_node()
    while node.get_type_name() in TRANSPARENT:
        node = node.input_value(0).get_node()
    if node.get_type_name() != "FakeQuantize":
        return dtype_name(torch.float32)
    lowest = node.input_value(1).get_node()
    return "int8" if lowest.get_type_name() != "Constant" or float(lowest.get_data().min()) < 0 else "uint8"


@contextlib.contextmanager
def _without_progress() -> Iterator[None]:
    """Keep NNCF's progress bars and remarks off the screen inside the block, its warnings not."""
    import rich

    logger, console = logging.getLogger("nncf"), rich.get_console()
    level, settings = logger.level, dict(vars(console))
    logger.setLevel(logging.WARNING)
    rich.reconfigure(file=io.StringIO(), force_jupyter=False)  # in a notebook it would leave empty widgets
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
        vars(console).clear()
        vars(console).update(settings)
