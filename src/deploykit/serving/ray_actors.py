"""What runs on Ray: replicas of the model, each behind a queue of its own, and the entrance that clients reach."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import numpy as np
from fastapi import FastAPI
from numpy.typing import NDArray

from deploykit.serving.answers import RefusedError
from deploykit.serving.app import application
from deploykit.serving.batcher import Batcher, PredictionError, QueueFullError
from deploykit.serving.model import Served
from deploykit.serving.service import WARM_UPS, Limits, Service

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle
    from starlette.types import Receive

Images = NDArray[np.float32]
Predict = Callable[[Images], NDArray[np.float32]]
Failure = Literal["full", "failed"]

ROOM_S = 0.1  # between two looks whether there is room
RETRY_AFTER_S = 1.0  # how long batches take is known in the replicas


class Model:
    """A replica: a copy of the model behind a queue of its own.

    ``@serve.batch`` would make the next batch while the last one is being computed, out of the few requests that come
    within the delay; :class:`Batcher` makes it when the model is free, out of all that wait.

    Args:
        load: returns the function that computes.
        shape: of an image.
        limits: of batches and of the queue.
    """

    def __init__(self, load: Callable[[], Predict], shape: tuple[int, ...], limits: Limits) -> None:
        predict = load()
        for size in (1, limits.max_batch_size):
            for _ in range(WARM_UPS):
                predict(np.zeros((size, *shape), np.float32))
        self._blank = np.zeros((1, *shape), np.float32)
        self._batcher = Batcher(
            predict,
            max_batch_size=limits.max_batch_size,
            max_queue_delay_us=limits.max_queue_delay_us,
            max_queue_size=limits.max_queue_size,
        )

    async def __call__(self, images: Images) -> NDArray[np.float32] | Failure:
        """Return logits float32 [n, classes], or why there are none: Ray would log each exception."""
        try:
            return await self._batcher.submit(images)
        except QueueFullError:
            return "full"
        except PredictionError:
            return "failed"

    async def check_health(self) -> None:
        """Compute something, when there is room: Ray replaces a replica where this raises or does not end."""
        while not self._batcher.room_for(1):  # noqa: ASYNC110 - the queue has no event for it
            await asyncio.sleep(ROOM_S)
        await self._batcher.submit(self._blank)


class Replicated(Service):
    """A service whose model computes elsewhere.

    Args:
        model: what is served; its ``predict`` is not called.
        limits: how much of everything.
        replicas: of the model.
    """

    def __init__(self, model: Served, limits: Limits, replicas: DeploymentHandle) -> None:
        super().__init__(model, limits)
        self._replicas = replicas

    async def start(self) -> None:
        """Be ready when a replica has answered; each has warmed itself up."""
        await self._replicas.remote(np.zeros((1, *self.model.shape), np.float32))
        if self.state == "warming up":
            self.state = "ready"

    def check_room(self) -> None:
        """Refuse what comes too early or too late; whether there is room, the queue says.

        Raises:
            RefusedError: 503, with when to come back.
        """
        if not self.ready:
            raise self.not_now("not ready", f"the model is {self.state}", RETRY_AFTER_S)

    async def compute(self, images: Images, receive: Receive) -> NDArray[np.float32]:  # noqa: ARG002 - Ray cancels
        """Return logits float32 [n, classes]; Ray cancels this where the client has left.

        Args:
            images: float32 [n, channels, height, width], finite, n from 1 to ``max_batch_size``.
            receive: ASGI's.

        Raises:
            RefusedError: 503 where there is no place, no time or no replica, 422 where the model cannot do it.
        """
        from ray.exceptions import RayActorError

        self.check_room()
        try:
            async with asyncio.timeout(self.limits.deadline_ms / 1000):
                try:
                    logits = await self._sent(images)
                except RayActorError:
                    logits = await self._sent_again(images)
        except QueueFullError as error:
            raise self.not_now("full", "the queue is full", error.retry_after_s) from error
        except TimeoutError as error:
            raise self.not_now("deadline", "there was no time before the deadline", RETRY_AFTER_S) from error
        except RayActorError as error:
            raise self.not_now("not ready", "the replicas of the model are failing", RETRY_AFTER_S) from error
        if logits is None:
            raise RefusedError(422, "the model cannot compute these images")
        if not np.isfinite(logits).all():
            raise RefusedError(422, "the model has no finite answer to these images")
        return logits

    async def _sent_again(self, images: Images) -> NDArray[np.float32] | None:
        """Send what a replica died with: it was accepted, and is not refused for want of room.

        It is sent no third time. If the replica died of it, it would kill one after the other.
        """
        while True:
            try:
                return await self._sent(images)
            except QueueFullError:
                await asyncio.sleep(ROOM_S)

    async def _sent(self, images: Images) -> NDArray[np.float32] | None:
        """Return logits; None where the model fails.

        Raises:
            QueueFullError: no replica, or not the one that was asked, has room.
        """
        from ray.serve.exceptions import BackPressureError

        answer = self._replicas.remote(images)
        try:
            logits = await answer
        except BackPressureError as error:
            raise QueueFullError(RETRY_AFTER_S) from error
        except asyncio.CancelledError:  # too late, or the client has left: nobody waits for it
            answer.cancel()
            raise
        if isinstance(logits, str):
            if logits == "full":
                raise QueueFullError(RETRY_AFTER_S)
            return None
        return logits


class Entrance:
    """What clients reach.

    Args:
        replicas: of the model.
        model: what is served.
        limits: how much of everything.
    """

    def __init__(self, replicas: DeploymentHandle, model: Served, limits: Limits) -> None:
        self._service = Replicated(model, limits, replicas)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Return the routes of ``create_app``."""
        return application(self._service)
