"""An ONNX graph as the checks for TensorRT look at it: constants, types, and who computes what."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import onnx

Q, DQ = "QuantizeLinear", "DequantizeLinear"
PAIR = (Q, DQ)


class Graph:
    """What the checks ask of a graph.

    Attributes:
        proto: the model; it is not changed.
        inputs: what it takes, without the weights.
        types: the element type of each tensor that is known: "FLOAT".
        stored_types: those of the constants alone.
        is_quantized: there are pairs of QuantizeLinear and DequantizeLinear in it.
    """

    def __init__(self, proto: onnx.ModelProto) -> None:
        import onnx

        self.proto = proto
        graph = proto.graph
        constants = {stored.name: stored for stored in graph.initializer}
        for node in graph.node:
            values = [attribute.t for attribute in node.attribute if attribute.name == "value"]
            if node.op_type == "Constant" and values:
                constants[node.output[0]] = values[0]
        self._constants = constants
        self._producers = {name: node for node in graph.node for name in node.output}
        self._users: dict[str, list[Any]] = {}
        for node in graph.node:
            for name in node.input:
                self._users.setdefault(name, []).append(node)
        self.inputs = [value for value in graph.input if value.name not in constants]
        self.is_quantized = any(node.op_type in PAIR for node in graph.node)
        self.stored_types = {name: _kind(stored.data_type) for name, stored in constants.items()}
        self.types = dict(self.stored_types)
        try:
            known = onnx.shape_inference.infer_shapes(proto).graph
        except onnx.shape_inference.InferenceError as error:
            raise ValueError(f"this is no valid ONNX model: {error}") from error
        for value in (*self.inputs, *known.value_info, *known.output):
            self.types.setdefault(value.name, _kind(value.type.tensor_type.elem_type))
        self._opsets = {entry.domain: entry.version for entry in proto.opset_import}

    def name(self, node: Any, otherwise: str = "") -> str:
        """Return what to call a node: its name, or that of what it computes."""
        return str(node.name or node.output[0]) if node is not None else otherwise

    def users(self, tensor: str) -> list[Any]:
        """Return the nodes that take a tensor."""
        return self._users.get(tensor, [])

    def producer(self, tensor: str) -> Any:
        """Return the node that computes a tensor; None for constants and inputs."""
        return self._producers.get(tensor)

    def is_constant(self, tensor: str) -> bool:
        """Tell whether a tensor is stored in the file."""
        return tensor in self._constants

    def value(self, tensor: str) -> np.ndarray[Any, Any] | None:
        """Return the value of a constant; None if it is computed, or lies in another file."""
        from onnx import numpy_helper

        stored = self._constants.get(tensor)
        if stored is None or stored.data_location == stored.EXTERNAL:
            return None
        return numpy_helper.to_array(stored)

    def dimensions(self, tensor: str) -> tuple[int, ...]:
        """Return the shape of a constant."""
        return tuple(self._constants[tensor].dims)

    def differing_inputs(self, node: Any) -> list[str]:
        """Return the types of those inputs that ONNX wants to be of one type, if they are of several; else nothing."""
        by_type: dict[str, set[str]] = {}
        for name, tensor in self._with_type_names(node):
            if tensor in self.types:
                by_type.setdefault(name, set()).add(self.types[tensor])
        return next((sorted(types) for types in by_type.values() if len(types) > 1), [])

    def _with_type_names(self, node: Any) -> Iterator[tuple[str, str]]:
        import onnx

        version = self._opsets.get(node.domain)
        if node.op_type in PAIR or version is None:  # the type of a scale may be another one than of the numbers
            return
        try:
            formal = onnx.defs.get_schema(node.op_type, version, node.domain).inputs
        except onnx.defs.SchemaError:
            return
        for index, tensor in enumerate(node.input):
            place = formal[min(index, len(formal) - 1)]
            if place.is_homogeneous:
                yield place.type_str, tensor


def attribute(node: Any, name: str, default: int) -> int:
    """Return an attribute of a node that is a whole number."""
    return next((int(one.i) for one in node.attribute if one.name == name), default)


def _kind(element_type: int) -> str:
    import onnx

    return str(onnx.TensorProto.DataType.Name(element_type))
