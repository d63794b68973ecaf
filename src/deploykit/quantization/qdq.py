"""ONNX Runtime's static quantization as a function of a model and images; this file can be copied alone."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    import onnx


def insert_qdq(
    source: onnx.ModelProto,
    images: Tensor,
    *,
    method: str = "MinMax",
    unsigned: bool = True,
    reduce_range: bool = False,
    excluded: Collection[str] = (),
    options: Mapping[str, Any] | None = None,
) -> onnx.ModelProto:
    """Return the model with int8 weights, and pairs of QuantizeLinear and DequantizeLinear around each activation.

    Args:
        source: float32, with one input [N, C, H, W], batch norm folded; it is not changed.
        images: the calibration images, float32 [N, C, H, W], processed as in inference.
        method: from the values seen to a range: "MinMax", "Percentile" or "Entropy".
        unsigned: activations as uint8, the form for x86, or as int8.
        reduce_range: weights of 7 bits, for x86 processors without VNNI.
        excluded: names of nodes that stay in float.
        options: ONNX Runtime's ``extra_options``.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType, quantize_static
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata

    prepared = onnx.ModelProto()
    prepared.CopyFrom(source)
    # Else it advises to run its preparation, which folds batch norm and finds shapes: torch's exporter did.
    add_pre_process_metadata(prepared)
    taken = source.graph.input[0]
    batch = taken.type.tensor_type.shape.dim[0].dim_value or 1  # 0 where any will do
    feeds = iter([{taken.name: part.numpy()} for part in images.split(batch) if len(part) == batch])

    class Reader(CalibrationDataReader):
        def get_next(self) -> Any:
            return next(feeds, None)

    # Calibration prints numbers of tensors and bins; what goes wrong comes as an exception.
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        result = Path(folder) / "quantized.onnx"
        quantize_static(
            prepared,
            result,
            Reader(),
            per_channel=True,
            reduce_range=reduce_range,
            activation_type=QuantType.QUInt8 if unsigned else QuantType.QInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=list(excluded),
            calibrate_method=CalibrationMethod[method],
            extra_options=dict(options or {}),
        )
        return onnx.load(result)
