"""Why channels cannot be taken from a group: what the graph, its layers or the caller say against it."""

from __future__ import annotations

import collections
import dataclasses
from typing import Any

from torch import nn

from .layers import Weighted, is_depthwise, refusal

ATTENTION = ("ScaledDotProduct", "Bmm", "Softmax")  # how autograd names the steps of an attention


@dataclasses.dataclass(frozen=True)
class Cut:
    """One side of one layer, which loses entries with the channels of its group.

    Attributes:
        layer: name in ``model.named_modules()``.
        kind: its class.
        side: "output channels", "input channels", or "channels" where both are one (norms, depthwise convolutions).
        size: entries that this side has.
        entries: for each channel of the group, the entries that go with it: one as a rule, H * W behind a flatten.
    """

    layer: str
    kind: str
    side: str
    size: int
    entries: tuple[tuple[int, ...], ...]


def obstacle_in_graph(graph: Any, found: Any) -> str | None:
    """Say what in the graph forbids to prune a group: the model's output, an attention, a parameter of its own."""
    nodes = [(dependency.target, graph.is_in_channel_pruning_fn(dependency.handler)) for dependency, _ in found]
    for node, at_input in nodes:
        reads = at_input and isinstance(node.module, Weighted) and not is_depthwise(node.module)
        if not (node.outputs or reads):
            return "its outputs are the model's outputs"
    for node, _ in nodes:
        if isinstance(node.module, nn.Parameter):
            name = graph._param_to_name[node.module]  # noqa: SLF001 - Torch-Pruning keeps names nowhere else
            return f"the parameter {name} would be cut too, which belongs to no layer that channels can be taken from"
        if isinstance(node.module, nn.MultiheadAttention) or any(step in str(node.module) for step in ATTENTION):
            return "it feeds an attention, which splits its channels into heads"
    return None


def obstacle_in_layers(
    model: nn.Module, cuts: tuple[Cut, ...], frozen: set[str], ignored: set[str], shared: dict[str, str]
) -> str | None:
    """Say which layer of a group forbids to prune it."""
    if ignored:
        return f"{min(ignored)} is ignored, as asked"
    for cut in cuts:
        layer = model.get_submodule(cut.layer)
        if reason := refusal(layer):
            return f"{cut.layer} would be cut too: {reason}"
        for name, _ in layer.named_parameters(prefix=cut.layer, recurse=False):
            if name in frozen:
                return f"{name} is frozen (requires_grad is False)"
            if name in shared:
                return f"{name} is one tensor with {shared[name]}"
        if len({len(entries) for entries in cut.entries}) > 1 or not cut.entries[0]:
            return f"{cut.layer} uses only a part of its channels"
    return None


def shared_parameters(model: nn.Module) -> dict[str, str]:
    """Find the parameters that several layers share, with the name of another place of each."""
    places = collections.defaultdict(list)
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(prefix=module_name, recurse=False):
            places[parameter].append(name)
    return {name: names[names[0] == name] for names in places.values() if len(names) > 1 for name in names}
