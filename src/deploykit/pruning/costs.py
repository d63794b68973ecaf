"""What a network costs when some of its channels have gone, without building it: MACs, or any cost that layers have."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .groups import Group
from .layers import INPUTS, Weighted, sizes

Removed = Mapping[str, int]  # channels to remove from each group, by its leading layer
LayerCost = Callable[[str, int, int], float]  # of a layer, by name, with so many inputs and outputs


def count_macs(model: nn.Module, example_input: Tensor) -> int:
    """Return the multiply-accumulates of one image: half of what ``torch.utils.flop_counter`` counts.

    These are the convolutions and matrix products, attention included. The model is left as it was.
    """
    from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

    def attention(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any) -> int:
        return sdpa_flop_count(query, key, value)

    # The kernel that attention has on a CPU, which torch 2.14 counts as nothing.
    kernels = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention}  # noqa: SLF001
    counter = FlopCounterMode(display=False, custom_mapping=kernels)
    with evaluating(model), counter:
        model(example_input[:1])
    return counter.get_total_flops() // 2


@dataclasses.dataclass
class LayerRun:
    """What a layer met in one forward pass.

    Attributes:
        input_shape: of its first call.
        macs: multiply-accumulates of all calls.
    """

    input_shape: tuple[int, ...]
    macs: int = 0


def observe(model: nn.Module, example_input: Tensor) -> dict[str, LayerRun]:
    """Run the model once and return what each convolution and linear layer met, by name."""
    runs: dict[str, LayerRun] = {}

    def note(name: str, layer: Any, values: Tensor, result: Tensor) -> None:
        run = runs.setdefault(name, LayerRun(tuple(values.shape)))
        # Every number of the output is a sum over one filter; transposed, every number of the input goes into one.
        counted = values if getattr(layer, "transposed", False) else result
        run.macs += counted.numel() * layer.weight[0].numel()

    hooks = [
        layer.register_forward_hook(lambda layer, given, result, name=name: note(name, layer, given[0], result))
        for name, layer in model.named_modules()
        if isinstance(layer, Weighted)
    ]
    try:
        with evaluating(model):
            model(example_input)
    finally:
        for hook in hooks:
            hook.remove()
    return runs


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode without gradients, and every module back into its own mode afterwards."""
    training = [module for module in model.modules() if module.training]
    fused = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)  # one kernel for a whole transformer layer: nothing to count in
        with torch.no_grad():
            model.eval()
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for module in training:
            module.training = True


def answers(model: nn.Module, batches: Sequence[Tensor]) -> Tensor:
    """Return the logits that the model gives each image of the batches, float [N, classes]; it is left as it was."""
    with evaluating(model):
        return torch.cat([model(images) for images in batches])


class Network:
    """The widths and the cost of a network for any number of channels removed from each of its groups.

    Args:
        model: the full network.
        groups: by their leading layer.
    """

    def __init__(self, model: nn.Module, groups: Mapping[str, Group]) -> None:
        layers = dict(model.named_modules())
        self.groups = groups
        self.full = {name: sizes(layer) for name, layer in layers.items() if isinstance(layer, Weighted)}
        # layer -> group -> (inputs, outputs) that go with one channel of the group
        self.lost: dict[str, dict[str, tuple[int, int]]] = collections.defaultdict(dict)
        for group in groups.values():
            for cut in group.cuts:
                if cut.layer in self.full:
                    inputs, outputs = self.lost[cut.layer].get(group.layer, (0, 0))
                    per_channel = len(cut.entries[0])
                    more = (per_channel, 0) if cut.side == INPUTS else (0, per_channel)
                    self.lost[cut.layer][group.layer] = inputs + more[0], outputs + more[1]
        self.touched = {group: [layer for layer, lost in self.lost.items() if group in lost] for group in groups}

    def size(self, layer: str, removed: Removed) -> tuple[int, int]:
        """Return the inputs and outputs that a layer has left."""
        inputs, outputs = self.full[layer]
        for group, (fewer_inputs, fewer_outputs) in self.lost.get(layer, {}).items():
            inputs -= fewer_inputs * removed[group]
            outputs -= fewer_outputs * removed[group]
        return inputs, outputs

    def saved(self, cost: LayerCost, now: Mapping[str, tuple[int, int]], group: str, fewer: int) -> float:
        """Return what is saved when layers of the sizes ``now`` lose ``fewer`` channels of a group."""
        saved = 0.0
        for layer in self.touched[group]:
            (inputs, outputs), (fewer_inputs, fewer_outputs) = now[layer], self.lost[layer][group]
            smaller = cost(layer, inputs - fewer * fewer_inputs, outputs - fewer * fewer_outputs)
            saved += cost(layer, inputs, outputs) - smaller
        return saved

    def total(self, cost: LayerCost, removed: Removed) -> float:
        """Return the sum over all layers."""
        return sum(cost(layer, *self.size(layer, removed)) for layer in self.full)


def macs_cost(model: nn.Module, example_input: Tensor) -> LayerCost:
    """Return the cost of a layer in MACs of one image: proportional to its inputs and to its outputs."""
    full = {name: sizes(layer) for name, layer in model.named_modules() if isinstance(layer, Weighted)}
    macs = {name: run.macs // math.prod(full[name]) for name, run in observe(model, example_input[:1]).items()}
    return lambda layer, inputs, outputs: macs.get(layer, 0) * inputs * outputs


def parameters_removed(model: nn.Module, network: Network, removed: Removed) -> int:
    """Return how many parameters go."""
    gone = 0
    for name in network.lost:
        layer: Any = model.get_submodule(name)
        (inputs, outputs), (inputs_left, outputs_left) = network.full[name], network.size(name, removed)
        gone += layer.weight.numel() // (inputs * outputs) * (inputs * outputs - inputs_left * outputs_left)
        gone += 0 if layer.bias is None else outputs - outputs_left
    for group in network.groups.values():
        for cut in group.cuts:
            if cut.layer not in network.full:
                per_entry = sum(p.numel() for p in model.get_submodule(cut.layer).parameters()) // cut.size
                gone += per_entry * len(cut.entries[0]) * removed[group.layer]
    return gone
