"""Where integers go in a graph: a quantizer for PT2E whose one model Inductor, ONNX Runtime and OpenVINO run as int8.

The recipes import this module only when they need it, because it needs torchao.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch.fx import GraphModule, Node

from .checks import check_bits
from .graphs import check_names, is_within

try:
    from torchao.quantization.pt2e import (
        FakeQuantize,
        FusedMovingAvgObsFakeQuantize,
        HistogramObserver,
        MovingAverageMinMaxObserver,
        MovingAveragePerChannelMinMaxObserver,
        PerChannelMinMaxObserver,
    )
    from torchao.quantization.pt2e.quantizer import (
        QuantizationAnnotation,
        QuantizationSpec,
        Quantizer,
        SharedQuantizationSpec,
    )
    from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY
except ImportError as missing:
    raise ImportError("PT2E quantization is torchao's: pip install 'deploykit[compression]'") from missing

ATEN = torch.ops.aten
CONVOLUTIONS = (ATEN.conv1d.default, ATEN.conv1d.padding, ATEN.conv2d.default, ATEN.conv2d.padding)
ADDITIONS = (ATEN.add.Tensor, ATEN.add_.Tensor)
POOLS = (ATEN.max_pool2d.default,)  # they choose among values, so that what comes out is on the grid of what went in
BATCHNORMS = (ATEN.batch_norm.default,)
CLAMPS = (  # these cost nothing: the range of the integers ends where the activation does
    ATEN.relu.default, ATEN.relu_.default, ATEN.hardtanh.default, ATEN.hardtanh_.default,
)  # fmt: skip


class IntegerQuantizer(Quantizer):
    """Quantizes what goes into convolutions and linear layers, and what comes out of convolutions and their sums.

    A scale per output channel for weights, symmetric and without the lowest integer; one scale for all of an
    activation (Jacob et al. 2018, section 2; Krishnamoorthi 2018, section 3). Every convolution is followed by a
    quantization, after batch norm and ReLU: ONNX Runtime computes in integers only between two of them.

    Sums are quantized where a convolution ends in them: in residual blocks. The residual stream of a transformer, in
    which single channels are many times larger than the others (Bondarenko et al. 2021), stays in float.

    Args:
        symmetric: activations as int8 with zero point 0, the form that TensorRT takes; else uint8 with a zero point.
        weight_bits: 2 to 8. Below 8 the integers are stored as int8 all the same.
        activation_bits: 2 to 8. 7 avoids the saturation of 16-bit sums on x86 CPUs without VNNI.
        qat: for ``prepare_qat_pt2e`` (fake quantization), else for ``prepare_pt2e`` (observers).
        skip: names of modules that stay in float, with all that is in them: "blocks.0.conv1".

    Raises:
        ValueError: bits out of range; when the graph is annotated: a name of no module.
    """

    def __init__(
        self,
        *,
        symmetric: bool = False,
        weight_bits: int = 8,
        activation_bits: int = 8,
        qat: bool = False,
        skip: Collection[str] = (),
    ) -> None:
        super().__init__()
        check_bits(weight_bits=weight_bits, activation_bits=activation_bits)
        self.weights = _weight_spec(weight_bits, qat=qat)
        self.activations = _activation_spec(activation_bits, symmetric=symmetric, qat=qat)
        self.skip = skip

    def annotate(self, model: GraphModule) -> GraphModule:
        """Write into the nodes' ``meta`` what is to be quantized, and how."""
        check_names(model, self.skip)
        ends: set[Node] = set()  # of convolutions
        for node in model.graph.nodes:
            if is_within(node, self.skip):
                continue
            if node.target in CONVOLUTIONS:
                ends.add(self._annotate(node, {node.args[0]: self.activations, node.args[1]: self.weights}))
            elif node.target == ATEN.linear.default:
                _mark(node, {node.args[0]: self.activations, node.args[1]: self.weights})
            elif node.target in ADDITIONS and ends & set(node.args):
                self._annotate(node, dict.fromkeys(node.args, self.activations))
            elif node.target in POOLS:
                shared = SharedQuantizationSpec((node.args[0], node))
                _mark(node, {node.args[0]: self.activations}, shared)
        return model

    def validate(self, model: GraphModule) -> None:
        """Accept every graph: what has no rule stays in float."""

    def _annotate(self, node: Node, inputs: dict[Any, QuantizationSpec]) -> Node:
        """Quantize a node's inputs, and the output of the last operator that a runtime merges with it; return that."""
        end = _end_of_fusion(node)
        output = None if any(user.op == "output" for user in end.users) else self.activations
        if end is node:
            _mark(node, inputs, output)
        else:
            _mark(node, inputs)
            _mark(end, {}, output)
        return end


def _end_of_fusion(node: Node) -> Node:
    for operators in (BATCHNORMS, CLAMPS):
        if len(node.users) == 1 and (user := next(iter(node.users))).target in operators:
            node = user
    return node


def _mark(node: Node, inputs: dict[Any, Any], output: Any = None) -> None:
    node.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(inputs, output, _annotated=True)


def _weight_spec(bits: int, *, qat: bool) -> QuantizationSpec:
    largest = 2 ** (bits - 1) - 1
    observer: Any = PerChannelMinMaxObserver
    if qat:
        # The range is that of the weights as they are now: a mean over the past would lag behind training.
        now = {"observer": MovingAveragePerChannelMinMaxObserver, "averaging_constant": 1.0}
        observer = FakeQuantize.with_args(**now)
    return QuantizationSpec(torch.int8, observer, -largest, largest, torch.per_channel_symmetric, ch_axis=0)


def _activation_spec(bits: int, *, symmetric: bool, qat: bool) -> QuantizationSpec:
    observer: Any = HistogramObserver
    if qat:
        observer = FusedMovingAvgObsFakeQuantize.with_args(observer=MovingAverageMinMaxObserver)
    if symmetric:
        half = 2 ** (bits - 1)
        return QuantizationSpec(torch.int8, observer, -half, half - 1, torch.per_tensor_symmetric)
    return QuantizationSpec(torch.uint8, observer, 0, 2**bits - 1, torch.per_tensor_affine)
