"""Static int8 quantization in PyTorch: export the graph, observe it on calibration images, convert it, compile it."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import nn

from .checks import calibration_images, check_model, check_runs
from .graphs import check_names, export_graph, layers_of
from .report import Quantized, require_change

QUANTIZERS = ("inductor", "portable")


def quantize_pt2e(
    model: nn.Module,
    calibration: Iterable[Any],
    *,
    skip: Collection[str] = (),
    quantizer: str = "inductor",
    symmetric: bool = False,
) -> Quantized:
    """Return an int8 form of the model as a graph that PyTorch runs, compiles and exports; the model is not changed.

    The graph says where integers go with ``quantize`` and ``dequantize`` operators around float ones, and called as it
    is it computes just so, slowly: torch's compiler makes integer kernels of it, if its option ``freezing`` is on.

    Args:
        model: float32, in evaluation mode.
        calibration: batches of images, float32 [N, C, H, W], or pairs of images and labels; not the test split.
        skip: names of modules that stay in float, with all that is in them: "blocks.0.conv1".
        quantizer: "inductor" places integers as torch's compiler merges operators on x86 (the fastest in PyTorch;
            after export ONNX Runtime runs part of the convolutions in float), "portable" so that Inductor, ONNX Runtime
            and OpenVINO all find them (``quantizer.IntegerQuantizer``).
        symmetric: activations as int8 with zero point 0, for TensorRT; only with the portable quantizer.

    Raises:
        TypeError: it is no module.
        ValueError: an unknown quantizer or name to skip, a model in training mode, quantized already, not float32, that
            cannot be exported or has no layer to quantize, or a calibration set that cannot be used.
        ImportError: torchao is missing.
    """
    check_model(model, "PT2E quantization")
    if quantizer not in QUANTIZERS:
        raise ValueError(f"there is no quantizer {quantizer!r}; choose {' or '.join(map(repr, QUANTIZERS))}")
    if symmetric and quantizer == "inductor":
        raise ValueError("the inductor quantizer knows no symmetric activations; use quantizer='portable'")
    batches = calibration_images(calibration)
    check_runs(model, batches[0])
    chosen = _inductor_quantizer(skip) if quantizer == "inductor" else _portable_quantizer(skip, symmetric=symmetric)
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    graph = export_graph(model, batches[0])
    check_names(graph, skip)
    try:
        with warnings.catch_warnings():  # of the Inductor quantizer: that a pool after a float addition stays in float
            warnings.filterwarnings("ignore", message="The input of maxpool2d is not quantized")
            prepared = prepare_pt2e(graph, chosen)
    except ValueError as error:
        raise ValueError(
            f"torchao's {quantizer} quantizer cannot place integers in {type(model).__name__} ({error}); "
            "use quantizer='portable', or backend 'onnxruntime' or 'openvino'"
        ) from error
    with torch.no_grad():
        for images in batches:
            prepared(images)
    converted = convert_pt2e(prepared)
    layers = layers_of(converted, quantizer=quantizer, skip=skip)
    require_change(layers, "PT2E quantization", "it knows convolutions and linear layers")
    return Quantized(converted, f"PT2E ({quantizer} quantizer)", layers)


def _portable_quantizer(skip: Collection[str], *, symmetric: bool) -> Any:
    from .quantizer import IntegerQuantizer

    return IntegerQuantizer(symmetric=symmetric, skip=skip)


def _inductor_quantizer(skip: Collection[str]) -> Any:
    try:
        from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
            X86InductorQuantizer,
            get_default_x86_inductor_quantization_config,
        )
    except ImportError as error:
        raise ImportError("PT2E quantization is torchao's: pip install 'deploykit[compression]'") from error
    quantizer = X86InductorQuantizer().set_global(get_default_x86_inductor_quantization_config())
    for name in skip:
        quantizer.set_module_name_qconfig(name, None)
    return quantizer
