"""Mixed precision: number formats and what gets lost in them, which operator computes in which, and fast inference.

This file needs nothing else of deploykit: copy it into a project and it works.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

if TYPE_CHECKING:
    import pandas as pd

LOW_PRECISION = (torch.bfloat16, torch.float16)


def autocast_inference(
    model: nn.Module, dtype: torch.dtype = torch.bfloat16, *, channels_last: bool = True
) -> Callable[[Tensor], Tensor]:
    """Return a function from images to logits that runs the model under ``torch.autocast``.

    The weights stay float32 and are converted in every call, which one image may not be worth; a copy of the model
    that was converted once, ``.to(dtype)``, does without, and without any operator in float32 too.

    Args:
        model: float32, in evaluation mode; it is copied, not changed. It runs on the device of its weights.
        dtype: bfloat16 or float16. Slow where the processor has no instructions for it, as most CPUs have none for
            float16.
        channels_last: the layout that convolutions in low precision like best; else contiguous.

    Returns:
        images float32 [N, C, H, W], from any device -> logits float32 [N, classes], on the model's device.

    Raises:
        TypeError: not a module.
        ValueError: another dtype, a model in training mode, weights other than float32, or on more than one device.
    """
    if dtype not in LOW_PRECISION:
        raise ValueError(f"dtype is {dtype}; autocast computes in torch.bfloat16 or in torch.float16")
    device = _checked_device(model)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    ready = copy.deepcopy(model).to(memory_format=layout)

    @torch.inference_mode()
    def predict(images: Tensor) -> Tensor:
        if images.dtype != torch.float32:
            raise ValueError(f"images are {images.dtype}; give float32 [N, C, H, W], autocast converts them itself")
        with torch.autocast(device.type, dtype):
            logits = ready(images.to(device, memory_format=layout))
        return logits.float()

    return predict


def _checked_device(model: nn.Module) -> torch.device:
    """Return where the weights of a float32 model in evaluation mode are; refuse any other model."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"autocast_inference takes a torch.nn.Module, not {type(model).__name__}")
    if any(module.training for module in model.modules()):
        raise ValueError(
            "the model is in training mode, where batch norm and dropout depend on the batch: call model.eval() first"
        )
    floats = {name: weight for name, weight in model.named_parameters() if weight.is_floating_point()}
    for name, weight in floats.items():
        if weight.dtype != torch.float32:
            raise ValueError(f"{name} is {weight.dtype}; autocast takes float32 weights: call .float() on the model")
    devices = {weight.device for weight in floats.values()}
    if len(devices) > 1:
        raise ValueError(f"the weights are on {', '.join(sorted(map(str, devices)))}; move the model to one device")
    return devices.pop() if devices else torch.device("cpu")


class NumberFormat(NamedTuple):
    """What a floating-point format can hold, from its sign, exponent and fraction bits.

    Attributes:
        dtype: torch's, None for a format that numbers are only multiplied in.
        bits: of a number: 1 sign bit, and these two.
        exponent_bits: decide about the range.
        fraction_bits: decide about the resolution.
        largest: the largest finite number.
        smallest_normal: the smallest positive number with full resolution.
        smallest: the smallest positive number at all, the first of the subnormal ones; it has one bit of resolution.
        resolution: the step from 1 to the next number. Relative steps are up to that, errors of rounding up to half.
    """

    dtype: torch.dtype | None
    bits: int
    exponent_bits: int
    fraction_bits: int
    largest: float
    smallest_normal: float
    smallest: float
    resolution: float


def number_format(dtype: torch.dtype) -> NumberFormat:
    """Return what a floating-point dtype can hold, from ``torch.finfo``.

    Raises:
        TypeError: a dtype without fractions.
    """
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(f"{dtype} is no floating-point dtype; give one such as torch.float16")
    info = torch.finfo(dtype)
    fraction = round(-math.log2(info.eps))
    # IEEE 754, section 3.3: subnormal numbers have the spacing of the smallest normal ones.
    return NumberFormat(
        dtype, info.bits, info.bits - 1 - fraction, fraction,
        info.max, info.smallest_normal, info.smallest_normal * info.eps, info.eps,
    )  # fmt: skip


def number_formats() -> dict[str, NumberFormat]:
    """Return the formats that networks are trained and deployed in, by their usual names.

    tf32 is no dtype: tensor cores round float32 to it before they multiply. It has the exponent of float32 and the
    fraction of float16, 19 bits in all (NVIDIA A100 Tensor Core GPU Architecture, 2020, "TensorFloat-32").
    """
    fp32, fp16 = number_format(torch.float32), number_format(torch.float16)
    tf32 = NumberFormat(
        None, 1 + fp32.exponent_bits + fp16.fraction_bits, fp32.exponent_bits, fp16.fraction_bits,
        # All fraction bits set, at float32's largest exponent.
        (2 - fp16.resolution) * 2.0 ** math.floor(math.log2(fp32.largest)),
        fp32.smallest_normal, fp32.smallest_normal * fp16.resolution, fp16.resolution,
    )  # fmt: skip
    return {
        "fp32": fp32,
        "tf32": tf32,
        "bf16": number_format(torch.bfloat16),
        "fp16": fp16,
        "fp8 e5m2": number_format(torch.float8_e5m2),
        "fp8 e4m3": number_format(torch.float8_e4m3fn),
    }


