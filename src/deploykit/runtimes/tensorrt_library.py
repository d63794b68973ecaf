"""Two libraries, one interface: TensorRT, and TensorRT-RTX, which also builds where there is no GPU."""

from __future__ import annotations

import functools
from typing import Any

RTX = "tensorrt_rtx"


def import_tensorrt() -> Any:
    """Return ``tensorrt``, or ``tensorrt_rtx`` where that is missing: the same names, for consumer GPUs.

    Raises:
        ImportError: both are missing; the message names the extras.
    """
    try:
        import tensorrt
    except ImportError:
        try:
            import tensorrt_rtx
        except ImportError as error:
            raise ImportError(
                "TensorRT is missing: pip install 'deploykit[gpu]' where there is an NVIDIA GPU, or 'deploykit[rtx]' "
                "for TensorRT-RTX, which builds engines without one"
            ) from error
        return tensorrt_rtx
    return tensorrt


def import_pycuda() -> Any:
    """Return ``pycuda.driver``.

    Raises:
        ImportError: PyCUDA or the CUDA driver is missing.
    """
    try:
        import pycuda.driver
    except ImportError as error:
        raise ImportError(
            f"PyCUDA is missing, or finds no CUDA driver: pip install 'deploykit[gpu]' ({error})"
        ) from error
    return pycuda.driver


@functools.cache
def logger(trt: Any) -> Any:
    """Return the logger of this process, which keeps what is said in ``lines``.

    One for all: while something made with a first logger is alive, TensorRT tells that one, and ignores others.
    """

    class Lines(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            if severity <= trt.ILogger.WARNING:
                self.lines.append(" ".join(msg.split()))

    return Lines()


def gpu_here(library: str) -> tuple[str | None, str | None]:
    """Return name and compute capability of the GPU that an engine is built for; twice None for RTX, which asks none.

    What RTX builds is compiled for a GPU where it runs first.
    """
    import torch

    if library == RTX or not torch.cuda.is_available():
        return None, None
    return torch.cuda.get_device_name(), ".".join(map(str, torch.cuda.get_device_capability()))
