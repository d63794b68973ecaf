"""Dependency groups: which entries of which layers go together when one channel goes (Fang et al. 2023, "DepGraph")."""

from __future__ import annotations

import copy
import dataclasses
import difflib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .checks import check_model, check_runs
from .layers import CHANNELS, INPUTS, OUTPUTS, Weighted, is_depthwise, sizes
from .obstacles import Cut, obstacle_in_graph, obstacle_in_layers, shared_parameters

if TYPE_CHECKING:
    import pandas as pd


@dataclasses.dataclass(frozen=True)
class Group:
    """Channels that several layers share, so that one goes from all of them or from none.

    Attributes:
        layer: the layer whose outputs they are; the first one in the model's order.
        channels: how many there are.
        cuts: the leading layer's outputs and everything that goes with them.
    """

    layer: str
    channels: int
    cuts: tuple[Cut, ...]


@dataclasses.dataclass(frozen=True)
class Traced:
    """A model and its groups.

    Attributes:
        model: a copy in evaluation mode, every parameter with ``requires_grad``.
        groups: those that can be pruned, by their leading layer, in the model's order.
        coupled: the ``torch_pruning`` group of each, for its importance scores.
        left: why each of the other layers cannot be pruned.
    """

    model: nn.Module
    groups: dict[str, Group]
    coupled: dict[str, Any]
    left: dict[str, str]


def dependency_group(model: nn.Module, example_input: Tensor, layer_name: str) -> pd.DataFrame:
    """Show what has to go when one output channel of a layer goes.

    Args:
        model: is not changed.
        example_input: what the model processes, images float32 [N, C, H, W] as a rule.
        layer_name: a convolution or linear layer, by its name in ``model.named_modules()``.

    Returns:
        A row for each side of each layer of the group: layer, kind (its class), cut ("output channels", "input
        channels", or "channels" where these are the same), channels (that this side has), per_channel (entries that go
        with one channel: more than one behind a flatten).

    Raises:
        ValueError: no such layer, or one that cannot be pruned, with the reason.
    """
    import pandas as pd

    traced = trace(model, example_input)
    group = group_of(traced, layer_name)
    rows = [(cut.layer, cut.kind, cut.side, cut.size, len(cut.entries[0])) for cut in group.cuts]
    return pd.DataFrame(rows, columns=["layer", "kind", "cut", "channels", "per_channel"])


def trace(model: nn.Module, example_input: Tensor, *, ignore: Iterable[str] = ()) -> Traced:
    """Run the model once, follow its autograd graph, and find its groups.

    Args:
        model: is not changed.
        example_input: only the first of the batch is used.
        ignore: names of layers, or of modules that contain layers, whose outputs stay whole.

    Raises:
        ValueError: the model is refused by :func:`~.checks.check_model` or cannot process the input, or ``ignore``
            names an unknown layer.
    """
    check_model(model, "pruning")
    check_runs(model, example_input)
    ignored = _ignored(model, ignore)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    traced, graph = _graph(model, example_input)
    shared = shared_parameters(traced)
    groups, coupled, left, seen = {}, {}, {}, set()
    for name, layer in traced.named_modules():
        if not isinstance(layer, Weighted) or name in seen:
            continue
        if layer not in graph.module2node:
            left[name] = "it takes no part in the forward pass, or only as a part of a larger kernel"
            continue
        prune, outputs = graph.get_pruner_of_module(layer).prune_out_channels, sizes(layer)[1]
        found = graph.get_pruning_group(layer, prune, list(range(outputs)))
        cuts = tuple(_cuts(graph, found, outputs))
        made = {cut.layer for cut in cuts if cut.side != INPUTS}
        made = {other for other in made if isinstance(traced.get_submodule(other), Weighted)}
        seen |= made
        reason = obstacle_in_graph(graph, found) or obstacle_in_layers(traced, cuts, frozen, made & ignored, shared)
        if reason is None:
            groups[name], coupled[name] = Group(name, outputs, cuts), found
        else:
            left |= dict.fromkeys(made | {name}, reason)
    in_order = {name: left[name] for name, _ in traced.named_modules() if name in left}
    return Traced(traced, groups, coupled, in_order)


