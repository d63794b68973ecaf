"""Whatever a client sends, and whatever it leaves out, the answer is 4xx (503 when full) and the service goes on."""

from __future__ import annotations

import asyncio
import functools
import http.client
import io
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose
from PIL import Image
from serving_service import INFER, POISON, SLOW, Reply, Running, images, logits, running

from deploykit.load import NO_ANSWER, NOT_SENT, Request, open_loop
from deploykit.serving.protocol import encode

MARK = "q7Zsecret"  # in what is sent; in no answer
BODY_S, REQUEST_S = 0.5, 1.5  # for a body; for a whole request
GZIP = {"content-encoding": "gzip"}


@pytest.fixture(scope="module")
def service() -> Iterator[Running]:
    """Run an impatient service with small limits."""
    limits = {"max_body_bytes": 2**20, "body_timeout_s": BODY_S, "request_s": REQUEST_S}
    with running(max_batch_size=8, max_queue_delay_us=20_000, **limits) as started:
        yield started


def tensor(**changes: object) -> bytes:
    """Return a request in JSON that fits but for the changes."""
    whole = {
        "name": "images",
        "datatype": "FP32",
        "shape": [1, 3, 8, 8],
        "data": images(1).ravel().tolist(),
        "note": MARK,
    }
    return json.dumps({"inputs": [whole | changes]}).encode()


@functools.cache
def huge_picture(side: int = 20_000) -> bytes:
    """Return a whole PNG of so many pixels a side, which is small as a file."""
    file = io.BytesIO()
    Image.new("1", (side, side)).save(file, "PNG")
    return file.getvalue()


def infinite(service: Running) -> Reply:
    """Send an infinite number as a binary tensor."""
    return service.infer(np.full((1, 3, 8, 8), np.inf, np.float32))


def chunks() -> Iterator[bytes]:
    """Yield 50 MB, whose length nobody announces."""
    for _ in range(50):
        yield bytes(1_000_000)


ABUSES: dict[str, tuple[int, Callable[[Running], Reply]]] = {
    "wrong shape": (400, lambda s: s.ask("POST", INFER, tensor(shape=[1, 1, 8, 8]))),
    "wrong dtype": (400, lambda s: s.ask("POST", INFER, tensor(datatype="INT64"))),
    "more images than a batch": (400, lambda s: s.infer(images(9))),
    "not a number in JSON": (400, lambda s: s.ask("POST", INFER, tensor(data=[float("nan")] * 192))),
    "not a number in JSON, elsewhere": (400, lambda s: s.ask("POST", INFER, b'{"a": NaN}')),
    "not finite as bytes": (400, infinite),
    "no JSON": (400, lambda s: s.ask("POST", INFER, MARK)),
    "JSON 10,000 deep": (400, lambda s: s.ask("POST", INFER, b'{"a":' * 10_000 + b"1" + b"}" * 10_000)),
    "an array 10,000 deep": (
        400,
        lambda s: s.ask("POST", INFER, tensor(data=1).replace(b": 1,", b": " + b"[" * 10_000)),
    ),
    "not an image": (400, lambda s: s.ask("POST", "/classify", MARK * 100)),
    "a format that is not taken": (400, lambda s: s.ask("POST", "/classify", b"GIF89a\x01\x00\x01\x00\x00\x00\x00;")),
    "half an image": (400, lambda s: s.ask("POST", "/classify", huge_picture()[:60])),
    "20,000 x 20,000 pixels": (400, lambda s: s.ask("POST", "/classify", huge_picture())),
    "5,000 x 5,000 pixels": (400, lambda s: s.ask("POST", "/classify", huge_picture(5000))),
    "an empty body": (400, lambda s: s.ask("POST", "/classify")),
    "50 MB": (413, lambda s: s.ask("POST", INFER, bytes(50_000_000))),
    "50 MB of an image": (413, lambda s: s.ask("POST", "/classify", bytes(50_000_000))),
    "50 MB in chunks": (413, lambda s: s.ask("POST", INFER, chunks())),
    "a gzip bomb": (415, lambda s: s.ask("POST", INFER, b"\x1f\x8b" + bytes(100), GZIP)),
    "a form without end": (400, lambda s: s.ask("POST", "/classify", b"--x", {"content-type": "multipart/form-data"})),
    "a poisonous image": (422, lambda s: s.infer(images(1, first=POISON))),
}


