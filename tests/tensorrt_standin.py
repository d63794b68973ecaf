# ruff: noqa: D102 - the methods are TensorRT's and PyCUDA's
"""TensorRT, PyCUDA and torch's CUDA as stand-ins, with no name that TensorRT 10 and 11 have not both.

ONNX Runtime is what computes. Work given to a stream is done when the stream is synchronised, not before, and memory
that was not written is NaN.
"""

from __future__ import annotations

import contextlib
import enum
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

LISTS = {
    version: json.loads((Path(__file__).parent / "tensorrt_api" / f"api-{version}.json").read_text(encoding="utf-8"))
    for version in (10, 11)
}
BOTH = {name: set(LISTS[10][name]) & set(LISTS[11][name]) for name in set(LISTS[10]) & set(LISTS[11]) - {"__version__"}}
FIRST_STREAM, FIRST_ADDRESS = 7, 4096


def enumeration(name: str) -> Any:
    """Return an enumeration of TensorRT, with the members that both versions have."""
    return enum.IntEnum(name, {member: LISTS[11][name][member] for member in BOTH[name]})


class Listed:
    """An object of TensorRT: who asks for a member that is not in both lists gets an AttributeError."""

    listed_as = ""

    def __getattribute__(self, name: str) -> Any:
        kind = object.__getattribute__(self, "listed_as")
        if kind and not name.startswith("_") and name != "listed_as" and name not in BOTH[kind]:
            raise AttributeError(f"{kind} of TensorRT 10 or 11 has no {name}")
        return object.__getattribute__(self, name)


class Memory(bytes):
    """What ``serialize`` returns."""


class Cache(Listed):
    """A timing cache."""

    listed_as = "ITimingCache"

    def __init__(self, content: bytes) -> None:
        self._content = content

    def serialize(self) -> Memory:
        return Memory(self._content)


class Config(Listed):
    """A builder's configuration, as far as its timing cache goes."""

    listed_as = "IBuilderConfig"

    def __init__(self) -> None:
        self._cache = Cache(b"")

    def create_timing_cache(self, serialized_timing_cache: bytes) -> Cache:
        return Cache(serialized_timing_cache)

    def set_timing_cache(self, cache: Cache, ignore_mismatch: bool) -> bool:  # noqa: FBT001 - positional in TensorRT
        if cache.serialize() == b"of another GPU" and not ignore_mismatch:
            return False
        self._cache = cache
        return True

    def get_timing_cache(self) -> Cache:
        return self._cache


class Gpu:
    """What the stand-ins share: memory, streams, contexts, and a log of what happened."""

    def __init__(self) -> None:
        self.room = 10**9  # bytes
        self.memory: dict[int, np.ndarray[Any, Any]] = {}
        self.pinned = 0
        self.streams: dict[int, Stream] = {}
        self.context: list[Any] = []
        self.retained = 0
        self.log: list[str] = []
        self.allocations = 0
        self.addresses = itertools.count(FIRST_ADDRESS, 4096)

    def require_context(self) -> None:
        if not self.context:
            raise RuntimeError("no currently active context?")


class Stream:
    """Work in order, done when somebody waits for it; while a graph records, it goes there."""

    def __init__(self, gpu: Gpu) -> None:
        gpu.require_context()
        self.gpu, self.handle = gpu, FIRST_STREAM + len(gpu.streams)
        self.waiting: list[Callable[[], None]] = []
        self.recording: list[Callable[[], None]] | None = None
        gpu.streams[self.handle] = self

    def give(self, work: Callable[[], None]) -> None:
        (self.waiting if self.recording is None else self.recording).append(work)

    def synchronize(self) -> None:
        self.gpu.require_context()
        waiting, self.waiting = self.waiting, []
        for work in waiting:
            work()


