"""Quantized graphs of PyTorch on disk, as a local cache: the form is not safe to load from elsewhere."""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path

import torch
from torch import Tensor
from torch.fx import GraphModule

from .report import Quantized

PATHS_AND_NAMES = ("stack_trace", "nn_module_stack", "source_fn_stack", "from_node")  # of this machine's source files


def save_program(quantized: Quantized, path: Path | str, images: Tensor) -> str:
    """Write a quantized graph as an exported program (".pt2"), cleaned, and return the SHA-256 of the file.

    Cleaned: the float weights that it no longer uses, the names of source files and the example images stay out.

    Args:
        quantized: from ``quantize_pt2e`` or ``convert_qat``.
        path: where to; a file there is replaced.
        images: an example, float32 [N, C, H, W].
    """
    program = _export(quantized.model, images)
    for node in program.graph.nodes:
        for kept in PATHS_AND_NAMES:
            node.meta.pop(kept, None)
    program.example_inputs = None
    torch.export.save(program, path)
    return _sha256(path)


def load_program(path: Path | str, *, sha256: str) -> GraphModule:
    """Return the graph that :func:`save_program` wrote on this machine.

    Args:
        path: of the file.
        sha256: what :func:`save_program` returned. A ``.pt2`` file can run code when it is loaded, so that a file that
            nobody vouches for must not be.

    Raises:
        ValueError: the file is another one.
    """
    import torchao.quantization.pt2e  # noqa: F401 - registers the operators that the program consists of

    _check(path, sha256)
    return torch.export.load(path).module(check_guards=False)


def drop_unused(graph: GraphModule) -> None:
    """Delete the parameters and buffers that no node names, in place: conversion leaves the float weights behind."""
    used = {str(node.target) for node in graph.graph.find_nodes(op="get_attr")}
    for name in set(graph.state_dict()) - used:
        holder, _, last = name.rpartition(".")
        delattr(graph.get_submodule(holder), last)


def _export(graph: GraphModule, images: Tensor) -> torch.export.ExportedProgram:
    graph = copy.deepcopy(graph)
    drop_unused(graph)
    example = images[:1].repeat(2, 1, 1, 1)  # a batch of 1 would be taken for a constant
    return torch.export.export(graph, (example,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=1024)},))


def _check(path: Path | str, sha256: str) -> None:
    if _sha256(path) != sha256:
        raise ValueError(
            f"{path} is not the file that was saved (its SHA-256 differs); loading such a file can run code from it: "
            "delete it, and save the model again"
        )


def _sha256(path: Path | str) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
