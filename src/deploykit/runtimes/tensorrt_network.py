"""ONNX as TensorRT reads it, and its refusals in words that name the node and the remedy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .tensorrt_findings import CHANGED, Finding
from .tensorrt_library import logger

LONGEST = 300  # of what TensorRT says, in characters


def read_network(trt: Any, network: Any, source: Path, findings: Sequence[Finding]) -> Any:
    """Parse an ONNX file into the network, and return its one input.

    Args:
        trt: the library.
        network: an empty one.
        source: read by its path: weights in a file beside it could not be found from bytes.
        findings: what is known to be refused, or to be changed without a word.

    Raises:
        ValueError: the parser refuses it, would change it, or it has not one float32 input and output.
    """
    parser = trt.OnnxParser(network, logger(trt))
    if not parser.parse_from_file(str(source)):
        raise ValueError(_refusal(parser, source, findings))
    if changed := next((finding for finding in findings if finding.severity == CHANGED), None):
        raise ValueError(f"TensorRT takes {source.name} for something else than it is. {changed}")
    # Bytes that are no ONNX model at all can be "parsed" into an empty network.
    if (network.num_inputs, network.num_outputs) != (1, 1):
        raise ValueError(
            f"{source.name} has {network.num_inputs} inputs and {network.num_outputs} outputs; give an ONNX model with "
            "one of each: images and logits"
        )
    for tensor in (network.get_input(0), network.get_output(0)):
        if tensor.dtype != trt.DataType.FLOAT:
            raise ValueError(
                f"{tensor.name} of {source.name} is {tensor.dtype.name}; keep input and output in float32 and convert "
                "inside (keep_io_types=True)"
            )
    return network.get_input(0)


def _refusal(parser: Any, source: Path, findings: Sequence[Finding]) -> str:
    faults = [parser.get_error(index) for index in range(parser.num_errors)]
    nodes = [fault.node_name() for fault in faults]
    known = next((finding for finding in findings if finding.node in nodes), None) or next(iter(findings), None)
    places = [f"{fault.node_operator()} {fault.node_name()}".strip() for fault in faults]
    said = [" ".join(fault.desc().split())[:LONGEST] for fault in faults]
    place = next(filter(None, places), "the file")
    what = str(known) if known else f"{place}: is it a whole ONNX model, of standard operators?"
    return f"TensorRT refuses {source.name}. {what} It says: {next(iter(said), 'nothing')}"