@pytest.mark.parametrize("name", ABUSES)
def test_a_bad_request_is_refused_and_the_next_one_computed(service, name):
    """One status, a short answer that quotes nothing and names no file; then the model's own logits."""
    status, send = ABUSES[name]
    reply = send(service)

    assert reply.status == status
    assert list(reply.json) == ["error"]
    assert len(reply.body) < 200
    assert not any(word in reply.body for word in (MARK.encode(), b"/", b".py", b"Traceback"))
    assert service.alive


def test_a_poisonous_image_harms_no_neighbour(service):
    """Eight requests at once, one of them poisonous: seven are answered with what their images make."""
    given = [images(1, seed=number, first=POISON if number == 3 else None) for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(service.infer, given))

    assert [reply.status for reply in replies] == [200, 200, 200, 422, 200, 200, 200, 200]


def raw(service: Running, data: bytes, *, wait_s: float = 10) -> bytes:
    """Send bytes and return what comes until the service closes the connection."""
    with socket.create_connection((service.host, service.port), timeout=wait_s) as connection:
        received = b""
        try:
            connection.sendall(data)
            while part := connection.recv(65_536):
                received += part
        except ConnectionError:
            pass
        return received


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET /\x00 HTTP/1.1\r\n\r\n",
        b"POST /classify HTTP/1.1\r\nhost: x\r\ncontent-length: -5\r\n\r\n",
        b"POST /classify HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n",
        b"POST /classify HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nZZ\r\n",
    ],
)
def test_what_is_no_http_is_told_so(service, data):
    """400, and the connection is closed."""
    assert raw(service, data).startswith(b"HTTP/1.1 400 ")
    assert service.alive


def test_headers_without_end_are_cut_off():
    """A megabyte of them gets no answer, only an end, long before the time for a request is over."""
    data = b"GET /v2 HTTP/1.1\r\n" + b"".join(b"x-%d: %s\r\n" % (number, b"y" * 1000) for number in range(1000))

    with running(request_s=60) as service:
        assert raw(service, data) == b""
        assert service.alive


async def trickle(service: Running, data: bytes) -> tuple[bytes, float]:
    """Send a byte every tenth of a second; returns what came back, and the seconds until the connection ended."""
    reader, writer = await asyncio.open_connection(service.host, service.port)
    started = time.monotonic()
    answer = asyncio.ensure_future(reader.read())
    try:
        for byte in data:
            if answer.done():
                break
            writer.write(bytes([byte]))
            await asyncio.sleep(0.1)
        received = await answer
    except ConnectionError:
        received = b""
    writer.close()
    return received, time.monotonic() - started


def test_clients_at_a_byte_at_a_time_are_cut_off_and_hold_nobody_up(service):
    """Forty of them, half in their headers and half in their bodies; meanwhile others are answered."""

    async def scenario() -> list[tuple[bytes, float]]:
        head = b"POST /classify HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n"
        headers = [trickle(service, head * 10) for _ in range(20)]
        bodies = [trickle(service, b"x" * 1000) for _ in range(20)]
        for number in range(20):  # whole headers at once, then the trickle
            bodies[number].close()
            bodies[number] = _after(service, head)
        slow = asyncio.gather(*headers, *bodies)
        await asyncio.sleep(0.2)
        assert await asyncio.to_thread(lambda: service.alive)
        return await slow

    found = asyncio.run(scenario())

    assert {answer[:12] for answer, _ in found[20:]} == {b"HTTP/1.1 408"}
    assert {answer for answer, _ in found[:20]} == {b""}
    assert max(seconds for _, seconds in found) < 20
    assert service.alive


