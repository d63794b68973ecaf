"""Batch norm in quantization-aware training: as torchao merges it into convolutions, and how it leaves them."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from .graphs import attribute

ATEN = torch.ops.aten
EPS_OF_BATCHNORM = 7  # place among the arguments of aten.batch_norm
FUSED_EPS, FUSED_MOMENTUM = 1e-5, 0.1  # torchao puts these into every batch norm that it merges with a convolution
MERGED = (ATEN.conv1d.default, ATEN.conv2d.default, ATEN.conv_transpose1d.default, ATEN.conv_transpose2d.input)


def with_usual_batchnorm(model: nn.Module) -> nn.Module:
    """Return a copy whose batch norms have the constants that torchao assumes, and give the same in evaluation mode."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_var is not None:  # noqa: SLF001
            module.running_var.add_(module.eps - FUSED_EPS).clamp_(min=0)
            module.eps, module.momentum = FUSED_EPS, FUSED_MOMENTUM
    return model


def merge_batchnorms(graph: GraphModule) -> None:
    """Make one convolution, as in inference, of what torchao makes of a convolution and a batch norm, in place.

    That is norm(conv(x, round(w s)) / s + b) with s = gamma / sqrt(variance + eps): the rounding sees the weights that
    will be used, the norm what the convolution would give without it. By statistics that are fixed it is the same as
    conv(x, round(w s)) + (b - mean) s + beta. ``convert_pt2e`` finds that as well, in 20 s and not in a layer that is
    skipped.
    """
    norm: Any  # its arguments are nodes here, which the type of Node does not say
    for norm in graph.graph.find_nodes(op="call_function", target=ATEN.batch_norm.default):
        divided, bias = _before_norm(norm)
        if divided.target != ATEN.div.Tensor or divided.args[0].target not in MERGED:
            continue  # it follows something else, and was not merged
        shift = attribute(graph, bias.args[0]) if bias else 0
        gamma, beta, mean, variance = (attribute(graph, given) for given in norm.args[1:5])
        scale = gamma / (variance + norm.args[EPS_OF_BATCHNORM]).sqrt()
        conv = divided.args[0]
        scaled = conv.args[1].args[0] if conv.args[1].op == "call_module" else conv.args[1]
        weight = attribute(graph, scaled.args[0]) * scale.reshape(scaled.args[1].args[1])
        scaled.replace_all_uses_with(_constant(graph, f"{norm.name}_weight", weight, before=scaled))
        merged_bias = _constant(graph, f"{norm.name}_bias", (shift - mean) * scale + beta, before=conv)
        conv.args = (*conv.args[:2], merged_bias, *conv.args[3:])
        norm.replace_all_uses_with(conv)
        graph.graph.erase_node(norm)
    graph.graph.eliminate_dead_code()
    graph.recompile()


def _before_norm(norm: Any) -> tuple[Any, Any]:
    """Return what goes into a batch norm, and apart from it the reshaped bias that was added, if there is one."""
    given = norm.args[0]
    if given.target == ATEN.add.Tensor and getattr(given.args[1], "target", None) == ATEN.reshape.default:
        return given.args
    return given, None


def _constant(graph: GraphModule, name: str, value: Tensor, *, before: Node) -> Node:
    graph.register_buffer(name, value.detach())
    with graph.graph.inserting_before(before):
        return graph.graph.get_attr(name)