class Underflow(NamedTuple):
    """What becomes of numbers in a format, as shares of those that are not zero to begin with.

    Attributes:
        zero: rounded to zero: lost.
        subnormal: kept with less than the format's resolution.
        overflow: beyond the largest number: infinite, or saturated where the format has no infinity.
        values: how many numbers that is about.
    """

    zero: float
    subnormal: float
    overflow: float
    values: int


def underflow(gradients: Tensor | Iterable[Tensor], dtype: torch.dtype, *, scale: float = 1.0) -> Underflow:
    """Tell which share of gradients a dtype cannot hold, at a loss scale (Micikevicius et al. 2018, section 3.2).

    This rounds gradients that are known exactly, once. A backward pass in the dtype rounds after every layer, and what
    was lost at one of them is missing in all before it.

    Args:
        gradients: one tensor or several, float32 or float64, as they are without scaling.
        dtype: the format to round to, such as ``torch.float16``.
        scale: what the loss is multiplied by before the backward pass.

    Raises:
        TypeError: a dtype without fractions.
        ValueError: a scale that is not a positive number, gradients that are NaN, infinite or all zero.
    """
    held = number_format(dtype)
    if not 0 < scale < math.inf:
        raise ValueError(f"scale is {scale}; give a positive number, usually a power of two such as 65536")
    tensors = [gradients] if isinstance(gradients, Tensor) else list(gradients)
    sizes = torch.cat([tensor.detach().double().abs().flatten().cpu() for tensor in tensors] or [torch.zeros(0)])
    if not bool(sizes.isfinite().all()):
        raise ValueError("the gradients have NaN or infinity in them already; give those of a float32 backward pass")
    sizes = sizes[sizes > 0] * scale
    if not len(sizes):
        raise ValueError("there is no gradient other than zero, and none can be lost; was backward() called?")
    # Round to nearest, ties to even: half of the smallest number is zero, half a step beyond the largest is too much
    # unless the largest is even itself, as e4m3's 448 is.
    step = held.resolution * 2.0 ** math.floor(math.log2(held.largest))
    beyond = torch.ge if held.largest / step % 2 else torch.gt
    zero = sizes <= held.smallest / 2
    subnormal = ~zero & (sizes < held.smallest_normal - held.smallest / 2)
    overflow = beyond(sizes, held.largest + step / 2)
    lost, coarse, too_large = (float(found.double().mean()) for found in (zero, subnormal, overflow))
    return Underflow(lost, coarse, too_large, len(sizes))


class OperatorDtypes(TorchDispatchMode):
    """Records which operators run, on which floating-point dtypes, as they reach the kernels.

        with OperatorDtypes() as seen, torch.autocast("cpu", torch.bfloat16):
            loss = torch.nn.functional.cross_entropy(model(images), labels)
        seen.table()

    Casts that autocast inserts are operators as well: ``aten._to_copy``. Views compute nothing and are left out. In
    ``torch.inference_mode`` composite operators are seen whole, ``aten.conv2d`` for ``aten.convolution``. What a kernel
    accumulates in inside itself cannot be seen from here.

    Attributes:
        calls: (operator, distinct dtypes it takes, distinct dtypes it gives) to the number of calls.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[tuple[str, tuple[torch.dtype, ...], tuple[torch.dtype, ...]]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator and note it."""
        found = func(*args, **(kwargs or {}))
        takes, gives = _floating((args, kwargs)), _floating(found)
        if gives and not (func.is_view and takes == gives):
            self.calls[str(func.overloadpacket), takes, gives] += 1
        return found

    def dtypes(self, operator: str) -> set[torch.dtype]:
        """Return the dtypes that an operator, such as "aten.convolution", took in any call; empty if it never ran."""
        return {dtype for name, takes, _ in self.calls for dtype in takes if name == operator}

    def table(self) -> pd.DataFrame:
        """Return one row for each operator with the dtypes it takes and gives, in the order of their first calls."""
        import pandas as pd

        rows = [(name, _words(takes), _words(gives), count) for (name, takes, gives), count in self.calls.items()]
        return pd.DataFrame(rows, columns=["operator", "takes", "gives", "calls"])


def _floating(tree: Any) -> tuple[torch.dtype, ...]:
    tensors = (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor) and leaf.is_floating_point())
    return tuple(dict.fromkeys(tensor.dtype for tensor in tensors))


def _words(dtypes: tuple[torch.dtype, ...]) -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
