"""Sparse kernels on a CPU: a linear layer that stores and multiplies what is not 0, in compressed sparse rows (CSR)."""

from __future__ import annotations

import copy
import warnings

from torch import Tensor, nn

from .checks import check_model
from .masks import refuse_masks


class SparseLinear(nn.Module):
    """A linear layer for inference whose weight is a CSR matrix.

    Attributes:
        weight: float, sparse CSR [out, in]; for each row the columns that are not 0, and the numbers there.
        bias: float [out], or None.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        with warnings.catch_warnings():
            # Said once a process by torch: the format may change. It lives in memory only here, never in a file.
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")
            self.register_buffer("weight", weight.detach().to_sparse_csr())
        self.register_buffer("bias", None if bias is None else bias.detach().clone())

    def forward(self, inputs: Tensor) -> Tensor:
        """Map float [..., in] to float [..., out]."""
        rows = inputs.reshape(-1, inputs.shape[-1])
        outputs = (self.weight @ rows.T).T.reshape(*inputs.shape[:-1], self.weight.shape[0])
        return outputs if self.bias is None else outputs + self.bias

    def extra_repr(self) -> str:
        """Say its form."""
        out, inputs = self.weight.shape
        stored = self.weight.values().numel()
        return f"in_features={inputs}, out_features={out}, {stored:,} of {out * inputs:,} weights stored"


def sparse_linear(layer: nn.Linear) -> SparseLinear:
    """Return a module for inference that computes what ``layer`` does, and skips its zeros.

    The outputs differ from the dense layer's by rounding: the sum has fewer terms. Below some sparsity, three quarters
    or so, it is slower than the dense kernel, since it has to look up where each number belongs: measure it.

    Args:
        layer: float, on a CPU, without masks; it is not changed.

    Raises:
        TypeError: it is no ``nn.Linear``.
        ValueError: it has masks; NaN; its weights are all 0; it is not on a CPU.
    """
    if not isinstance(layer, nn.Linear):
        raise TypeError(f"sparse_linear takes an nn.Linear, not {type(layer).__name__}; PyTorch has no CSR convolution")
    refuse_masks(layer, "a sparse linear layer")
    check_model(layer, "a sparse linear layer")
    if layer.weight.device.type != "cpu":
        raise ValueError(f"the layer is on {layer.weight.device.type}; these kernels are for a CPU: call .cpu() on it")
    if not bool(layer.weight.any()):
        raise ValueError("every weight of the layer is 0, so its output is its bias; prune less")
    return SparseLinear(layer.weight, layer.bias)


def sparse_layers(model: nn.Module) -> nn.Module:
    """Return a copy in evaluation mode whose linear layers are sparse ones; other layers stay as they are.

    Args:
        model: float, on a CPU, from ``make_permanent``. Subclasses of ``nn.Linear`` stay dense: other modules read
            their weights.

    Raises:
        TypeError: the model is no ``torch.nn.Module``.
        ValueError: it has masks; it has no linear layer with a 0 in it; NaN.
    """
    if isinstance(model, nn.Module):
        refuse_masks(model, "a sparse network")
    check_model(model, "a sparse network")
    converted = copy.deepcopy(model).eval()
    linear = {name: m for name, m in converted.named_modules() if type(m) is nn.Linear and bool((m.weight == 0).any())}
    if not linear:
        raise ValueError(
            f"{type(model).__name__} has no Linear with zeros among its weights; call prune_weights and make_permanent"
        )
    if "" in linear:
        return sparse_linear(linear[""]).eval()
    for name, layer in linear.items():
        converted.set_submodule(name, sparse_linear(layer))
    return converted.eval()
