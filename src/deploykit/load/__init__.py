"""A load generator in a process of its own: requests leave at random times, whether or not earlier ones came back.

Latency counts from when a request was *meant* to leave. A client that waits for the answer before it sends the next
request leaves out exactly the requests that a slow server would have kept waiting: coordinated omission (Gil Tene,
"How NOT to Measure Latency"). The same run holds both figures, ``latency_s`` and ``service_s``.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

NO_ANSWER = 0  # in place of an HTTP status: it was sent, and the connection ended without a whole answer
NOT_SENT = -1  # there was no connection to send it on
MOST_CONNECTIONS = 1000  # select(2), which waits to the microsecond, knows 1,024 files
PATIENCE_S = 30.0  # for answers, after the last request has left
START_S = 60.0


@dataclass(frozen=True)
class Request:
    """What is sent, again and again.

    Attributes:
        url: ``http://host:port/path``.
        body: of a POST; a GET where it is empty.
        headers: others than host and length.
    """

    url: str
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Load:
    """What became of each request; times are seconds from the start.

    Attributes:
        intended: float64 [N], when it was meant to leave.
        sent: float64 [N], when it left: later where all connections were busy. NaN where it never did.
        done: float64 [N], when its answer was whole. NaN where there was none.
        status: int64 [N], of HTTP; :data:`NO_ANSWER`, :data:`NOT_SENT`.
        started: the time of the start, as ``time.time()`` counts.
    """

    intended: NDArray[np.float64]
    sent: NDArray[np.float64]
    done: NDArray[np.float64]
    status: NDArray[np.int64]
    started: float

    @property
    def latency_s(self) -> NDArray[np.float64]:
        """Seconds from when it was meant to leave to its answer, [N]."""
        return self.done - self.intended

    @property
    def service_s(self) -> NDArray[np.float64]:
        """Seconds from when it left to its answer, [N]: what a client sees that waits before it sends."""
        return self.done - self.sent

    @property
    def ok(self) -> NDArray[np.bool_]:
        """Which were answered with 200, [N]."""
        return self.status == 200  # noqa: PLR2004 - OK

    def counts(self) -> dict[int, int]:
        """Return how many requests ended with each status."""
        values, numbers = np.unique(self.status, return_counts=True)
        return {int(value): int(number) for value, number in zip(values, numbers, strict=True)}


def open_loop(request: Request, *, rate_per_s: float, seconds: float, connections: int = 128, seed: int = 0) -> Load:
    """Send requests at random times, a Poisson process, from a second process; returns when all are answered.

    Args:
        request: what to send.
        rate_per_s: requests per second, on average.
        seconds: for which requests leave.
        connections: kept open at most; a request that finds all of them busy leaves late, which its latency includes.
        seed: of the times.

    Raises:
        ValueError: a number that is not positive, more connections than the process can watch, or another URL.
        ChildProcessError: the second process failed; the message says of what.
    """
    return _apart(request, connections=connections, seconds=seconds, rate_per_s=rate_per_s, seed=seed)


def closed_loop(request: Request, *, clients: int, seconds: float) -> Load:
    """Let so many clients send one request after the other, from a second process: the most that the server can do.

    Args:
        request: what to send.
        clients: each waits for its answer before it sends again; what it was meant to send is what it sent.
        seconds: for which requests leave.

    Raises:
        ValueError, ChildProcessError: as for :func:`open_loop`.
    """
    return _apart(request, connections=clients, seconds=seconds)


def arrivals(rate_per_s: float, seconds: float, seed: int = 0) -> NDArray[np.float64]:
    """Return the times of a Poisson process, ascending, below ``seconds``: gaps are exponential and independent."""
    random = np.random.default_rng(seed)
    count = int(rate_per_s * seconds + 10 * np.sqrt(rate_per_s * seconds) + 10)
    times = random.exponential(1 / rate_per_s, count).cumsum()
    return times[times < seconds]


def _apart(request: Request, **job: Any) -> Load:
    numbers = {name: value for name, value in job.items() if name != "seed"}
    if wrong := [f"{name} is {value}" for name, value in numbers.items() if not value > 0]:
        raise ValueError(f"{wrong[0]}; give more than 0")
    if job["connections"] > MOST_CONNECTIONS:
        raise ValueError(f"{job['connections']} connections are too many; give at most {MOST_CONNECTIONS}")
    address = urlsplit(request.url)
    if address.scheme != "http" or not address.hostname or not address.port:
        raise ValueError(f"the URL is {request.url!r}; give http://host:port/path")
    data = _bytes_of(request)
    job |= {"host": address.hostname, "port": address.port, "bytes": len(data)}
    child = subprocess.run(
        [sys.executable, "-P", "-m", "deploykit.load.generator"],
        input=json.dumps(job).encode() + b"\n" + data,
        capture_output=True,
        check=False,
        timeout=START_S + job["seconds"] + 2 * PATIENCE_S,
    )
    if child.returncode:
        words = child.stderr.decode(errors="replace").strip().splitlines() or [f"exit status {child.returncode}"]
        raise ChildProcessError(f"the load generator failed: {words[-1]}")
    with np.load(io.BytesIO(child.stdout), allow_pickle=False) as arrays:
        intended, sent, done, status = (arrays[name] for name in ("intended", "sent", "done", "status"))
        return Load(intended, sent, done, status, started=float(arrays["started"]))


def _bytes_of(request: Request) -> bytes:
    address = urlsplit(request.url)
    path = (address.path or "/") + (f"?{address.query}" if address.query else "")
    lines = [f"{'POST' if request.body else 'GET'} {path} HTTP/1.1", f"host: {address.netloc}"]
    lines += [f"{name}: {value}" for name, value in request.headers.items()]
    lines.append(f"content-length: {len(request.body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + request.body
