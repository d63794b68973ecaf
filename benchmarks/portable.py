"""The int8 form of a network that every runtime takes, calibrated on the same images by all benchmarks that use it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor, nn

from deploykit.data import Batches, Dataset
from deploykit.export import export_onnx
from deploykit.quantization.pt2e import quantize_pt2e
from deploykit.runtimes import onnxruntime, openvino

CALIBRATION_IMAGES = 256

Made = tuple[Callable[[Tensor], Tensor], Path]


def calibration_images(dataset: Dataset) -> Tensor:
    """Return training images as the network sees them, float32 [256, 3, H, W]."""
    some = dataset.train.take(CALIBRATION_IMAGES)
    return next(iter(Batches(some, dataset, batch_size=CALIBRATION_IMAGES)))[0].contiguous()


def in_every_runtime(network: nn.Module, images: Tensor, file: Path) -> Made:
    """Return a network in int8 in OpenVINO, from the ONNX file that ONNX Runtime, OpenVINO and Inductor take."""
    quantized = quantize_pt2e(network, [images], quantizer="portable").model
    file = onnxruntime.save(export_onnx(quantized, images), file)
    return openvino.load(file), file
