"""Dynamic quantization: int8 weights made beforehand, the scale of the activations found anew in every call.

It needs no image. What it touches are layers that are one matrix product each: linear ones and, in "torch.ao",
recurrent ones. A convolution stays as it is, so a convolutional network hardly changes, and the report says so.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Mapping

from torch import nn
from torch.nn.utils import parametrize

from .checks import check_model
from .report import Layer, Quantized, require_change

RECURRENT = (nn.LSTM, nn.GRU, nn.LSTMCell, nn.GRUCell, nn.RNNCell)  # torch.ao has int8 kernels for these
ATTENTION = nn.modules.linear.NonDynamicallyQuantizableLinear


def quantize_dynamic(model: nn.Module, *, backend: str = "torch.ao") -> Quantized:
    """Return a copy of the model whose linear layers multiply int8 numbers, with the list of its layers.

    - "torch.ao": ``Linear``, ``LSTM``, ``GRU`` and the recurrent cells, on CPUs. One scale for each weight and one for
      all activations of a call, of which it uses 7 bits, so that 16-bit sums cannot overflow on older CPUs. Hence an
      image's logits depend a little on the others in its batch. Deprecated in favour of torchao, without a successor
      for recurrent layers: torch's own ``DeprecationWarning`` says so.
    - "torchao": ``Linear`` only. A scale for each output of the weight, and one for each row of activations. Slower
      than float32 on small batches until ``torch.compile`` fuses what surrounds the integer product.

    Args:
        model: float32, in evaluation mode; it is copied, not changed.
        backend: "torch.ao" or "torchao".

    Returns:
        The quantized model, float32 [N, 3, H, W] -> logits float32 [N, classes] if that is what the model did, and
        its layers. The share of the weights that changed says how much there was to win.

    Raises:
        TypeError: ``model`` is no module.
        ValueError: the backend is unknown, or the model is in training mode, quantized already, not float32, for
            "torch.ao" not on the CPU, or has no layer that the backend quantizes.
        ImportError: "torchao" is not installed.
    """
    if backend not in BACKENDS:
        raise ValueError(f"there is no backend {backend!r} for dynamic quantization; use {' or '.join(BACKENDS)}")
    check_model(model, "quantize_dynamic")
    why_not, convert, inputs = BACKENDS[backend]
    weights = {name: count for name, module in model.named_modules() if (count := _weights(module))}
    reasons = {name: _why_float(model.get_submodule(name)) or why_not(model.get_submodule(name)) for name in weights}
    layers = tuple(
        Layer(
            name or "(the model itself)",
            type(model.get_submodule(name)).__name__,
            count,
            *(("float32", "float32") if reasons[name] else ("int8", inputs)),
            why=reasons[name],
        )
        for name, count in weights.items()
    )
    require_change(layers, backend, "quantize it statically, which reaches convolutions, or pick another backend")
    return Quantized(convert(model, {name: not reason for name, reason in reasons.items()}), backend, layers)


def _weights(module: nn.Module) -> int:
    """Return how many numbers a module's own weights hold: matrices and filters, no biases, no vectors of a norm."""
    own = [weight for name, weight in module.named_parameters(recurse=False) if "weight" in name]
    if parametrize.is_parametrized(module, "weight"):
        own += [module.weight]  # type: ignore[list-item]
    return sum(math.prod(weight.shape) for weight in own if weight.ndim > 1)


def _why_float(module: nn.Module) -> str:
    """Say why a layer can be quantized by no backend, or nothing."""
    if isinstance(module, nn.modules.conv._ConvNd):  # noqa: SLF001 - their only base
        return "dynamic quantization leaves convolutions out; quantize it statically"
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return "a look-up multiplies nothing; store its weights in fewer bits instead"
    if isinstance(module, nn.MultiheadAttention | ATTENTION):
        return "nn.MultiheadAttention uses its weights without calling a layer; write the projections as nn.Linear"
    if isinstance(module, nn.Linear) and "weight" not in module._parameters:  # noqa: SLF001 - hooks leave an attribute
        return "its weight is computed in each call (weight or spectral norm); remove the parametrization first"
    return "" if isinstance(module, nn.Linear | nn.RNNBase | nn.RNNCellBase) else "no backend knows this kind of layer"


def _why_not_torch_ao(module: nn.Module) -> str:
    if isinstance(module, nn.Linear):
        known = type(module) is nn.Linear
        return "" if known else "torch.ao takes nn.Linear itself, no class derived from it; use torchao"
    if type(module) not in RECURRENT:
        return "torch.ao has no dynamic kernel for it; an LSTM or a GRU has one"
    if getattr(module, "proj_size", 0):
        return "torch.ao ignores an LSTM's projection (proj_size); write it as an nn.Linear after the LSTM"
    return "" if module.bias else "torch.ao wants a recurrent layer with bias; give it one of zeros"


def _why_not_torchao(module: nn.Module) -> str:
    if isinstance(module, nn.Linear):
        return ""
    return f"torchao has no dynamic {type(module).__name__}; use torch.ao while it lasts, or nn.Linear for each gate"


def _with_torch_ao(model: nn.Module, chosen: Mapping[str, bool]) -> nn.Module:
    from torch.ao.quantization import default_dynamic_qconfig
    from torch.ao.quantization import quantize_dynamic as convert

    if elsewhere := next((p.device for p in model.parameters() if p.device.type != "cpu"), None):
        raise ValueError(f"torch.ao's int8 layers run on a CPU and the model is on {elsewhere}; call .cpu() on it")
    # It looks at children only, so that a model that is itself a layer needs a parent.
    parent = nn.Sequential(model)
    by_name = {f"0.{name}".removesuffix("."): default_dynamic_qconfig for name, change in chosen.items() if change}
    with warnings.catch_warnings():
        # The same news as its DeprecationWarning, which passes, once more from C++.
        warnings.filterwarnings("ignore", message=r"torch\.quantize_per_tensor, torch\.quantize_per_channel")
        return convert(parent, by_name)[0]


def _with_torchao(model: nn.Module, chosen: Mapping[str, bool]) -> nn.Module:
    try:
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_
    except ImportError as error:
        raise ImportError("torchao is not installed: pip install 'deploykit[compression]'") from error
    copied = copy.deepcopy(model)
    # The settings that it recommends would hold for everything that the process compiles from then on.
    config = Int8DynamicActivationInt8WeightConfig(set_inductor_config=False)
    quantize_(copied, config, filter_fn=lambda _, name: chosen.get(name, False))
    return copied


Convert = Callable[[nn.Module, Mapping[str, bool]], nn.Module]
# What each cannot do, how it converts, and what its kernels take the activations as.
BACKENDS: dict[str, tuple[Callable[[nn.Module], str], Convert, str]] = {
    "torch.ao": (_why_not_torch_ao, _with_torch_ao, "uint8"),
    "torchao": (_why_not_torchao, _with_torchao, "int8"),
}
