"""The graph that torch.export makes of a network: made, its nodes traced back to modules, and what is integer in it."""

from __future__ import annotations

import copy
import difflib
import re
import traceback
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from .checks import dtype_name
from .report import Layer

LAYER_OPERATORS = ("conv", "linear", "lstm", "gru", "rnn")  # how the names of operators with weights begin
DTYPE_OF_DEQUANTIZE = 5  # place among the arguments of quantized_decomposed.dequantize_per_tensor


def export_graph(model: nn.Module, images: Tensor) -> GraphModule:
    """Return the graph of a copy of ``model`` for any batch size, in operators of ATen.

    The copy is essential: an exported graph shares its parameters with the module that it was made from.

    Args:
        model: in evaluation mode.
        images: an example, float32 [N, C, H, W].

    Raises:
        ValueError: torch.export cannot follow the model; the message names the module and what torch said.
    """
    model = copy.deepcopy(model)
    example = images[:1].repeat(2, 1, 1, 1)  # a batch of 1 would be taken for a constant
    try:
        program = torch.export.export(model, (example,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    except Exception as error:
        said = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ValueError(
            f"torch.export cannot follow {culprit(model, error)} ({said}); a graph has no branch that depends on "
            "values and no batch size that is fixed: write that part with torch operators, or use another recipe"
        ) from error
    return program.module(check_guards=False)  # the guard would refuse batch sizes for no reason that the model has


def module_of(node: Node) -> tuple[str, str]:
    """Return name and class of the innermost module that a node comes from: ("blocks.0.conv1", "Conv2d")."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    if not stack:
        return "", ""
    path, kind = stack[-1]
    return _module_name(path), getattr(kind, "__name__", str(kind).rpartition(".")[2])


def is_within(node: Node, names: Collection[str]) -> bool:
    """Tell whether a node belongs to one of the named modules or to a part of one."""
    return any(_module_name(path) in names for path, _ in node.meta.get("nn_module_stack", {}).values())


def check_names(graph: GraphModule, names: Collection[str]) -> None:
    """Raise unless each name is of a layer in the graph, or of a module with layers in it.

    Raises:
        TypeError: one text instead of a list.
        ValueError: a name of no module; the message has names that are near it.
    """
    if isinstance(names, str):
        raise TypeError(f"skip is the text {names!r}; give a list of names of modules: [{names!r}]")
    layers = (node for node in graph.graph.nodes if _operator(node).startswith(LAYER_OPERATORS))
    stacks = (node.meta.get("nn_module_stack", {}).values() for node in layers)
    known = sorted({_module_name(path) for stack in stacks for path, _ in stack} - {""})
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, cutoff=0.4) or known[:5]
            raise ValueError(f"skip names {name!r}, and the model has no such layer; near it: {', '.join(near)}")


def layers_of(graph: GraphModule, *, quantizer: str, skip: Collection[str]) -> tuple[Layer, ...]:
    """List the layers with weights of a graph that ``convert_pt2e`` made, and what each computes with.

    Args:
        graph: the converted graph.
        quantizer: who decided, for the reasons.
        skip: names that were left on request.
    """
    layers = []
    for node in graph.graph.nodes:
        weights = [t for given in node.all_input_nodes[1:] if (t := _stored(graph, given)) is not None and t.ndim > 1]
        operator = _operator(node)
        if not weights or not operator.startswith(LAYER_OPERATORS):
            continue
        name, kind = module_of(node)
        parameters = sum(tensor.numel() for tensor in weights)
        stored, taken = dtype_name(weights[0].dtype), _taken_as(node.args[0])
        layer = Layer(name or operator, kind or operator, parameters, stored, taken)
        if not layer.quantized:
            no_rule = f"the {quantizer} quantizer has no rule for {operator}"
            layer = replace(layer, why="skipped on request" if is_within(node, skip) else no_rule)
        layers.append(layer)
    return tuple(layers)


def attribute(graph: GraphModule, node: Node) -> Any:
    """Return the parameter, buffer or constant that a ``get_attr`` node stands for."""
    value: Any = graph
    for part in str(node.target).split("."):
        value = getattr(value, part)
    return value


def _module_name(path: str) -> str:
    return re.sub(r"@\d+", "", path).removeprefix("L['self']").removeprefix(".")


def _operator(node: Node) -> str:
    """Name an ATen operator without its overload: "conv2d"."""
    return getattr(node.target, "_opname", "") if node.op == "call_function" else ""


def _stored(graph: GraphModule, node: Any) -> Tensor | None:
    """Follow a weight through its dequantization to the tensor that is kept."""
    while isinstance(node, Node) and node.op == "call_function" and node.args:
        node = node.args[0]
    return attribute(graph, node) if isinstance(node, Node) and node.op == "get_attr" else None


def _taken_as(node: Any) -> str:
    if isinstance(node, Node) and _operator(node) == "dequantize_per_tensor":
        return dtype_name(node.args[DTYPE_OF_DEQUANTIZE])  # type: ignore[arg-type]
    return "float32"


def culprit(model: nn.Module, error: BaseException) -> str:
    """Name the module in whose code an export stopped; the last in the traceback, of the first cause that has one."""
    names = {id(module): name for name, module in model.named_modules()}
    found: nn.Module = model
    chained: BaseException | None = error
    while chained is not None:
        for frame, _ in traceback.walk_tb(chained.__traceback__):
            owner = frame.f_locals.get("self")
            found = owner if isinstance(owner, nn.Module) and id(owner) in names else found
        chained = chained.__cause__ or chained.__context__
    kind = type(found).__name__
    return f"{names[id(found)]} ({kind})" if names[id(found)] else kind
