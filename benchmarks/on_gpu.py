"""CUDA graphs for the benchmarks that train: Python launches the kernels of small networks slower than a GPU runs them.

A training step of ResNet-20 is some hundred kernels of a few microseconds each. Recorded once, they are launched
together, and what is computed stays what it was. On a machine without a GPU nothing here does anything.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
WARM_UPS = 3  # before a recording, so that cuDNN has chosen its kernels


def _autocast() -> torch.autocast:
    # The cached casts of weights would lie outside the graph, and be stale when it is replayed.
    return torch.autocast("cuda", torch.bfloat16, cache_enabled=False)


@contextlib.contextmanager
def graphed(network: nn.Module, images: Tensor) -> Iterator[None]:
    """Within the context, a network on the GPU in training mode runs forwards and backwards as CUDA graphs, in bf16.

    Args:
        network: as it is going to be trained: its weights must stay where they are in memory.
        images: float32 [N, 3, H, W], a batch; all others must have its shape.
    """
    if images.device.type != "cuda":
        yield
        return
    before = copy.deepcopy(network.state_dict())  # the warm-up moves the statistics of batch norm
    with _autocast():
        torch.cuda.make_graphed_callables(network.train(), (images,), num_warmup_iters=WARM_UPS)
    network.load_state_dict(before)
    try:
        yield
    finally:
        del network.forward  # the instance's, which shadows the class's


class GraphedTeacher:
    """The answers of a network on the GPU, in bf16 and as a CUDA graph.

    Args:
        teacher: in evaluation mode.
        images: float32 [N, 3, H, W], a batch; all others must have its shape.
    """

    def __init__(self, teacher: nn.Module, images: Tensor) -> None:
        self._teacher = teacher  # its weights are read at each replay, where they lay when it was recorded
        self._images, self._graph = images.clone(), torch.cuda.CUDAGraph()
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.no_grad(), _autocast():
            with torch.cuda.stream(aside):
                for _ in range(WARM_UPS):
                    teacher(self._images)
            torch.cuda.current_stream().wait_stream(aside)
            with torch.cuda.graph(self._graph):
                self._logits = teacher(self._images)

    def __call__(self, images: Tensor) -> Tensor:
        """Return logits, float [N, classes]."""
        self._images.copy_(images)
        self._graph.replay()
        return self._logits.clone()
