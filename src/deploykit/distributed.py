"""Training by several processes at once, started by ``torchrun``; in a single process everything here does nothing.

torchrun describes the group in the environment, ``joined()`` enters it, and PyTorch's DistributedDataParallel averages
the gradients. This file needs nothing else of deploykit: copy it into a project and it works.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

Result = TypeVar("Result")


@contextlib.contextmanager
def joined(*, threads: int | None = None, timeout_s: float = 600.0) -> Iterator[None]:
    """Belong to the group of processes that torchrun started, while the block runs; outside torchrun do nothing.

    Processes on CPUs talk through gloo. Where there are GPUs, each process gets one (made current, so that ``"cuda"``
    means it) and tensors on it travel through NCCL. PyTorch's threads are shared out among the processes of this
    machine. ``OMP_NUM_THREADS`` wins, except at 1: torchrun itself sets that where it finds nothing.

    Args:
        threads: how many the processes of this machine may use together. None stands for what joblib counts: it
            respects the affinity and a container's quota, but misses that of a service (``machine.allowed_threads``).
        timeout_s: how long a process waits for one that lives but does not answer. The loss of a process that died is
            noticed at once.

    Raises:
        ValueError: there are GPUs, but fewer than processes.
    """
    if "WORLD_SIZE" not in os.environ or dist.is_initialized():
        yield
        return
    backend, local_rank, processes = "gloo", int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    if torch.cuda.is_available():
        if processes > torch.cuda.device_count():
            raise ValueError(
                f"{processes} processes were started on a machine with {torch.cuda.device_count()} GPUs; give torchrun "
                "--nproc-per-node at most that many, or set CUDA_VISIBLE_DEVICES to nothing to train on the CPU"
            )
        torch.cuda.set_device(local_rank)
        backend = "cpu:gloo,cuda:nccl"
    torch.set_num_threads(_threads_each(processes, threads, os.environ.get("OMP_NUM_THREADS")))
    dist.init_process_group(backend, timeout=dt.timedelta(seconds=timeout_s))
    try:
        yield
    finally:
        dist.destroy_process_group()


def _threads_each(processes: int, threads: int | None, given: str | None) -> int:
    import joblib

    if given and given.isdecimal() and int(given) > 1:
        return int(given)
    return max(1, (threads or joblib.cpu_count()) // processes)


def place() -> tuple[int, int]:
    """Return the rank of this process and the number of processes; ``(0, 1)`` outside a group."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


def is_first() -> bool:
    """Say whether this process is the one that prints and writes files: rank 0, or the only one."""
    return place()[0] == 0


def share_gradients(model: nn.Module) -> nn.Module:
    """Return ``model``, wrapped so that ``backward`` leaves every process with the mean of all gradients.

    All processes start from the weights and buffers of rank 0. BatchNorm normalises with the statistics of its own
    process's images, as DistributedDataParallel always has it; :func:`average_buffers` makes its running statistics
    those of all. Where the part of a process is too small for that, convert the model with
    ``torch.nn.SyncBatchNorm.convert_sync_batchnorm`` first (GPUs only).
    """
    rank, processes = place()
    if processes == 1:
        return model
    # Equal seeds are the rule; equal dropout masks on different images would be noise that does not average out.
    if rank > 0:
        torch.manual_seed(torch.initial_seed() + rank)
    device = next(model.parameters()).device
    shared = nn.parallel.DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)
    # Set now and not above: the buffers, too, start from those of rank 0; afterwards they are averaged.
    shared.broadcast_buffers = False
    return shared


@torch.no_grad()
def average_buffers(model: nn.Module) -> None:
    """Replace each floating-point buffer by its mean over the processes: after a step, all hold the same model."""
    buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
    _, processes = place()
    if processes == 1 or not buffers:
        return
    # In double precision the mean of equal numbers is that number: a constant table does not drift.
    flat = torch.cat([buffer.flatten().double() for buffer in buffers])
    dist.all_reduce(flat)
    for buffer, mean in zip(buffers, (flat / processes).split([b.numel() for b in buffers]), strict=True):
        buffer.copy_(mean.view_as(buffer))


def total(values: Sequence[float]) -> list[float]:
    """Add up the values of all processes, place by place, in double precision; every process gets the same sums."""
    _, processes = place()
    if processes == 1:
        return list(values)
    sums = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(sums)
    return sums.tolist()


def on_each(action: Callable[[], Result]) -> list[Result]:
    """Run ``action`` on every process and return all results by rank, on every process.

    An exception on one process is raised on all of them, so that none waits for an answer that will not come.
    """
    _, processes = place()
    if processes == 1:
        return [action()]
    outcomes: list[Any] = [None] * processes
    dist.all_gather_object(outcomes, _outcome(action))
    return [_result(outcome) for outcome in outcomes]


def on_first(action: Callable[[], Result]) -> Result:
    """Run ``action`` on rank 0 while the others wait; its result, or its exception, is that of all."""
    rank, processes = place()
    if processes == 1:
        return action()
    outcome = [_outcome(action) if rank == 0 else None]
    dist.broadcast_object_list(outcome, src=0)
    return _result(outcome[0])


def _outcome(action: Callable[[], Any]) -> tuple[Any, Exception | None]:
    try:
        return action(), None
    except Exception as error:  # noqa: BLE001 - whatever it is, it is raised again
        return None, error


def _result(outcome: Any) -> Any:
    result, error = outcome
    if error is not None:
        raise error
    return result