async def _after(service: Running, head: bytes) -> tuple[bytes, float]:
    """Send headers at once, and then nothing of the body that they announce."""
    reader, writer = await asyncio.open_connection(service.host, service.port)
    started = time.monotonic()
    writer.write(head + b"x")
    received = await reader.read()
    writer.close()
    return received, time.monotonic() - started


def test_its_own_description_is_true(tmp_path):
    """Schemathesis sends what the OpenAPI document allows, and what it does not: no 500, nothing undocumented.

    That valid data are accepted is not checked: the document cannot say that data holds the product of shape.
    """
    with running(max_batch_size=8) as service:
        command = [
            str(Path(sys.executable).parent / "schemathesis"), "run", f"http://{service.host}:{service.port}/openapi.json",
            "--max-examples=20", "--phases=examples,coverage,fuzzing", "--exclude-checks=positive_data_acceptance",
            "--suppress-health-check=all", "--seed=1", "--no-color",
        ]  # fmt: skip
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False)

        assert "Tested: 8" in done.stdout
        assert done.returncode == 0, done.stdout
        assert service.alive


class TestShutdown:
    @pytest.mark.parametrize("seed", range(3))
    def test_nothing_that_was_accepted_is_lost(self, seed):
        """SIGTERM under load: every request that found a connection is answered, with logits or with 503; status 0."""
        body, headers = encode(images(1, first=SLOW))
        with running(max_batch_size=8, max_queue_size=16) as service, ThreadPoolExecutor(1) as pool:
            request = Request(f"http://{service.host}:{service.port}{INFER}", body, headers)
            load = pool.submit(open_loop, request, rate_per_s=60, seconds=3, connections=64, seed=seed)
            while service.figure("deploykit_request_seconds_count") < 10:
                time.sleep(0.05)
            service.process.send_signal(signal.SIGTERM)
            started = time.monotonic()
            status, seconds = service.process.wait(20), time.monotonic() - started
            counts = load.result().counts()

        assert (status, NO_ANSWER in counts) == (0, False)
        assert set(counts) <= {200, 503, NOT_SENT}
        assert counts[200] >= 10
        assert counts[NOT_SENT] > 0
        assert seconds < 10

    def test_an_open_connection_is_told_before_it_is_closed(self):
        """On SIGTERM a connection that was open gets one more answer, which says that it ends; new ones are refused."""
        with running() as service:
            connection = http.client.HTTPConnection(service.host, service.port, timeout=10)
            connection.request("GET", "/v2/health/ready")
            before = connection.getresponse()
            before.read()
            service.process.send_signal(signal.SIGTERM)
            answer = before
            while answer.getheader("connection") != "close":
                connection.request("GET", "/v2/health/ready")
                answer = connection.getresponse()
                answer.read()
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((service.host, service.port))

        assert (before.status, answer.status) == (200, 503)

    def test_slow_clients_do_not_hold_it_up(self):
        """With clients in the middle of headers, and of bodies, it ends in order; nobody is waited for in vain."""
        with running() as service:
            heads = [
                b"POST /classify HTTP/1.1\r\nhost: x\r\n",
                b"POST /classify HTTP/1.1\r\ncontent-length: 9\r\n\r\nx",
            ]
            clients = [socket.create_connection((service.host, service.port)) for _ in range(10)]
            for number, client in enumerate(clients):
                client.sendall(heads[number % 2])
            assert service.alive
            service.process.send_signal(signal.SIGTERM)
            started = time.monotonic()
            status, seconds = service.process.wait(20), time.monotonic() - started
            for client in clients:
                client.close()
            talk = service.talk()

        assert (status, talk) == (0, "")  # uvicorn would say whom it had waited for in vain
        assert seconds < 10


def test_the_model_is_what_it_was(service):
    """After all of this, in the order of the file, the service computes what the model does."""
    given = images(8, seed=3)

    assert_allclose(service.logits(given), logits(given), rtol=1e-4, atol=1e-4)
