"""Static quantization: one call for three runtimes, all scales fixed in advance from calibration images."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from torch import nn

from deploykit.quantization.checks import calibration_images, check_model, check_runs
from deploykit.quantization.report import Quantized

BACKENDS = ("inductor", "onnxruntime", "openvino")


def quantize_static(
    model: nn.Module, calibration: Iterable[Any], *, backend: str = "onnxruntime", skip: Collection[str] = ()
) -> Quantized:
    """Return an int8 form of the model for a runtime, with the list of its layers; the model is not changed.

    Weights and activations become 8-bit integers whose scales are fixed beforehand: those of the weights by what they
    are, those of the activations by the range that they take on the calibration images (Jacob et al. 2018, section 2).

    Args:
        model: float32, in evaluation mode.
        calibration: batches of images, float32 [N, C, H, W], or pairs of images and labels; not the test split. A few
            hundred images of the training data, processed as in inference, are usual.
        backend: "onnxruntime" gives an ONNX model with Q/DQ nodes in the form for x86, "openvino" an OpenVINO model
            (NNCF), "inductor" an exported module for ``torch.compile`` or AOTInductor (torchao, PT2E).
        skip: names of layers that stay in float, as in ``model.named_modules()``: "blocks.0.conv1".

    Raises:
        TypeError: it is no module.
        ValueError: an unknown backend or layer, a model in training mode, quantized already, not in float32 or that
            cannot be exported, or a calibration set that cannot be used.
        ImportError: a package is missing; the message names the extra.
    """
    if backend not in BACKENDS:
        raise ValueError(f"there is no backend {backend!r}; choose one of {', '.join(map(repr, BACKENDS))}")
    check_model(model, "quantize_static")
    images = calibration_images(calibration)
    check_runs(model, images[0])
    if backend == "inductor":
        from deploykit.quantization.pt2e import quantize_pt2e

        return quantize_pt2e(model, images, skip=skip)
    from deploykit.export import export_onnx

    exported = export_onnx(model, images[0])
    if backend == "onnxruntime":
        from deploykit.quantization.onnx import quantize_onnx

        return quantize_onnx(exported, images, skip=skip)
    from deploykit.quantization.openvino import quantize_openvino

    return quantize_openvino(exported, images, skip=skip)
