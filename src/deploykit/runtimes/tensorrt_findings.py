"""What is wrong with an ONNX file for TensorRT: where, what, and the remedy."""

from __future__ import annotations

from dataclasses import dataclass

REFUSED, CHANGED, SLOW = "refused", "changed", "slow"
BLOCKING = (REFUSED, CHANGED)
QUANTIZE = (
    "quantize the float32 network again, with quantize_onnx(..., target='tensorrt') or prepare_qat(..., symmetric=True)"
)


@dataclass(frozen=True)
class Finding:
    """One thing that TensorRT does not take as it stands.

    Attributes:
        node: the name of the node, or of the tensor where there is no node.
        what: what is in the file.
        remedy: what to do.
        severity: "refused" by the parser; "changed", taken for something else than it is; or "slow", taken, but
            computed in float or for one size of batch only.
    """

    node: str
    what: str
    remedy: str
    severity: str

    def __str__(self) -> str:
        return f"{self.node}: {self.what} ({self.severity}). Remedy: {self.remedy}."
