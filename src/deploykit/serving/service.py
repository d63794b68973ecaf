"""From a batch of images to logits, through the queue, and everything that can be in the way as an HTTP status."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deploykit.serving.answers import ClientGoneError, RefusedError
from deploykit.serving.batcher import Batcher, ClosedError, DeadlineError, PredictionError, QueueFullError
from deploykit.serving.metrics import Metrics
from deploykit.serving.model import Served
from deploykit.serving.protocol import Tensors

if TYPE_CHECKING:
    from starlette.types import Receive

PATIENCE_S = 0.05  # after which it is worth looking whether the client is still there
WARM_UPS = 3


@dataclass(frozen=True)
class Limits:
    """How much of everything.

    Attributes:
        max_batch_size: images computed together at most; also the most in one request.
        max_queue_delay_us: microseconds for which a request may wait for company.
        max_queue_size: images that may wait.
        deadline_ms: after which a request that was not computed is refused.
        max_body_bytes: of a request.
        body_timeout_s: within which a body must have arrived.
    """

    max_batch_size: int = 16
    max_queue_delay_us: int = 1000
    max_queue_size: int = 64
    deadline_ms: float = 2000.0
    max_body_bytes: int = 8 * 2**20
    body_timeout_s: float = 10.0

    def __post_init__(self) -> None:
        """Refuse what makes no sense.

        Raises:
            ValueError: a limit out of its range.
        """
        if self.max_queue_size < self.max_batch_size:
            raise ValueError(
                f"max_queue_size is {self.max_queue_size} and max_batch_size is {self.max_batch_size}; both count "
                "images: the queue has to hold a batch"
            )
        least = {"max_queue_delay_us": 0} | dict.fromkeys(("max_batch_size", "deadline_ms", "max_body_bytes"), 1)
        for name, lowest in least.items():
            if getattr(self, name) < lowest:
                raise ValueError(f"{name} is {getattr(self, name)}; give at least {lowest}")


class Service:
    """A model, its queue and its state: warming up, ready, or draining.

    Args:
        model: what to serve.
        limits: how much of everything.
    """

    def __init__(self, model: Served, limits: Limits) -> None:
        self.model, self.limits = model, limits
        self.metrics = Metrics(model.name, limits.max_batch_size)
        self.tensors = Tensors("images", "logits", model.shape, limits.max_batch_size)
        self.state = "warming up"
        self.failure: Exception | None = None
        self._batcher: Batcher | None = None

    @property
    def ready(self) -> bool:
        """Whether requests are computed."""
        return self.state == "ready"

    async def start(self) -> None:
        """Warm the model up, off the event loop, and be ready; what is wrong with it is in ``failure`` otherwise."""
        limits = self.limits
        self.failure = await self._warm_up()
        if self.failure is not None:
            self.state = "broken"
            return
        self._batcher = Batcher(
            self.model.predict,
            max_batch_size=limits.max_batch_size,
            max_queue_delay_us=limits.max_queue_delay_us,
            max_queue_size=limits.max_queue_size,
            observe=self.metrics.computed,
        )
        self.metrics.watch_queue(lambda: self._batcher.queued if self._batcher else 0)
        if self.state == "warming up":
            self.state = "ready"

    async def _warm_up(self) -> PredictionError | None:
        """Compute batches of every size: runtimes make kernels, and take memory, at the first of each."""
        most = self.limits.max_batch_size
        batcher = Batcher(self.model.predict, max_batch_size=most, max_queue_size=most, max_queue_delay_us=0)
        failure = None
        try:
            for size in [*range(1, most + 1)] * WARM_UPS:
                await batcher.submit(np.zeros((size, *self.model.shape), np.float32))
        except PredictionError as error:
            failure = error
        await batcher.close()
        return failure

    def drain(self) -> None:
        """Take no more requests; those that were accepted are answered."""
        self.state = "draining"

    async def close(self) -> None:
        """Wait for what was accepted."""
        self.drain()
        if self._batcher is not None:
            await self._batcher.close()

    def check_room(self) -> None:
        """Refuse, before a body is read, what there would be no place for.

        Raises:
            RefusedError: 503, with when to come back.
        """
        if not self.ready or self._batcher is None:
            raise self.not_now("not ready", f"the model is {self.state}", 1.0)
        if not self._batcher.room_for(1):
            raise self.not_now("full", "the queue is full", self._batcher.full().retry_after_s)

    async def compute(self, images: NDArray[np.float32], receive: Receive) -> NDArray[np.float32]:
        """Return logits float32 [n, classes]; a client that leaves meanwhile frees its place.

        Args:
            images: float32 [n, channels, height, width], finite, n from 1 to ``max_batch_size``.
            receive: ASGI's, which tells when the client is gone.

        Raises:
            RefusedError: 503 where there is no place or no time, 422 where the model cannot do it.
            ClientGoneError: the client has left.
        """
        self.check_room()
        loop = asyncio.get_running_loop()
        try:
            future = self._batcher.submit(images, deadline_s=self.limits.deadline_ms / 1000)  # type: ignore[union-attr]
        except QueueFullError as error:
            raise self.not_now("full", "the queue is full", error.retry_after_s) from error
        except ClosedError as error:
            raise self.not_now("not ready", "the service is draining", 1.0) from error
        # Most answers come sooner, and a task that waits for the client to leave costs more than all of batching.
        timer = loop.call_later(PATIENCE_S, _cancel_when_gone, receive, future)
        try:
            logits = await future
        except DeadlineError as error:
            raise self.not_now("deadline", "there was no time before the deadline", 1.0) from error
        except asyncio.CancelledError as error:
            if not future.cancelled() or asyncio.current_task().cancelling():  # type: ignore[union-attr]
                raise  # it is not the client but the service that ends
            raise ClientGoneError from error
        except PredictionError as error:
            raise RefusedError(422, "the model cannot compute these images") from error
        finally:
            timer.cancel()
        if not np.isfinite(logits).all():
            raise RefusedError(422, "the model has no finite answer to these images")
        return logits

    def not_now(self, why: str, words: str, retry_after_s: float) -> RefusedError:
        """Return a 503, counted: "full", "deadline" or "not ready"."""
        self.metrics.refused(why)
        return RefusedError(503, words, retry_after_s=retry_after_s)


def _cancel_when_gone(receive: Receive, future: asyncio.Future[Any]) -> None:
    """Cancel a future when the client leaves; stop looking when the future is done."""

    async def look() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        future.cancel()

    task = asyncio.ensure_future(look())
    future.add_done_callback(lambda _: task.cancel())
