"""Speed that costs no accuracy: batch norm folded away, channels last, no autograd, a compiler, and bf16 on request.

This file needs nothing else of deploykit: copy it into a project and it works.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
from collections.abc import Callable

import torch
from torch import Tensor, nn

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def fold_batchnorm(model: nn.Module) -> nn.Module:
    """Return a copy in which each batch norm is part of the convolution (or linear layer) directly before it.

    In evaluation mode batch norm multiplies each channel by a constant and adds another; so does a convolution whose
    weights and bias were scaled beforehand (Jacob et al. 2018, section 3.2). One that follows anything else stays.

    Args:
        model: in evaluation mode; it is not changed. ``torch.fx`` must be able to trace it: no branch may depend on
            the values in a tensor.

    Raises:
        ValueError: the model is in training mode, cannot be traced, or has no batch norm that can be folded.
    """
    from torch.fx.experimental.optimization import fuse
    from torch.fx.proxy import TraceError

    _refuse_training_mode(model)
    try:
        folded = fuse(model)  # of a copy, which it makes itself
    except TraceError as error:
        raise ValueError(
            f"torch.fx cannot trace {type(model).__name__} ({error}); pass fold=False, or compile"
        ) from error
    if _batchnorms(folded) == _batchnorms(model):
        raise ValueError(
            f"{type(model).__name__} has {_batchnorms(model)} batch norms and none directly after a convolution or a "
            "linear layer: there is nothing to fold; pass fold=False"
        )
    return folded.eval()


def fast_predictor(
    model: nn.Module, *, fold: bool = True, compiled: bool = False, bf16: bool = False
) -> Callable[[Tensor], Tensor]:
    """Return a function from images to logits that gives the model's answers in less time.

    Without ``bf16`` the logits differ by rounding only. What is gained depends on the machine: measure it.

    Args:
        model: in evaluation mode; it is copied, not changed.
        fold: fold batch norm into the layers before it, see :func:`fold_batchnorm`.
        compiled: let ``torch.compile`` fuse what is left. On a CPU it needs a C++ compiler; the first call of each
            batch size takes seconds to minutes.
        bf16: compute in bfloat16, which keeps 8 of float32's 24 bits of precision. Slow where the processor has no
            instructions for it.

    Returns:
        images float32 [N, 3, H, W] -> logits float32 [N, classes].

    Raises:
        ValueError: see :func:`fold_batchnorm`.
    """
    _refuse_training_mode(model)
    dtype = torch.bfloat16 if bf16 else torch.float32
    ready = fold_batchnorm(model) if fold else copy.deepcopy(model)
    ready = ready.to(dtype).to(memory_format=torch.channels_last)
    forward = torch.compile(ready) if compiled else ready

    @torch.inference_mode()
    def predict(images: Tensor) -> Tensor:
        return forward(images.to(dtype=dtype, memory_format=torch.channels_last)).float()

    return predict


def keep_freed_memory() -> bool:
    """Tell glibc to keep the memory that tensors give back, for the rest of the process, and return whether it did.

    By default large pieces go back to the kernel when they are freed, and come again page by page, each of them cleared
    first: for an eager network that is thousands of page faults a call. In the environment of Python
    ``MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=2000000000`` does the same (mallopt(3)). The process keeps the most
    memory that it has ever used. Where there is no glibc nothing is changed.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # Windows knows no library None
        libc = ctypes.CDLL(None)
        return bool(libc.mallopt(M_MMAP_MAX, 0) and libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1))
    return False


def _refuse_training_mode(model: nn.Module) -> None:
    if any(module.training for module in model.modules()):
        raise ValueError(
            "the model is in training mode, where batch norm depends on the batch: call model.eval() first"
        )


def _batchnorms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())  # noqa: SLF001
