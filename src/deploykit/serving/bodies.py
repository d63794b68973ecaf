"""A request's body, whole or not at all: bounded in bytes, whatever length was announced, and in time."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING

from deploykit.serving.answers import ClientGoneError, RefusedError

if TYPE_CHECKING:
    from starlette.types import Receive


async def read_body(headers: Mapping[bytes, bytes], receive: Receive, *, limit_bytes: int, timeout_s: float) -> bytes:
    """Return the body of a request.

    Args:
        headers: of the request, names in lower case.
        receive: ASGI's.
        limit_bytes: the most that is kept.
        timeout_s: within which all of it must arrive: a byte now and then does not hold a place for ever.

    Raises:
        RefusedError: too large (413), too slow (408), or compressed (415): what a body unpacks to is not known before.
        ClientGoneError: the client left.
    """
    if headers.get(b"content-encoding", b"identity").strip().lower() not in (b"identity", b""):
        raise RefusedError(415, "send the body without Content-Encoding")
    announced = headers.get(b"content-length", b"0")
    if not announced.isdigit() or len(announced) > 18 or int(announced) > limit_bytes:  # noqa: PLR2004 - 2**63
        raise _too_large(limit_bytes)
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGoneError
                part = message.get("body", b"")
                size += len(part)
                if size > limit_bytes:
                    raise _too_large(limit_bytes)
                parts.append(part)
                if not message.get("more_body", False):
                    return parts[0] if len(parts) == 1 else b"".join(parts)
    except TimeoutError as error:
        raise RefusedError(408, f"the body did not arrive within {timeout_s:g} s", close=True) from error


def _too_large(limit_bytes: int) -> RefusedError:
    return RefusedError(413, f"the body must have at most {limit_bytes} bytes")
