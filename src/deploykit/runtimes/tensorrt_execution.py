"""An engine while it is loaded: one context, one stream, and buffers, in the CUDA context that torch has, too."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .tensorrt_buffers import Buffer
from .tensorrt_library import logger

NAME = "TensorRT"


class Execution:
    """A loaded engine with one input and one output, float32. It serves one thread.

    Attributes:
        image: channels, height and width of what it takes.
    """

    def __init__(self, trt: Any, driver: Any, plan: bytes, path: Path, *, cuda_graph: bool = False) -> None:
        self._trt, self._driver, self._path, self._uses_graph = trt, driver, path, cuda_graph
        self._log = logger(trt)
        self._graph: Any = None
        self._recorded: tuple[int, ...] = ()
        self._buffers: dict[str, Buffer] = {}
        self._runtime: Any = None
        self._engine: Any = None
        self._context: Any = None
        self._stream: Any = None
        torch.cuda.init()  # first torch, then the others: a device has one primary context, and all of them share it
        driver.init()
        self._cuda = driver.Device(torch.cuda.current_device()).retain_primary_context()
        try:
            with self._current():
                self.image = self._open(plan)
        except BaseException:
            self.close()
            raise

    @property
    def is_closed(self) -> bool:
        """Whether all was given back."""
        return self._cuda is None

    def run(self, images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return the logits of images, a copy.

        Raises:
            RuntimeError: TensorRT fails; the message has its words.
            MemoryError: the GPU has no room for the batch.
        """
        with self._current():
            shapes = self._set_shapes(images.shape)
            arrays = {name: self._buffers[name].of_shape(shape) for name, shape in shapes.items()}
            for name, buffer in self._buffers.items():
                self._require(self._context.set_tensor_address(name, int(buffer.device)), f"an address for {name}")
            arrays[self._input][...] = images
            self._driver.memcpy_htod_async(self._buffers[self._input].device, arrays[self._input], self._stream)
            self._compute(len(images))
            self._driver.memcpy_dtoh_async(arrays[self._output], self._buffers[self._output].device, self._stream)
            self._stream.synchronize()
            if self._uses_graph and self._recorded != self._state(len(images)):
                self._record(len(images))
            return arrays[self._output].copy()

    def close(self) -> None:
        """Give everything back; a second time does nothing."""
        if self._cuda is None:
            return
        with self._current():
            if self._stream is not None:
                self._stream.synchronize()  # work under way still uses the buffers
            self._drop_graph()
            for buffer in self._buffers.values():
                buffer.free()
            # In this order: a context needs its engine, and that its runtime.
            self._context = self._engine = self._runtime = self._stream = None
        self._cuda = None

    @contextlib.contextmanager
    def _current(self) -> Iterator[None]:
        self._cuda.push()
        try:
            yield
        finally:
            self._cuda.pop()

    def _open(self, plan: bytes) -> tuple[int, ...]:
        self._log.lines.clear()
        self._runtime = self._trt.Runtime(self._log)
        self._engine = engine = self._runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise RuntimeError(f"{NAME} cannot load {self._path}. It says: {self._said}")
        self._context = engine.create_execution_context()
        if self._context is None:
            raise MemoryError(
                f"there is no room on the GPU to run {self._path}, which takes {engine.device_memory_size_v2:,} bytes; "
                f"close other predictors and programs that use it. {NAME} says: {self._said}"
            )
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        modes = {engine.get_tensor_mode(name): name for name in names}
        self._input, self._output = modes[self._trt.TensorIOMode.INPUT], modes[self._trt.TensorIOMode.OUTPUT]
        self._buffers = {name: Buffer(self._driver) for name in names}
        self._stream = self._driver.Stream()  # on the default one, each call would wait for all other work
        return tuple(engine.get_tensor_shape(self._input))[1:]

    def _set_shapes(self, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        self._require(self._context.set_input_shape(self._input, shape), f"images of shape {list(shape)}")
        if missing := self._context.infer_shapes():
            raise RuntimeError(f"{NAME} cannot tell shapes without {', '.join(missing)}")
        return {self._input: shape, self._output: tuple(self._context.get_tensor_shape(self._output))}

    def _compute(self, batch: int) -> None:
        if self._graph is not None and self._recorded == self._state(batch):
            with torch.cuda.stream(self._as_torch_stream()):
                self._graph.replay()
        else:
            self._enqueue()

    def _enqueue(self) -> None:
        self._require(self._context.execute_async_v3(self._stream.handle), "to compute this batch")

    def _record(self, batch: int) -> None:
        """Record one execution; an ordinary one with the same shapes came before, as TensorRT asks for."""
        self._drop_graph()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._as_torch_stream()):
            self._enqueue()
        self._graph, self._recorded = graph, self._state(batch)

    def _drop_graph(self) -> None:
        if self._graph is not None:
            self._graph.reset()
        self._graph, self._recorded = None, ()

    def _state(self, batch: int) -> tuple[int, ...]:
        """Return what a recording holds fast: the size of the batch, and the addresses."""
        return (batch, *(int(buffer.device) for buffer in self._buffers.values()))

    def _as_torch_stream(self) -> Any:
        return torch.cuda.ExternalStream(self._stream.handle)

    @property
    def _said(self) -> str:
        return " / ".join(self._log.lines[-2:]) or "nothing"

    def _require(self, done: bool, what: str) -> None:  # noqa: FBT001 - TensorRT answers with it
        if not done:
            raise RuntimeError(f"{NAME} refuses {what}. It says: {self._said}")
