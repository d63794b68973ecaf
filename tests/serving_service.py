"""A small service in a process of its own, whose predictor fails, waits or overflows when an image asks for it."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, NamedTuple

import numpy as np

from deploykit.serving.app import create_app
from deploykit.serving.model import Served
from deploykit.serving.protocol import decode, encode
from deploykit.serving.server import Server, listen, url_of
from deploykit.serving.service import Limits

SHAPE = (3, 8, 8)
CLASSES = ("cat", "dog", "owl", "elk")
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
WEIGHTS = np.random.default_rng(0).normal(size=(192, 4)).astype(np.float32)
POISON, HICCUP, SLOW, OVERFLOW = 666.0, 667.0, 668.0, 669.0  # in the first pixel
SLOW_S = 0.3
INFER = "/v2/models/net/infer"


class Predictor:
    """A linear model, and what an image may ask of it."""

    def __init__(self) -> None:
        self.had_hiccup = False

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Return logits."""
        asked = set(images[:, 0, 0, 0].tolist())
        if POISON in asked:
            raise ValueError("/home/secret/model.onnx does not like it")
        if HICCUP in asked and not self.had_hiccup:
            self.had_hiccup = True
            raise RuntimeError("once")
        if SLOW in asked:
            time.sleep(SLOW_S)
        return images.reshape(len(images), -1) @ WEIGHTS * (np.inf if OVERFLOW in asked else 1)


def model() -> Served:
    """Return the model."""
    return Served("net", Predictor(), SHAPE, CLASSES, MEAN, STD)


def images(count: int, *, first: float | None = None, seed: int = 0) -> np.ndarray:
    """Return normalised images float32 [count, 3, 8, 8], with what the first pixel asks for."""
    made = np.random.default_rng(seed).normal(size=(count, *SHAPE)).astype(np.float32)
    if first is not None:
        made[:, 0, 0, 0] = first
    return made


def logits(given: np.ndarray) -> np.ndarray:
    """Return what the model makes of images, computed here."""
    return given.reshape(len(given), -1) @ WEIGHTS


class Reply(NamedTuple):
    """A response; the names of headers are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> dict:
        """Its document."""
        return json.loads(self.body)


@dataclass
class Running:
    """A service that is ready."""

    host: str
    port: int
    process: subprocess.Popen[str]
    errors: IO[str]

    def talk(self) -> str:
        """Return what it has written to stderr."""
        self.errors.seek(0)
        return self.errors.read()

    def ask(self, method: str, path: str, body: object = None, headers: dict[str, str] | None = None) -> Reply:
        """Send one request on a connection of its own."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=30)
        with contextlib.closing(connection):
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            found = {name.lower(): value for name, value in response.getheaders()}
            return Reply(response.status, found, response.read())

    def infer(self, given: np.ndarray) -> Reply:
        """Send images as a binary tensor."""
        return self.ask("POST", INFER, *encode(given))

    def logits(self, given: np.ndarray) -> np.ndarray:
        """Return what the service makes of images."""
        reply = self.infer(given)
        assert reply.status == 200, reply
        return decode(reply.body, reply.headers)

    def figure(self, name: str) -> float:
        """Return one of the figures at /metrics, summed over its labels."""
        lines = self.ask("GET", "/metrics").body.decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith((f"{name} ", f"{name}{{")))

    @property
    def alive(self) -> bool:
        """Whether it computes what it should."""
        given = images(1, seed=9)
        return bool(np.allclose(self.logits(given), logits(given), rtol=1e-4, atol=1e-4))


@contextlib.contextmanager
def running(**limits: float) -> Iterator[Running]:
    """Run the service; ``request_s`` is the server's, the other limits are those of ``Limits``."""
    command = [sys.executable, __file__, json.dumps(limits)]
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        try:
            host, _, port = process.stdout.readline().strip().removeprefix("http://").partition(":")
            yield Running(host, int(port), process, errors)
        finally:
            process.kill()


def _main() -> None:
    limits = json.loads(sys.argv[1])
    server = {"request_s": limits.pop("request_s")} if "request_s" in limits else {}
    listener = listen()
    app = create_app(model(), Limits(**limits))

    def announce() -> None:
        sys.stdout.write(f"{url_of(listener)}\n")
        sys.stdout.flush()

    signal.signal(signal.SIGTERM, lambda *_: None)  # as `deploykit serve` does
    Server(app, announce=announce, **server).run(sockets=[listener])


if __name__ == "__main__":
    _main()
