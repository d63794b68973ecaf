"""uvicorn with an end to everything: who is too slow is cut off, and a stop loses nothing that was accepted."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

try:
    import uvicorn
except ImportError as missing:
    raise ImportError("uvicorn is missing: pip install 'deploykit[serving]'") from missing

if TYPE_CHECKING:
    from fastapi import FastAPI

    from deploykit.serving.service import Service

KEEP_ALIVE_S = 10  # that an idle connection stays open; uvicorn begins anew with each byte that comes
REQUEST_S = 15.0  # for a whole request, counted from the connection or the answer before
LAME_DUCK_S = 1.0  # of a stop, in which connections are still told that the service is draining
GRACE_S = 5  # of a stop, after that, for what was accepted
MOST_CONNECTIONS = 900  # most systems let a process have 1,024 files open
BACKLOG = 2048
TICK_S = 0.1
CLOSE = (b"connection", b"close")


class Server(uvicorn.Server):
    """Runs an application of ``create_app``: ``run()``, or ``await serve()``, both with ``sockets=[listen()]``.

    SIGTERM, SIGINT or ``should_exit = True`` end it: it says that it is not ready, answers what it has accepted, and
    returns. uvicorn itself has no limit on the time for headers and body, and waits for slow clients when it stops.

    Args:
        app: from ``create_app``.
        announce: is called when the model is warm.
        request_s: for a whole request, counted from the connection or the answer before; the connection is cut off
            after that.
    """

    def __init__(
        self, app: FastAPI, *, announce: Callable[[], None] | None = None, request_s: float = REQUEST_S
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=_protocol(),
                log_level="error",
                access_log=False,
                lifespan="on",
                ws="none",
                server_header=False,
                proxy_headers=False,
                limit_concurrency=MOST_CONNECTIONS,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=GRACE_S,
            )
        )
        self.service: Service = app.state.service
        self.request_s = request_s
        self._announce = announce
        self._since: dict[Any, tuple[Any, float]] = {}

    async def on_tick(self, counter: int) -> bool:
        """Look at the connections and the model; called ten times a second."""
        self._cut_off()
        if self.service.failure is not None:
            return True
        if self._announce is not None and self.service.ready:
            self._announce()
            self._announce = None
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more connections, answer on those there are, then close."""
        self.service.drain()
        await asyncio.sleep(0)  # who has just connected is taken; whom the system still held would be reset
        for server in self.servers:
            server.close()
        # To close idle connections at once would lose requests that are on their way: each gets one more answer.
        self.server_state.default_headers.append(CLOSE)
        end = time.monotonic() + LAME_DUCK_S
        while self.server_state.connections and time.monotonic() < end and not self.force_exit:  # noqa: ASYNC110
            await asyncio.sleep(TICK_S)  # uvicorn has no event for it
        for connection in self._owing_connections():
            if connection.cycle is not None and not connection.cycle.response_complete:  # the others are closed anyway
                connection.transport.abort()
        await super().shutdown(sockets)

    def _cut_off(self) -> None:
        """End the connections that have owed a request for too long."""
        now = time.monotonic()
        before, self._since = self._since, {}
        for connection in self._owing_connections():
            last, since = before.get(connection, (connection.cycle, now))
            if last is not connection.cycle:
                since = now
            self._since[connection] = connection.cycle, since
            if now - since > self.request_s:
                connection.transport.abort()

    def _owing_connections(self) -> list[Any]:
        """Return the connections that no whole request has come on since they were opened or answered."""
        connections: Iterable[Any] = self.server_state.connections
        return [one for one in connections if one.cycle is None or one.cycle.more_body or one.cycle.response_complete]


def _protocol() -> Any:
    """Return how connections are read; h11 has a limit on headers itself."""
    try:
        from deploykit.serving.connections import BoundedProtocol
    except ImportError:  # httptools is missing: slower, and as safe
        return "h11"
    return BoundedProtocol


def listen(host: str = "127.0.0.1", port: int = 0) -> socket.socket:
    """Return a socket that takes connections of this machine only, unless another host is named.

    Args:
        host: an address of this machine; "0.0.0.0" or "::" for all of them.
        port: 0 takes a free one.

    Raises:
        OSError: the port is taken, or the address is none of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=BACKLOG)


def url_of(listener: socket.socket) -> str:
    """Return where a listening socket is reached."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
