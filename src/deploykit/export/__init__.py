"""Out of PyTorch as one ONNX file: exported, read with care, checked against the model, in a smaller float type."""

from .files import OPSET, load_onnx, strip
from .from_torch import export_onnx
from .precision import convert_precision
from .verify import Verification, verify_onnx

__all__ = ["OPSET", "Verification", "convert_precision", "export_onnx", "load_onnx", "strip", "verify_onnx"]
