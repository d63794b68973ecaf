"""The load generator sends when it is meant to, counts from then, and says what became of every request."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Self

import numpy as np
import pytest
from scipy import stats

from deploykit.load import NO_ANSWER, NOT_SENT, Load, Request, arrivals, closed_loop, open_loop

ANSWER = b"HTTP/1.1 %d OK\r\ncontent-length: 2\r\n\r\nok"


class Server:
    """A server in a thread that answers one request after the other, each after ``delay_s``.

    Args:
        delay_s: for each.
        fail_every: the connection ends without an answer at each so many'th request.
    """

    def __init__(self, delay_s: float = 0.0, fail_every: int = 0) -> None:
        self.delay_s, self.fail_every = delay_s, fail_every
        self.requests: list[bytes] = []
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._listening = threading.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=[self._serve()])

    def __enter__(self) -> Self:
        """Listen."""
        self._thread.start()
        assert self._listening.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.port}/x"

    async def _serve(self) -> None:
        self._stop, self._one = asyncio.Event(), asyncio.Lock()
        server = await asyncio.start_server(self._answer, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._listening.set()
        await self._stop.wait()
        server.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            try:
                head = await reader.readuntil(b"\r\n\r\n")
            except asyncio.IncompleteReadError:
                return
            body = await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0]))
            self.requests.append(head + body)
            if self.fail_every and len(self.requests) % self.fail_every == 0:
                writer.close()
                return
            async with self._one:
                await asyncio.sleep(self.delay_s)
            writer.write(ANSWER % (503 if b"refuse" in body else 200))


@pytest.fixture
def quick() -> Iterator[Server]:
    """Run a server that answers at once."""
    with Server() as server:
        yield server


class TestArrivals:
    def test_they_are_a_poisson_process(self):
        """Gaps are exponential with the rate's mean (Kolmogorov-Smirnov), and as many as the rate says."""
        times = arrivals(200.0, 50.0, seed=1)
        gaps = np.diff(times)

        assert stats.kstest(gaps, "expon", args=(0, 1 / 200)).pvalue > 0.01
        assert abs(len(times) - 10_000) < 5 * np.sqrt(10_000)
        assert times[0] > 0
        assert times[-1] < 50

    def test_a_seed_is_a_schedule(self):
        """The same seed gives the same times, another one others."""
        assert (arrivals(10, 5, seed=1) == arrivals(10, 5, seed=1)).all()
        assert not np.array_equal(arrivals(10, 5, seed=1)[:10], arrivals(10, 5, seed=2)[:10])


class TestOpenLoop:
    def test_it_sends_what_it_was_given_when_it_was_meant_to(self, quick):
        """Every request of the schedule arrives whole, and none leaves before its time."""
        load = open_loop(Request(quick.url, b"body", {"X-Name": "a"}), rate_per_s=100, seconds=1, seed=3)

        assert load.counts() == {200: len(arrivals(100, 1, seed=3))}
        assert np.allclose(load.intended, arrivals(100, 1, seed=3))
        assert (load.sent >= load.intended).all()
        assert (load.done > load.sent).all()
        head = b"POST /x HTTP/1.1\r\nhost: 127.0.0.1:%d\r\nX-Name: a\r\ncontent-length: 4\r\n\r\nbody" % quick.port
        assert set(quick.requests) == {head}

    def test_it_does_not_wait_for_answers(self):
        """A server that does one request at a time gets the next ones while it is busy."""
        with Server(delay_s=0.05) as server:
            load = open_loop(Request(server.url), rate_per_s=60, seconds=0.5, seed=1)

        assert (load.sent[1:] < load.done[:-1]).sum() > 5
        assert load.latency_s.max() > 0.2  # they queue there: 60 a second are offered, 20 are done

    def test_a_client_that_waits_does_not_see_what_it_keeps_waiting(self):
        """One connection at three times the server's rate: counted from sending all looks well."""
        with Server(delay_s=0.05) as server:
            load = open_loop(Request(server.url), rate_per_s=60, seconds=1, connections=1, seed=1)

        assert np.median(load.latency_s) > 4 * np.median(load.service_s)

    def test_statuses_and_broken_connections_are_told_apart(self):
        """503 is an answer; a connection that ends is none; the others go on."""
        with Server(fail_every=5) as server:
            load = open_loop(Request(server.url, b"refuse"), rate_per_s=100, seconds=0.5, connections=4)

        assert set(load.counts()) == {503, NO_ANSWER}
        assert load.counts()[NO_ANSWER] == len(server.requests) // 5
        assert np.isnan(load.done[load.status == NO_ANSWER]).all()
        assert not load.ok.any()

    def test_where_nobody_listens_nothing_is_sent(self, quick):
        """The requests are there, and were never sent."""
        url = quick.url
        with Server() as gone:
            url = gone.url
        load = open_loop(Request(url), rate_per_s=50, seconds=0.3)

        assert set(load.counts()) == {NOT_SENT}
        assert np.isnan(load.sent).all()


class TestClosedLoop:
    def test_each_client_sends_when_it_has_its_answer(self):
        """Four clients at a server that does 50 a second: there are never more than four on the way."""
        with Server(delay_s=0.02) as server:
            load = closed_loop(Request(server.url), clients=4, seconds=1)
        on_the_way = [((load.sent <= moment) & (load.done > moment)).sum() for moment in load.sent]

        assert load.counts().keys() == {200}
        assert max(on_the_way) <= 4


@pytest.mark.parametrize(
    ("request_", "options", "words"),
    [
        (Request("https://x:1/"), {}, "the URL is 'https://x:1/'; give http://host:port/path"),
        (Request("http://x/"), {}, "give http://host:port/path"),
        (Request("http://x:1/"), {"rate_per_s": 0}, "rate_per_s is 0; give more than 0"),
        (Request("http://x:1/"), {"seconds": float("nan")}, "seconds is nan; give more than 0"),
        (Request("http://x:1/"), {"connections": 2000}, "2000 connections are too many; give at most 1000"),
    ],
)
def test_what_cannot_be_sent_is_refused(request_, options, words):
    """Before a process is started."""
    with pytest.raises(ValueError, match=words):
        open_loop(request_, **{"rate_per_s": 1, "seconds": 1, **options})


def test_figures_by_hand():
    """Latency counts from the intended time, service from the sent one."""
    load = Load(np.array([0.0, 1.0]), np.array([0.5, 1.0]), np.array([2.0, np.nan]), np.array([200, 0]), started=0.0)

    assert (load.latency_s[0], load.service_s[0]) == (2.0, 1.5)
    assert load.counts() == {200: 1, 0: 1}
    assert load.ok.tolist() == [True, False]
