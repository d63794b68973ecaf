"""What a model costs besides time: multiply-accumulates, parameters, size in memory and on disk, peak memory.

This file needs nothing else of deploykit: copy it into a project and it works.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import math
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

MIB = 2**20


def macs(model: nn.Module, example: Tensor) -> int:
    """Return the multiply-accumulates of one image: half of what ``torch.utils.flop_counter`` counts.

    That counts convolutions and matrix products (no batch norm, pooling or activation), as papers do; kernels of
    LSTM, GRU and attention that it does not know are counted the same way here.

    Args:
        model: is run once in evaluation mode and left as it was.
        example: float [N, 3, H, W], N >= 1; only the first image is used.

    Raises:
        ValueError: nothing was counted, or nothing of a layer that multiplies, for example because its operations are
            those of a quantized kernel or of another runtime.
    """
    return macs_by_layer(model, example)[""]


def macs_by_layer(model: nn.Module, example: Tensor) -> dict[str, int]:
    """Return the multiply-accumulates of one image in each module that ran, by its name in ``model.named_modules()``.

    A container's number includes its children's, and "" is the whole model. Arguments and errors are those of
    :func:`macs`.
    """
    from torch.utils.flop_counter import FlopCounterMode

    names = {module: name for name, module in model.named_modules()}
    training = {module: module.training for module in names}
    counter = FlopCounterMode(display=False, custom_mapping=fused_kernels())
    flops: dict[nn.Module, int] = {}

    def enter(module: nn.Module, _: Any) -> None:
        flops[module] = flops.get(module, 0) - counter.get_total_flops()

    def leave(module: nn.Module, _: Any, __: Any) -> None:
        flops[module] += counter.get_total_flops()

    hooks = [module.register_forward_pre_hook(enter) for module in names]
    hooks += [module.register_forward_hook(leave) for module in names]
    fused = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)  # one kernel for a whole transformer layer: nothing to count in
        for module in training:
            module.training = False
        with torch.no_grad(), counter:
            model(example[:1])
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for hook in hooks:
            hook.remove()
        for module, was in training.items():
            module.training = was
    missed = [module for module, count in flops.items() if not count and _multiplies(module)]
    if missed or not counter.get_total_flops():
        what = f"layer {names[missed[0]]!r} ({type(missed[0]).__name__})" if missed else type(model).__name__
        raise ValueError(
            f"no operation of {what} is one that torch.utils.flop_counter knows (quantized and compiled models hide "
            "theirs); count the model that it was made from"
        )
    return {names[module]: count // 2 for module, count in flops.items()} | {"": counter.get_total_flops() // 2}


def _multiplies(module: nn.Module) -> bool:
    """Tell whether a module that ran cannot have done without a matrix product."""
    kinds = (nn.Linear, nn.modules.conv._ConvNd, nn.RNNBase, nn.MultiheadAttention)  # noqa: SLF001 - their only base
    return isinstance(module, kinds) or type(module).__module__.startswith("torch.ao.nn.quantized")


def fused_kernels() -> dict[Any, Callable[..., int]]:
    """Return FLOP formulas for the kernels that torch 2.14 counts as nothing: LSTM, GRU, attention on a CPU.

    ``FlopCounterMode(custom_mapping=fused_kernels())`` counts them.

    In each step a recurrent layer multiplies its input by W_ih and its state by W_hh (the equations in the
    documentation of ``nn.LSTM``; the sizes include the gates): every number of these matrices is used once.
    """
    from torch.utils.flop_counter import sdpa_flop_count

    aten = torch.ops.aten

    def layer(inputs: Sequence[int], w_ih: Sequence[int], w_hh: Sequence[int], *_: Any, **__: Any) -> int:
        return stack(inputs, (w_ih, w_hh))

    def stack(inputs: Sequence[int], weights: Sequence[Sequence[int]], *_: Any, **__: Any) -> int:
        *steps, _features = inputs  # steps and images in either order, or one number for packed sequences
        return 2 * math.prod(steps) * sum(math.prod(shape) for shape in weights if len(shape) > 1)  # the rest: biases

    def attention(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any) -> int:
        return sdpa_flop_count(query, key, value)

    return {
        aten.mkldnn_rnn_layer: layer,
        aten._cudnn_rnn: stack,  # noqa: SLF001 - the kernel's name
        aten.miopen_rnn: stack,
        aten._scaled_dot_product_flash_attention_for_cpu: attention,  # noqa: SLF001
    }


def parameters(model: nn.Module) -> int:
    """Return the number of parameters, shared ones once; zeros count like any other number."""
    return sum(parameter.numel() for parameter in model.parameters())


def tensor_size_mib(model: nn.Module) -> float:
    """Return the MiB of the model's parameters and buffers in memory, shared storage once."""
    stored = {
        (tensor.device, tensor.untyped_storage().data_ptr()): tensor.untyped_storage().nbytes()
        for tensor in (*model.parameters(), *model.buffers())
    }
    return sum(stored.values()) / MIB


def size_mib(path: Path | str) -> float:
    """Return the MiB of a file on disk, or of all files in a folder.

    An ONNX model whose weights lie in a second file beside it is a folder: give that.

    Raises:
        FileNotFoundError: there is nothing at ``path``.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; give the file or folder that is deployed")
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files) / MIB


class PeakMemory(NamedTuple):
    """Peak memory during a call, MiB.

    Attributes:
        process: resident memory of the whole process (Python, libraries, weights, everything loaded before).
        growth: how far that rose above its level before the call. What earlier calls left in allocators is reused
            unseen, so this is a lower bound; for models to be compared, measure each in a process of its own.
        device: what torch's CUDA allocator had handed out at most; None on a CPU.
    """

    process: float
    growth: float
    device: float | None


def peak_memory_mib(call: Callable[[], Any], *, device: str | torch.device = "cpu") -> PeakMemory:
    """Run ``call`` once and return the peak memory meanwhile.

    On Linux the kernel's own high-water mark is reset and read, so no peak is missed. Elsewhere resident memory is
    sampled every millisecond, and a shorter peak can be. On CUDA the allocator's peak is added: it leaves out the
    context (hundreds of MiB) and what other runtimes allocate.
    """
    import psutil

    device = torch.device(device)
    process = psutil.Process()
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # glibc keeps freed memory, which would hide growth
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    before = process.memory_info().rss
    with _PeakOfProcess(process) as resident:
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    on_device = torch.cuda.max_memory_allocated(device) / MIB if device.type == "cuda" else None
    peak = max(resident.peak, before)
    return PeakMemory(peak / MIB, (peak - before) / MIB, on_device)


class _PeakOfProcess:
    """The highest resident memory of this process, bytes, within a ``with`` block."""

    def __init__(self, process: Any) -> None:
        self.process, self.peak = process, 0
        self.over = threading.Event()
        self.sampler: threading.Thread | None = None

    def __enter__(self) -> Self:
        try:
            Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets VmHWM
        except OSError:
            self.sampler = threading.Thread(target=self._sample, daemon=True)
            self.sampler.start()
        return self

    def _sample(self) -> None:
        while not self.over.wait(0.001):
            self.peak = max(self.peak, self.process.memory_info().rss)

    def __exit__(self, *_: object) -> None:
        if self.sampler is None:
            status = Path("/proc/self/status").read_text()
            self.peak = int(status.split("VmHWM:")[1].split()[0]) * 1024
        else:
            self.over.set()
            self.sampler.join()
