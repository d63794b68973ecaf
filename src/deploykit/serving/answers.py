"""What goes back over HTTP: a status, headers and a body, sent without a framework in between."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from starlette.types import Send

JSON = b"application/json"


class Answer(NamedTuple):
    """One response.

    Attributes:
        status: of HTTP.
        body: whole.
        kind: its media type.
        headers: others than type and length.
    """

    status: int
    body: bytes
    kind: bytes = JSON
    headers: tuple[tuple[bytes, bytes], ...] = ()

    async def send(self, send: Send) -> None:
        """Send it."""
        own = [(b"content-type", self.kind), (b"content-length", str(len(self.body)).encode())]
        await send({"type": "http.response.start", "status": self.status, "headers": [*own, *self.headers]})
        await send({"type": "http.response.body", "body": self.body})


def document(content: Any, status: int = 200) -> Answer:
    """Return JSON as an answer."""
    return Answer(status, json.dumps(content).encode())


class ClientGoneError(Exception):
    """The client closed the connection before it had its answer: there is nobody to send one to."""


class RefusedError(Exception):
    """The request ends here; the text, for the client, holds nothing of the request and nothing of this machine.

    Args:
        status: of HTTP.
        words: what is needed.
        retry_after_s: when to come back.
        close: end the connection, too.
    """

    def __init__(self, status: int, words: str, *, retry_after_s: float | None = None, close: bool = False) -> None:
        super().__init__(words)
        self.status, self.words = status, words
        self.retry_after_s, self.close = retry_after_s, close

    def answer(self) -> Answer:
        """Return what the client gets, in the protocol's form of an error."""
        headers = []
        if self.retry_after_s is not None:  # HTTP knows whole seconds
            headers.append((b"retry-after", str(max(1, math.ceil(self.retry_after_s))).encode()))
        if self.close:
            headers.append((b"connection", b"close"))
        return document({"error": self.words}, self.status)._replace(headers=tuple(headers))
