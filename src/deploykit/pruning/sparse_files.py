"""A sparse network as a file: a bit for each weight, the numbers that are not 0, and gzip around it all."""

from __future__ import annotations

import gzip
import json
import os
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .int8_values import from_int8, to_int8
from .storage import BEST, pack, planes, sparse_tensors

FORMAT = "bitmask and values, version 1"
VALUES = ("float32", "int8")
LAYOUT, KEPT, STORED, STEPS, REST = "layout", "kept", "values", "steps", "rest."
GZIP, PICKLES = b"\x1f\x8b", (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def save_sparse(model: nn.Module, path: Path | str, *, values: str = "float32") -> None:
    """Write a sparse network to one file, complete or not at all.

    The file is gzip around safetensors: "kept" has a bit for each weight, "values" the numbers that are not 0, float32
    as four planes of bytes or int8, "steps" the steps of the latter; "layout" says in JSON whose they are; biases and
    batch norms follow in full. No pickle is in it, and no code is run in reading it.

    Args:
        model: float32, without masks.
        path: of the file; its folder is created if missing.
        values: "float32" keeps the weights bit for bit (-0 becomes 0); "int8" keeps those with two dimensions or more
            within half a step, a step being the largest of an output channel over 127.

    Raises:
        TypeError: the model is no ``torch.nn.Module``.
        ValueError: an unknown kind of values; masks; weights other than float32; NaN; nothing that can be sparse.
        OSError: the file cannot be written.
    """
    import safetensors.torch

    if values not in VALUES:
        raise ValueError(f"values {values!r} is unknown; use 'float32' or 'int8'")
    sparse, rest = sparse_tensors(model)
    described = {
        "format": FORMAT,
        "values": values,
        "sparse": [[name, list(weight.shape)] for name, weight in sparse.items()],
        "order": list(model.state_dict()),
    }
    flat = torch.cat([weight.flatten() for weight in sparse.values()])
    tensors = {f"{REST}{name}": tensor.clone() for name, tensor in rest.items()}  # two names may share a tensor
    tensors[LAYOUT] = torch.from_numpy(np.frombuffer(json.dumps(described).encode(), dtype=np.uint8).copy())
    tensors[KEPT] = torch.from_numpy(pack(flat))
    if values == "int8":
        coded = [to_int8(weight) for weight in sparse.values()]
        tensors[STORED] = torch.cat([integers.flatten() for integers, _ in coded])[flat != 0]
        tensors[STEPS] = torch.cat([steps for _, steps in coded])
    else:
        tensors[STORED] = torch.from_numpy(planes(flat[flat != 0].numpy()))
    # No time in it: the same network is the same file.
    _write(Path(path), gzip.compress(safetensors.torch.save(tensors), BEST, mtime=0))


def load_sparse(path: Path | str) -> dict[str, Tensor]:
    """Read what :func:`save_sparse` wrote.

    Returns:
        A ``state_dict`` with the weights in full, float32, for ``load_state_dict`` of a network of the same form.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, a pickle, or no file of this form.
    """
    import safetensors.torch

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; save_sparse writes one")
    content = path.read_bytes()
    if not content.startswith(GZIP):
        what = (
            "is a pickle (torch.save), which can run code and is never read here"
            if content.startswith(PICKLES)
            else "is no gzip file"
        )
        raise ValueError(f"{path} {what}; load_sparse reads what save_sparse wrote")
    try:
        tensors = safetensors.torch.load(gzip.decompress(content))
        return _decode(tensors, json.loads(tensors[LAYOUT].numpy().tobytes()))
    except (EOFError, OSError, zlib.error, safetensors.SafetensorError, LookupError, ValueError, TypeError,
            RuntimeError) as error:  # fmt: skip
        raise ValueError(
            f"{path} is damaged, or not written by save_sparse ({type(error).__name__}: {error}); restore the file"
        ) from error


def _decode(tensors: dict[str, Tensor], described: dict[str, Any]) -> dict[str, Tensor]:
    if described["format"] != FORMAT:
        raise ValueError(f"its format is {described['format']!r}, and {FORMAT!r} is read here")
    shapes = {name: torch.Size(shape) for name, shape in described["sparse"]}
    counts = [shape.numel() for shape in shapes.values()]
    kept = torch.from_numpy(np.unpackbits(tensors[KEPT].numpy(), count=sum(counts)).astype(bool))
    stored = tensors[STORED]
    if described["values"] == "float32":
        stored = torch.from_numpy(np.ascontiguousarray(stored.numpy().T).view("<f4").ravel().astype(np.float32))
    if len(stored) != int(kept.sum()):
        raise ValueError(f"{int(kept.sum())} weights are not 0, and {len(stored)} numbers are there for them")
    flat = torch.zeros(sum(counts), dtype=stored.dtype)
    flat[kept] = stored
    found = {name: part.view(shapes[name]) for name, part in zip(shapes, flat.split(counts), strict=True)}
    if described["values"] == "int8":
        steps = tensors[STEPS].split([shape[0] for shape in shapes.values()])
        found = {name: from_int8(found[name], step) for name, step in zip(found, steps, strict=True)}
    found |= {name.removeprefix(REST): tensor for name, tensor in tensors.items() if name.startswith(REST)}
    return {name: found[name].clone() for name in described["order"]}


def _write(path: Path, content: bytes) -> None:
    """Write under a name of its own beside the target, then rename: a reader finds all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".partial-") as partial:
        written = Path(partial) / path.name
        with written.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        written.replace(path)
