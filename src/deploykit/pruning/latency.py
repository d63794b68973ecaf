"""Measured milliseconds as the cost of a layer: what a kernel takes is not proportional to its channels."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .costs import LayerCost, observe
from .groups import require_groups, trace
from .layers import Weighted, is_depthwise, resized, sizes
from .selection import allowed_counts

if TYPE_CHECKING:
    import pandas as pd

Measure = Callable[[nn.Module, Tensor], float]  # milliseconds that a layer takes for an input


def fastest_ms(layer: nn.Module, values: Tensor, *, repeats: int = 30) -> float:
    """Return the milliseconds of a layer in eager mode: the fastest of some calls, after as many unmeasured ones.

    The fastest and not the median, because layers are compared here and interference only ever adds time: what other
    processes do to a few short calls would decide between two widths. Measure in the runtime that will be used, where
    that is another one: this is a default everywhere.
    """
    seconds = []
    with torch.inference_mode():
        for repeat in range(2 * repeats):
            _synchronize(values)
            start = time.perf_counter()
            layer(values)
            _synchronize(values)
            if repeat >= repeats:
                seconds.append(time.perf_counter() - start)
    return 1000 * min(seconds)


class RememberedLatency:
    """A measure that measures layers of one shape once: hand one object to several plans.

    Args:
        measure: ``measure(layer, input)``, milliseconds.
    """

    def __init__(self, measure: Measure = fastest_ms) -> None:
        self.measure = measure
        self.known: dict[tuple[str, tuple[int, ...]], float] = {}

    def __call__(self, layer: nn.Module, values: Tensor) -> float:
        """Return the milliseconds, measured now or before."""
        key = repr(layer), tuple(values.shape)
        if key not in self.known:
            self.known[key] = self.measure(layer, values)
        return self.known[key]


def latency_cost(model: nn.Module, example_input: Tensor, measure: Measure) -> LayerCost:
    """Return the cost of a layer in milliseconds for a batch like ``example_input``, measured when it is asked for.

    Norms, activations and additions are not in it: runtimes fold most of them into the layers.
    """
    measure = measure if isinstance(measure, RememberedLatency) else RememberedLatency(measure)
    layers: dict[str, Any] = {name: layer for name, layer in model.named_modules() if isinstance(layer, Weighted)}
    runs = observe(model, example_input)

    def cost(name: str, inputs: int, outputs: int) -> float:
        if name not in runs:
            return 0.0
        layer, shape = layers[name], runs[name].input_shape
        if (inputs, outputs) != sizes(layer):
            width = outputs if is_depthwise(layer) else inputs
            shape = (*shape[:-1], width) if isinstance(layer, nn.Linear) else (shape[0], width, *shape[2:])
            layer = resized(layer, inputs, outputs)
        return measure(layer, torch.zeros(shape, dtype=layer.weight.dtype, device=layer.weight.device))

    return cost


def layer_latencies(
    model: nn.Module, example_input: Tensor, *, round_to: int = 8, measure: Measure = fastest_ms
) -> pd.DataFrame:
    """Measure each layer that leads a group at every width that it could have, its inputs as they are.

    Args:
        model: is not changed.
        example_input: a batch of the size that counts, 1 or 64: latency depends on it.
        round_to: widths are the multiples of this, and the full one.
        measure: ``measure(layer, input)``, milliseconds; the eager layer, fastest of some calls, when left out.

    Returns:
        A row for each layer and width: layer, inputs, outputs, macs_share (of the layer's full width), latency_ms.

    Raises:
        ValueError: the model has no channel that can go.
    """
    import pandas as pd

    if round_to < 1:
        raise ValueError(f"round_to is {round_to}; give 1, or the block size of the kernels: 8 or 16")
    traced = trace(model, example_input)
    require_groups(traced, "layer_latencies")
    cost = latency_cost(traced.model, example_input, measure)
    inputs = {name: sizes(traced.model.get_submodule(name))[0] for name in traced.groups}
    rows = [
        (
            name,
            inputs[name],
            group.channels - gone,
            1 - gone / group.channels,
            cost(name, inputs[name], group.channels - gone),
        )
        for name, group in traced.groups.items()
        for gone in reversed(allowed_counts(group.channels, round_to))
    ]
    return pd.DataFrame(rows, columns=["layer", "inputs", "outputs", "macs_share", "latency_ms"])


def _synchronize(values: Tensor) -> None:
    if values.is_cuda:
        torch.cuda.synchronize(values.device)
