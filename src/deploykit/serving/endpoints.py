"""The two ways to have something computed: tensors for programs, pictures for people."""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from starlette.responses import JSONResponse

from deploykit.serving.answers import Answer, ClientGoneError, RefusedError, document
from deploykit.serving.bodies import read_body
from deploykit.serving.images import BadImageError, decode
from deploykit.serving.protocol import HEADER_LENGTH, BadRequestError, parse, render
from deploykit.serving.service import Service
from deploykit.serving.uploads import file_in

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import Receive, Scope, Send

OCTETS = b"application/octet-stream"
LIKELIEST = 5  # classes in an answer
MOST_DECODING = 16  # pictures; the largest takes as long as a thousand small ones


class Endpoint(ABC):
    """An ASGI application for one route: reads the body, answers, and counts.

    Args:
        service: that computes.
    """

    def __init__(self, service: Service) -> None:
        self.service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        started = time.perf_counter()
        limits = self.service.limits
        headers = dict(scope["headers"])
        try:
            self.service.check_room()
            body = await read_body(headers, receive, limit_bytes=limits.max_body_bytes, timeout_s=limits.body_timeout_s)
            answer = await self.respond(headers, body, receive)
        except RefusedError as refused:
            answer = refused.answer()
        except (BadRequestError, BadImageError) as wrong:
            answer = RefusedError(400, str(wrong)).answer()
        except ClientGoneError:
            return
        self.service.metrics.answered(answer.status, time.perf_counter() - started)
        await answer.send(send)

    @abstractmethod
    async def respond(self, headers: Mapping[bytes, bytes], body: bytes, receive: Receive) -> Answer:
        """Return the answer to a whole request."""


class Infer(Endpoint):
    """Tensors in, logits out, by the Open Inference Protocol."""

    async def respond(self, headers: Mapping[bytes, bytes], body: bytes, receive: Receive) -> Answer:
        """Return the logits, as JSON or as bytes."""
        service = self.service
        request = parse(body, headers.get(HEADER_LENGTH), service.tensors)
        logits = await service.compute(request.images, receive)
        content, head = render(request, logits, service.model.name, service.tensors)
        if head is None:
            return Answer(200, content)
        return Answer(200, content, OCTETS, ((HEADER_LENGTH, str(head).encode()),))


class Classify(Endpoint):
    """A picture in, the likeliest classes out."""

    def __init__(self, service: Service) -> None:
        super().__init__(service)
        self._decoder = ThreadPoolExecutor(1, "decoder")  # off the event loop: a large picture takes its time
        self._decoding = 0

    async def respond(self, headers: Mapping[bytes, bytes], body: bytes, receive: Receive) -> Answer:
        """Return classes with their probabilities, the likeliest first."""
        model = self.service.model
        pixels = await self._decoded(await file_in(headers, body))
        logits = (await self.service.compute(model.normalise(pixels[None]), receive))[0].astype(np.float64)
        probabilities = np.exp(logits - logits.max())
        probabilities /= probabilities.sum()
        order = np.argsort(-probabilities)[:LIKELIEST]
        found = [{"class": model.classes[index], "probability": float(probabilities[index])} for index in order]
        return document({"model_name": model.name, "classes": found})

    async def _decoded(self, data: bytes) -> NDArray[np.uint8]:
        if self._decoding >= MOST_DECODING:
            raise self.service.not_now("full", "too many pictures wait to be decoded", 1.0)
        self._decoding += 1
        try:
            height, width = self.service.model.shape[1:]
            return await asyncio.get_running_loop().run_in_executor(self._decoder, decode, data, height, width)
        finally:
            self._decoding -= 1


async def error_answer(_: Request, error: Exception) -> Response:
    """Return what the framework refuses, or what went wrong here, in the protocol's form and without details."""
    status = getattr(error, "status_code", 500)
    return JSONResponse({"error": HTTPStatus(status).phrase.lower()}, status, headers=getattr(error, "headers", None))