class Device:
    """A GPU's side of a buffer."""

    def __init__(self, gpu: Gpu, size: int) -> None:
        self.gpu, self.address = gpu, next(gpu.addresses)
        gpu.memory[self.address] = np.full(size // 4, np.nan, np.float32)
        gpu.allocations += 1

    def __int__(self) -> int:
        return self.address

    def free(self) -> None:
        self.gpu.require_context()
        del self.gpu.memory[self.address]


class Pinned:
    """The owner of page-locked memory."""

    def __init__(self, gpu: Gpu, count: int) -> None:
        self.gpu, self.values = gpu, np.full(count, np.nan, np.float32)
        gpu.pinned += 1

    @property
    def __array_interface__(self) -> dict[str, Any]:
        return self.values.__array_interface__

    def free(self) -> None:
        self.gpu.pinned -= 1


class Context:
    """A hold on the primary context."""

    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu
        gpu.retained += 1

    def __del__(self) -> None:
        self.gpu.retained -= 1

    def push(self) -> None:
        self.gpu.context.append(self)

    def pop(self) -> None:
        self.gpu.context.pop()


class Driver:
    """The part of ``pycuda.driver`` that is used."""

    class MemoryError(Exception):  # noqa: A001 - its name in PyCUDA
        """What PyCUDA raises where there is no room."""

    def __init__(self, gpu: Gpu) -> None:
        self.gpu, self.ready = gpu, False

    def init(self) -> None:
        self.ready = True

    def Device(self, index: int) -> Any:  # noqa: N802 - its name in PyCUDA
        assert self.ready
        assert index == 0
        gpu = self.gpu

        class Found:
            def retain_primary_context(self) -> Context:
                return Context(gpu)

        return Found()

    def Stream(self) -> Stream:  # noqa: N802 - its name in PyCUDA
        return Stream(self.gpu)

    def pagelocked_empty(self, shape: int, dtype: Any) -> np.ndarray[Any, Any]:
        self.gpu.require_context()
        assert dtype == np.float32
        return np.asarray(Pinned(self.gpu, shape))

    def mem_alloc(self, size: int) -> Device:
        self.gpu.require_context()
        used = sum(values.nbytes for values in self.gpu.memory.values())
        if used + size > self.gpu.room:
            raise self.MemoryError("cuMemAlloc failed: out of memory")
        return Device(self.gpu, size)

    def memcpy_htod_async(self, dest: Device, src: np.ndarray[Any, Any], stream: Stream) -> None:
        self.gpu.require_context()
        assert src.flags.c_contiguous
        stream.give(lambda: self._write(dest.address, src))

    def memcpy_dtoh_async(self, dest: np.ndarray[Any, Any], src: Device, stream: Stream) -> None:
        self.gpu.require_context()
        assert dest.flags.c_contiguous
        stream.give(lambda: np.copyto(dest, self.gpu.memory[src.address][: dest.size].reshape(dest.shape)))

    def _write(self, address: int, values: np.ndarray[Any, Any]) -> None:
        self.gpu.memory[address][: values.size] = values.ravel()


class Execution(Listed):
    """An execution context: it computes with ONNX Runtime."""

    listed_as = "IExecutionContext"

    def __init__(self, gpu: Gpu, session: Any) -> None:
        self._gpu, self._session = gpu, session
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._gpu.log.append(f"shape {shape[0]}")
        self._shapes[name] = tuple(shape)
        return "refuse shape" not in self._gpu.log

    def infer_shapes(self) -> list[str]:
        return [] if "no shapes" not in self._gpu.log else ["images"]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name in self._shapes:
            return self._shapes[name]
        (output,) = self._session.get_outputs()
        assert name == output.name
        return (next(iter(self._shapes.values()))[0], *output.shape[1:])

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._addresses[name] = memory
        return memory in self._gpu.memory

    def execute_async_v3(self, stream_handle: int) -> bool:
        self._gpu.require_context()
        if "refuse work" in self._gpu.log:
            return False
        self._gpu.log.append("execute")
        shapes, addresses = dict(self._shapes), dict(self._addresses)
        self._gpu.streams[stream_handle].give(lambda: self._compute(shapes, addresses))
        return True

    def _compute(self, shapes: dict[str, tuple[int, ...]], addresses: dict[str, int]) -> None:
        ((name, shape),) = shapes.items()
        images = self._gpu.memory[addresses[name]][: np.prod(shape)].reshape(shape)
        (logits,) = self._session.run(None, {name: images})
        (output,) = self._session.get_outputs()
        self._gpu.memory[addresses[output.name]][: logits.size] = logits.ravel()


class Engine(Listed):
    """An engine."""

    listed_as = "ICudaEngine"

    def __init__(self, gpu: Gpu, session: Any, modes: Any) -> None:
        self._gpu, self._session, self._modes = gpu, session, modes
        self._names = [value.name for value in (*session.get_inputs(), *session.get_outputs())]

    num_io_tensors = property(lambda self: len(self._names))
    device_memory_size_v2 = property(lambda self: 123_456)

    def get_tensor_name(self, index: int) -> str:
        return self._names[index]

    def get_tensor_mode(self, name: str) -> Any:
        return self._modes.INPUT if name == self._names[0] else self._modes.OUTPUT

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        value = next(
            value for value in (*self._session.get_inputs(), *self._session.get_outputs()) if value.name == name
        )
        return (-1, *value.shape[1:])

    def create_execution_context(self) -> Execution | None:
        return None if "no room for a context" in self._gpu.log else Execution(self._gpu, self._session)


class Library(Listed):
    """The module: TensorRT 11.4 unless a test says otherwise. Its plans are ONNX files."""

    def __init__(self, gpu: Gpu, name: str = "tensorrt", version: str = "11.4.0") -> None:
        self._gpu = gpu
        self.__name__, self.__version__ = name, version
        self._modes = enumeration("TensorIOMode")

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("_") and name not in BOTH:
            raise AttributeError(f"TensorRT 10 or 11 has no {name}")
        return object.__getattribute__(self, name)

    TensorIOMode = property(lambda self: self._modes)

    class ILogger:
        """A logger, to be subclassed."""

        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    def Runtime(self, logger: Any) -> Any:  # noqa: N802 - its name in TensorRT
        gpu, modes = self._gpu, self._modes
        gpu.require_context()

        class Runtime(Listed):
            listed_as = "Runtime"

            def deserialize_cuda_engine(self, serialized_engine: bytes) -> Engine | None:
                gpu.log.append("deserialize")
                try:
                    session = onnxruntime.InferenceSession(serialized_engine, providers=["CPUExecutionProvider"])
                except Exception:  # noqa: BLE001 - whatever is wrong with it, TensorRT answers with None
                    logger.log(1, "Serialization assertion failed")
                    return None
                return Engine(gpu, session, modes)

        return Runtime()


class Graph:
    """``torch.cuda.CUDAGraph``."""

    current: Stream

    def __init__(self) -> None:
        self.work: list[Callable[[], None]] = []

    def replay(self) -> None:
        Graph.current.gpu.log.append("replay")
        for work in self.work:
            Graph.current.give(work)

    def reset(self) -> None:
        Graph.current.gpu.log.append("reset")
        self.work = []


@contextlib.contextmanager
def recording(graph: Graph, *, stream: Stream) -> Iterator[None]:
    """Do as ``torch.cuda.graph``: work given to the stream is recorded and not done."""
    assert not stream.waiting, "what is under way has to be finished before"
    Graph.current, stream.recording = stream, graph.work
    yield
    stream.recording = None


@contextlib.contextmanager
def on_stream(stream: Stream) -> Iterator[None]:
    """Do as ``torch.cuda.stream``."""
    Graph.current = stream
    yield
