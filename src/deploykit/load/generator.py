"""The second process: sends what is due on connections that are free, and notes what comes back."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import selectors
import sys
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from deploykit.load import NO_ANSWER, NOT_SENT, PATIENCE_S, arrivals


class _Connection(asyncio.Protocol):
    """One request at a time; tells the generator of its answer, or of its end."""

    def __init__(self, generator: _Generator) -> None:
        self.generator = generator
        self.number: int | None = None
        self.received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport

    def send(self, number: int) -> None:
        self.number = number
        self.generator.sent[number] = time.perf_counter()
        self.transport.write(self.generator.request)

    def data_received(self, data: bytes) -> None:
        self.received += data
        head, end, body = self.received.partition(b"\r\n\r\n")
        if not end or self.number is None:
            return
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
        if len(body) < int(fields[b"content-length"]):
            return
        number, self.number, self.received = self.number, None, b""
        closes = fields.get(b"connection") == b"close"
        if closes:
            self.transport.abort()
        self.generator.answered(number, int(head[9:12]), None if closes else self)

    def connection_lost(self, _exc: Exception | None) -> None:
        if self.number is not None:
            self.generator.answered(self.number, NO_ANSWER, None)
        self.generator.lost(self)


class _Generator:
    """Keeps the schedule and the connections.

    Args:
        request: its bytes, headers and all.
        job: host, port, connections and seconds; rate_per_s and seed, or none where clients wait for their answers.
    """

    def __init__(self, request: bytes, job: Mapping[str, Any]) -> None:
        self.request, self.job = request, job
        self.intended: list[float] = []
        self.sent: list[float] = []
        self.done: list[float] = []
        self.status: list[int] = []
        self.idle: collections.deque[_Connection] = collections.deque()
        self.due: collections.deque[int] = collections.deque()
        self.open = self.opening = self.unanswered = 0
        self.tasks: set[asyncio.Task[None]] = set()
        self.all_answered = asyncio.Event()

    async def run(self) -> dict[str, Any]:
        """Send everything; returns the fields of :class:`Load`."""
        started, zero = time.time(), time.perf_counter()
        self.end = zero + self.job["seconds"]
        self.closed = "rate_per_s" not in self.job
        if self.closed:
            for _ in range(self.job["connections"]):
                self.add(time.perf_counter())
            await asyncio.sleep(self.job["seconds"])
        else:
            for moment in arrivals(self.job["rate_per_s"], self.job["seconds"], self.job["seed"]) + zero:
                if (left := moment - time.perf_counter()) > 0:
                    await asyncio.sleep(left)
                self.add(moment)
        if self.unanswered:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.all_answered.wait(), PATIENCE_S)
        times = {name: np.array(getattr(self, name)) - zero for name in ("intended", "sent", "done")}
        return {**times, "status": np.array(self.status, dtype=np.int64), "started": np.float64(started)}

    def add(self, moment: float) -> None:
        """Take up a request that is meant to leave now."""
        self.intended.append(moment)
        self.sent.append(np.nan)
        self.done.append(np.nan)
        self.status.append(NOT_SENT)
        self.unanswered += 1
        self.all_answered.clear()
        self.due.append(len(self.intended) - 1)
        self.send()

    def send(self) -> None:
        """Send what is due on connections that are free, the one that rested longest first; open more if allowed."""
        while self.due and self.idle:
            connection = self.idle.popleft()
            if not connection.transport.is_closing():
                connection.send(self.due.popleft())
        if len(self.due) > self.opening and self.open + self.opening < self.job["connections"]:
            self.opening += 1
            task = asyncio.ensure_future(self.connect())
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)

    async def connect(self) -> None:
        """Open one more connection, and use it."""
        loop = asyncio.get_running_loop()
        try:
            _, connection = await loop.create_connection(lambda: _Connection(self), self.job["host"], self.job["port"])
        except OSError:
            self.opening -= 1
            if self.due and not self.open:  # nobody else will send it
                self.answered(self.due.popleft(), NOT_SENT, None)
            return
        self.opening -= 1
        self.open += 1
        self.idle.append(connection)
        self.send()

    def answered(self, number: int, status: int, connection: _Connection | None) -> None:
        """Note an answer, or that there will be none; the connection is free if it is still there."""
        now = time.perf_counter()
        self.status[number] = status
        if status > 0:
            self.done[number] = now
        self.unanswered -= 1
        if connection is not None:
            self.idle.append(connection)
        if self.closed and now < self.end:
            self.add(now)
        elif not self.unanswered:
            self.all_answered.set()
        self.send()

    def lost(self, connection: _Connection) -> None:
        """Forget a connection that has ended."""
        self.open -= 1
        if connection in self.idle:
            self.idle.remove(connection)
        self.send()


def _main() -> None:
    job = json.loads(sys.stdin.buffer.readline())
    request = sys.stdin.buffer.read(job["bytes"])
    # The loop's usual selector rounds waiting up to a millisecond.
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
        arrays = runner.run(_Generator(request, job).run())
    np.savez(sys.stdout.buffer, **arrays)


if __name__ == "__main__":
    _main()
