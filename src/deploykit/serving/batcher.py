"""Dynamic batching: requests that wait together are computed together, and a full queue says so at once.

A copyable recipe: the standard library and NumPy. The three names are those of Triton's dynamic batcher. With requests
of one size that divides ``max_batch_size``, an accepted one is answered within

    (ceil(max_queue_size / max_batch_size) + 1) * (time of a full batch) + max_queue_delay_us

since what waits before it fits into so many batches, one is being computed, and no batch waits longer for company.
Without a bound on the queue there is no such bound on the time.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Images = NDArray[np.float32]


class QueueFullError(Exception):
    """The queue has no room for this request.

    Attributes:
        retry_after_s: how long it will take to compute what waits now.
    """

    def __init__(self, retry_after_s: float) -> None:
        super().__init__(f"the queue is full; try again in {retry_after_s:.3g} s")
        self.retry_after_s = retry_after_s


class DeadlineError(TimeoutError):
    """The request was not computed in time."""


class PredictionError(Exception):
    """The predictor fails on this request, alone too; its own error is the cause."""


class ClosedError(Exception):
    """The batcher takes no more requests."""


@dataclass(eq=False, slots=True)
class _Request:
    images: Images
    future: asyncio.Future[NDArray[Any]]
    arrived: float
    waiting: bool = True
    timer: asyncio.TimerHandle | None = None


class Batcher:
    """One thread that computes what an event loop hands it, several requests at a time.

    Make it inside the event loop that it serves, and ``await close()`` in the end.

    Args:
        predict: from images float32 [N, ...] to results [N, ...]; called by one thread, one batch at a time.
        max_batch_size: images in a batch at most.
        max_queue_delay_us: microseconds for which a request may wait for others to fill its batch; it waits no longer
            than the predictor is busy where this is 0.
        max_queue_size: images, not requests, that may wait, beside those being computed.
        observe: is told the images and the seconds of each batch, by the thread that computed it.

    Raises:
        ValueError: a number out of its range.
        RuntimeError: there is no running event loop.
    """

    def __init__(
        self,
        predict: Callable[[Images], NDArray[Any]],
        *,
        max_batch_size: int = 16,
        max_queue_delay_us: int = 1000,
        max_queue_size: int = 64,
        observe: Callable[[int, float], None] | None = None,
    ) -> None:
        if max_batch_size < 1 or max_queue_delay_us < 0:
            raise ValueError(
                f"max_batch_size is {max_batch_size} and max_queue_delay_us is {max_queue_delay_us}; "
                "give at least 1 and at least 0"
            )
        if max_queue_size < max_batch_size:
            raise ValueError(
                f"max_queue_size is {max_queue_size}; give at least max_batch_size, {max_batch_size}: both count images"
            )
        self.max_batch_size, self.max_queue_size = max_batch_size, max_queue_size
        self.max_queue_delay_s = max_queue_delay_us / 1e6
        self._predict, self._observe = predict, observe
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._changed = threading.Condition(threading.Lock())
        self._requests: collections.deque[_Request] = collections.deque()
        self._queued = 0
        self._batch_s = 0.0
        self._closing = False
        threading.Thread(target=self._work, name="batcher", daemon=True).start()

    @property
    def queued(self) -> int:
        """Images that wait."""
        return self._queued

    def room_for(self, images: int) -> bool:
        """Say whether so many images would be taken now: who asks first can refuse a body without reading it."""
        return self._queued + images <= self.max_queue_size

    def full(self) -> QueueFullError:
        """Return the error for a request that there is no room for."""
        return QueueFullError((self._queued / self.max_batch_size + 1) * self._batch_s)

    def submit(self, images: Images, *, deadline_s: float | None = None) -> asyncio.Future[NDArray[Any]]:
        """Queue a request; cancel the future to take it back, which makes room at once.

        Args:
            images: float32 [n, ...], at most ``max_batch_size``; all requests have the same shape but for n.
            deadline_s: seconds after which nobody is interested any more.

        Returns:
            Becomes the results [n, ...], a view of its batch's; or raises :class:`DeadlineError` or
            :class:`PredictionError`.

        Raises:
            ValueError: no image, or more than a batch holds.
            QueueFullError: no room; nothing was queued.
            ClosedError: after :meth:`close`.
        """
        count = len(images)
        if not 1 <= count <= self.max_batch_size:
            raise ValueError(f"a request has {count} images; send 1 to {self.max_batch_size}, and more in several")
        request = _Request(images, self._loop.create_future(), time.monotonic())
        with self._changed:
            if self._closing:
                raise ClosedError("no more requests are taken")
            if not self.room_for(count):
                raise self.full()
            self._requests.append(request)
            self._queued += count
            # To wake the thread for each request, while it waits for a full batch, would cost more than it computes.
            if len(self._requests) == 1 or self._queued >= self.max_batch_size:
                self._changed.notify()
        if deadline_s is not None:
            request.timer = self._loop.call_later(deadline_s, _expire, request.future)
        request.future.add_done_callback(lambda _: self._forget(request))
        return request.future

    async def close(self) -> None:
        """Take no more requests, and return when those that wait are answered."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        await asyncio.shield(self._ended)

    def _forget(self, request: _Request) -> None:
        """Take a request that is over out of the queue, if it is still there: cancelled, or too late."""
        if request.timer is not None:
            request.timer.cancel()
        if request.waiting:
            with self._changed:
                if request.waiting:
                    request.waiting = False
                    self._requests.remove(request)
                    self._queued -= len(request.images)

    def _work(self) -> None:
        while batch := self._next_batch():
            started = time.perf_counter()
            results = self._results(batch)
            self._batch_s = time.perf_counter() - started
            self._tell(_deliver, batch, results)
            if self._observe is not None:
                self._observe(sum(len(request.images) for request in batch), self._batch_s)
        self._tell(_resolve, self._ended, None)

    def _tell(self, callback: Callable[..., None], *arguments: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the event loop was closed meanwhile: there is nobody to tell
            self._loop.call_soon_threadsafe(callback, *arguments)

    def _next_batch(self) -> list[_Request]:
        """Wait for a batch that is full or has waited long enough; returns none when all is done."""
        with self._changed:
            while (left_s := self._left_s()) > 0:
                self._changed.wait(None if left_s == math.inf else left_s)
            return self._take()

    def _left_s(self) -> float:
        """Return for how long the next batch may still grow."""
        if not self._requests:
            return 0.0 if self._closing else math.inf
        if self._queued >= self.max_batch_size or self._closing:
            return 0.0
        return self._requests[0].arrived + self.max_queue_delay_s - time.monotonic()

    def _take(self) -> list[_Request]:
        batch: list[_Request] = []
        room = self.max_batch_size
        while self._requests and len(self._requests[0].images) <= room:
            request = self._requests.popleft()
            request.waiting = False
            batch.append(request)
            room -= len(request.images)
        self._queued -= self.max_batch_size - room
        return batch

    def _results(self, batch: list[_Request]) -> list[NDArray[Any] | Exception]:
        """Return what each request gets; where the batch fails each is tried alone, so that one harms no other."""
        try:
            results = self._checked(np.concatenate([request.images for request in batch]))
        except Exception:  # noqa: BLE001 - whatever a predictor raises
            return [self._alone(request) for request in batch]
        ends = np.cumsum([len(request.images) for request in batch])
        return [*np.split(results, ends[:-1])] if len(batch) > 1 else [results]

    def _alone(self, request: _Request) -> NDArray[Any] | Exception:
        try:
            return self._checked(request.images.copy())
        except Exception as error:  # noqa: BLE001 - whatever a predictor raises
            failure = PredictionError("the predictor fails on this request")
            failure.__cause__ = error
            return failure

    def _checked(self, images: Images) -> NDArray[Any]:
        results = self._predict(images)
        if len(results) != len(images):
            raise ValueError(f"the predictor returned {len(results)} results for {len(images)} images")
        return results


def _deliver(batch: list[_Request], results: list[NDArray[Any] | Exception]) -> None:
    for request, result in zip(batch, results, strict=True):
        _resolve(request.future, result)


def _expire(future: asyncio.Future[Any]) -> None:
    _resolve(future, DeadlineError("the request was not computed before its deadline"))


def _resolve(future: asyncio.Future[Any], result: Any) -> None:
    if future.done():  # cancelled, or too late
        return
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)