def _graph(model: nn.Module, example_input: Tensor) -> tuple[nn.Module, Any]:
    """Return a copy of the model and Torch-Pruning's graph of it."""
    try:
        import torch_pruning as tp
    except ImportError as error:
        raise ImportError("the dependency graph needs Torch-Pruning: pip install 'deploykit[compression]'") from error

    with torch.inference_mode(mode=False), torch.enable_grad():
        # The graph is autograd's: what is frozen would be missing from it without a word.
        traced = copy.deepcopy(model).eval().requires_grad_(requires_grad=True)
        # In a list, because a bare tensor would be unpacked along its batch.
        graph = tp.DependencyGraph().build_dependency(traced, [example_input[:1].clone()], verbose=False)
    return traced, graph


def group_of(traced: Traced, layer: str) -> Group:
    """Return the group that the outputs of a layer belong to, whichever layer leads it; ValueError says why none."""
    for group in traced.groups.values():
        if any(cut.layer == layer and cut.side != INPUTS for cut in group.cuts):
            return group
    if layer in traced.left:
        raise ValueError(f"{layer} cannot be pruned: {traced.left[layer]}")
    there = [cut.layer for group in traced.groups.values() for cut in group.cuts if cut.side != INPUTS]
    raise ValueError(f"there is no layer {layer!r} with channels{_hint(layer, there)}")


def require_groups(traced: Traced, purpose: str) -> None:
    """Raise ValueError unless there is a group, with what stands against each layer."""
    if not traced.groups:
        listed = "; ".join(f"{layer}: {reason}" for layer, reason in traced.left.items())
        raise ValueError(f"{purpose} finds no channel that can go ({listed or 'no convolution and no linear layer'})")


def _cuts(graph: Any, found: Any, channels: int) -> Iterator[Cut]:
    for item, (dependency, positions) in zip(found.items, found, strict=True):
        layer = dependency.target.module
        name = graph._module2name.get(layer)  # noqa: SLF001 - Torch-Pruning keeps names nowhere else
        if name is None or isinstance(layer, nn.Parameter) or getattr(layer, "num_parameters", 2) == 1:
            continue
        entries: list[list[int]] = [[] for _ in range(channels)]
        for position, channel in zip(positions, item.root_idxs, strict=True):
            if channel is not None:
                entries[channel].append(position)
        side = CHANNELS
        if isinstance(layer, Weighted) and not is_depthwise(layer):
            side = INPUTS if graph.is_in_channel_pruning_fn(dependency.handler) else OUTPUTS
        size = graph.get_in_channels(layer) if side == INPUTS else graph.get_out_channels(layer)
        yield Cut(name, type(layer).__name__, side, int(size or 0), tuple(map(tuple, entries)))


def _ignored(model: nn.Module, ignore: Iterable[str]) -> set[str]:
    if isinstance(ignore, str):
        raise TypeError(f"ignore is the text {ignore!r}; give a list of names: [{ignore!r}]")
    modules = dict(model.named_modules())
    ignored = set()
    for name in ignore:
        if name not in modules:
            raise ValueError(
                f"ignore names {name!r}, and {type(model).__name__} has no such layer{_hint(name, modules)}"
            )
        inside = {
            f"{name}.{path}" if path else name
            for path, layer in modules[name].named_modules()
            if isinstance(layer, Weighted)
        }
        if not inside:
            raise ValueError(
                f"ignore names {name!r}, which has no convolution and no linear layer: nothing to keep whole"
            )
        ignored |= inside
    return ignored


def _hint(name: str, there: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(there), n=1)
    return f"; did you mean {near[0]!r}?" if near else "; see model.named_modules()"
