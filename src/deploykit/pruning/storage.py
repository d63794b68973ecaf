"""What a sparse network takes to store, form by form, beside the limit that no form can pass."""

from __future__ import annotations

import lzma
import math
import zlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from .checks import check_model
from .int8_values import to_int8
from .masks import refuse_masks

if TYPE_CHECKING:
    import pandas as pd

Arrays = list["np.ndarray"]  # what a form consists of
BEST = 9  # compression level: the slowest, as a file is written once
VALUE_BITS = {"fp32": 32, "int8": 8}


def storage_sizes(model: nn.Module) -> pd.DataFrame:
    """Return how many bytes a network takes in each form, as it is and compressed.

    All tensors of the ``state_dict`` are counted. Those that can be sparse, floating-point with two dimensions or
    more, take the form; the rest (biases, batch norms) is float32 in each. The few bytes that say what is where come on
    top in a file, as ``save_sparse`` writes it. The limit is one for the positions, and counts all 32 or 8 bits of each
    value; compression can end below it, since values are predictable, too: of float32 the exponents, of int8 that
    small ones are many.

    Args:
        model: float32, without masks.

    Returns:
        A row for each form: form, bytes, deflate_bytes (zlib, as in zip and gzip), lzma_bytes (as in xz), and
        times_smaller, float32 as it is over ``deflate_bytes`` (over ``bytes`` for the limits, which are at the end and
        have no compressed form):

        - "dense, fp32" and "dense, int8": every weight, zeros too;
        - "COO, fp32": row and column of each number (int32) and the number, of the matrix [out, the rest];
        - "CSR, fp32": column of each number, where each row begins (int32), and the number;
        - "bitmask, fp32" and "bitmask, int8": a bit for each weight, and the numbers; float32 as four planes of
          bytes, the first bytes of all numbers first, which compresses better;
        - "entropy limit, fp32" and "…, int8": n H(s) bits for the positions in each tensor of n weights and sparsity s,
          with H the binary entropy (Shannon 1948, section 6), and all bits of the values.

    Raises:
        TypeError: the model is no ``torch.nn.Module``.
        ValueError: it has masks, or weights other than float32; NaN; nothing in it that can be sparse.
    """
    import pandas as pd

    sparse, rest = sparse_tensors(model)
    rows = [_row(form, [*map(_numpy, rest.values())], arrays(sparse)) for form, arrays in FORMS.items()]
    rest_bytes = sum(tensor.nbytes for tensor in rest.values())
    for values, bits in VALUE_BITS.items():
        limit = rest_bytes + math.ceil(sum(_entropy_bits(weight, bits) for weight in sparse.values()) / 8)
        rows.append([f"entropy limit, {values}", limit, None, None])
    table = pd.DataFrame(rows, columns=["form", "bytes", "deflate_bytes", "lzma_bytes"])
    table[["deflate_bytes", "lzma_bytes"]] = table[["deflate_bytes", "lzma_bytes"]].astype("Int64")
    table["times_smaller"] = table.loc[0, "bytes"] / table["deflate_bytes"].fillna(table["bytes"]).astype(float)
    return table


def sparse_tensors(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the tensors that can be sparse, float32 of two dimensions or more, and the rest, on the CPU, contiguous.

    Raises:
        TypeError: the model is no ``torch.nn.Module``.
        ValueError: it has masks, or weights other than float32; NaN; nothing in it that can be sparse.
    """
    if isinstance(model, nn.Module):
        refuse_masks(model, "storing a sparse network")
    check_model(model, "storing a sparse network")
    sparse: dict[str, Tensor] = {}
    rest: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            given = str(tensor.dtype).removeprefix("torch.")
            raise ValueError(f"{name} is {given}; sparse files hold float32 weights: call .float() on the model")
        matrix = tensor.is_floating_point() and tensor.ndim > 1
        (sparse if matrix else rest)[name] = tensor.detach().cpu().contiguous()
    if not sparse:
        raise ValueError(f"{type(model).__name__} has no weight of two dimensions or more that could be sparse")
    return sparse, rest


def pack(weight: Tensor) -> np.ndarray:
    """Return a bit for each weight, uint8 [ceil(n / 8)], the first in the highest bit: 1 where it is not 0."""
    return np.packbits(_numpy(weight).ravel() != 0)


def planes(values: np.ndarray) -> np.ndarray:
    """Return the bytes of float32 [n] as uint8 [4, n]: neighbours in a plane are alike, as in the HDF5 shuffle."""
    return np.ascontiguousarray(values.astype("<f4").view(np.uint8).reshape(-1, 4).T)


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.numpy()


def _dense(sparse: Mapping[str, Tensor]) -> Arrays:
    return [_numpy(weight) for weight in sparse.values()]


def _dense_int8(sparse: Mapping[str, Tensor]) -> Arrays:
    return [_numpy(part) for weight in sparse.values() for part in to_int8(weight)]


def _coo(sparse: Mapping[str, Tensor]) -> Arrays:
    matrices = [_numpy(weight.flatten(1)) for weight in sparse.values()]
    return [part for m in matrices for part in (*(index.astype(np.int32) for index in m.nonzero()), m[m != 0])]


def _csr(sparse: Mapping[str, Tensor]) -> Arrays:
    parts = []
    for weight in sparse.values():
        matrix = _numpy(weight.flatten(1))
        starts = np.concatenate([[0], (matrix != 0).sum(axis=1).cumsum()]).astype(np.int32)
        parts += [starts, matrix.nonzero()[1].astype(np.int32), matrix[matrix != 0]]
    return parts


def _bitmask(sparse: Mapping[str, Tensor]) -> Arrays:
    values = [_numpy(weight)[_numpy(weight) != 0] for weight in sparse.values()]
    return [*(pack(weight) for weight in sparse.values()), planes(np.concatenate(values))]


def _bitmask_int8(sparse: Mapping[str, Tensor]) -> Arrays:
    kept = [(weight != 0, *to_int8(weight)) for weight in sparse.values()]
    masks = [pack(weight) for weight in sparse.values()]
    return [*masks, *(_numpy(integers[mask]) for mask, integers, _ in kept), *(_numpy(steps) for *_, steps in kept)]


FORMS: dict[str, Callable[[Mapping[str, Tensor]], Arrays]] = {
    "dense, fp32": _dense,
    "dense, int8": _dense_int8,
    "COO, fp32": _coo,
    "CSR, fp32": _csr,
    "bitmask, fp32": _bitmask,
    "bitmask, int8": _bitmask_int8,
}


def _row(form: str, rest: Arrays, arrays: Arrays) -> list[Any]:
    content = b"".join(array.tobytes() for array in (*arrays, *rest))
    return [form, len(content), len(zlib.compress(content, BEST)), len(lzma.compress(content, preset=BEST))]


def _entropy_bits(weight: Tensor, value_bits: int) -> float:
    count, survivors = weight.numel(), int(weight.count_nonzero())
    density = survivors / count
    positions = -sum(share * math.log2(share) for share in (density, 1 - density) if share > 0)
    steps = len(weight) * 32 if value_bits < VALUE_BITS["fp32"] else 0
    return count * positions + survivors * value_bits + steps
