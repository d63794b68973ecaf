"""Downloading from a server that behaves badly in every way: complete and checked, or absent, and nothing lost."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time

import filelock
import pytest

from deploykit import download as module
from deploykit import places
from deploykit.download import DownloadError, Pace, download

CONTENT = gzip.compress(random.Random(0).randbytes(300_000))  # noqa: S311 - test data
SHA256 = hashlib.sha256(CONTENT).hexdigest()
BRISK = Pace(window_s=0.3, patience_s=5.0)


class Server(http.server.ThreadingHTTPServer):
    """Serves CONTENT; its attributes say how badly."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.kind = CONTENT, "application/x-gzip"
        self.ranges = True
        self.stop_after: int | None = None
        self.bytes_per_s: float | None = None
        self.asked: list[str | None] = []
        self.url = f"http://127.0.0.1:{self.server_port}/archive.tar.gz"

    def handle_error(self, request, client_address) -> None:
        """A client that hangs up is what is tested, not an error."""


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """Answer as badly as the server is told to."""
        server = self.server
        wanted = self.headers.get("Range")
        server.asked.append(wanted)
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and server.ranges else 0
        if start >= len(server.content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(server.content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(server.content) - 1}/{len(server.content)}")
        self.send_header("Content-Type", server.kind)
        self.send_header("Content-Length", str(len(server.content) - start))
        self.end_headers()
        end = len(server.content) if server.stop_after is None else start + server.stop_after
        block = int(server.bytes_per_s / 50) if server.bytes_per_s else 1 << 20
        for position in range(start, end, block):
            self.wfile.write(server.content[position : min(position + block, end)])
            if server.bytes_per_s:
                time.sleep(1 / 50)


@pytest.fixture
def server():
    """Return a running server."""
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def target(tmp_path):
    """Return where the file shall go."""
    return tmp_path / "archive.tar.gz"


def fetch(server, target, pace=BRISK):
    """Download from the server."""
    return download(server.url, target, sha256=SHA256, pace=pace)


def refusal(server, target, pace=BRISK) -> str:
    """Return the error of a download that fails."""
    with pytest.raises(DownloadError) as caught:
        fetch(server, target, pace)
    assert not target.exists()
    return str(caught.value)


def partials(target):
    """Return the files of unfinished attempts."""
    return sorted(target.parent.glob("*.partial-*"))


class TestComplete:
    def test_the_file_is_there_and_nothing_else(self, server, target):
        """No partial file is left beside it."""
        fetch(server, target)

        assert target.read_bytes() == CONTENT
        assert list(target.parent.iterdir()) == [target]

    def test_a_file_that_is_there_is_not_fetched_again(self, server, target):
        """Whoever comes second uses the first one's."""
        target.write_bytes(CONTENT)
        fetch(server, target)

        assert server.asked == []

    def test_many_at_once_download_once(self, server, target):
        """The lock saves the bandwidth of all but one."""
        server.bytes_per_s = 1e6
        threads = [threading.Thread(target=fetch, args=(server, target)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert target.read_bytes() == CONTENT
        assert server.asked == [None]

    def test_it_is_right_without_any_lock(self, server, target, monkeypatch):
        """On a drive where everybody gets the lock, each writes into a file of its own."""
        monkeypatch.setattr(filelock.SoftFileLease, "acquire", lambda *_, **__: None)
        server.bytes_per_s = 1e6
        threads = [threading.Thread(target=fetch, args=(server, target)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert len(server.asked) == 3
        assert target.read_bytes() == CONTENT
        assert partials(target) == []


class TestResuming:
    def test_a_download_that_broke_off_goes_on_where_it_ended(self, server, target):
        """The second request asks only for the rest."""
        server.stop_after = 100_000
        message = refusal(server, target)
        server.stop_after = None
        fetch(server, target)

        assert "0.1 MB are kept in" in message
        assert server.asked == [None, "bytes=100000-"]
        assert target.read_bytes() == CONTENT
        assert partials(target) == []

    def test_each_attempt_adds_to_the_last(self, server, target):
        """Three hundred kilobytes in hundreds; one partial file at any time."""
        server.stop_after = 100_000
        for _ in range(3):
            refusal(server, target)
            assert len(partials(target)) == 1
        fetch(server, target)

        assert server.asked[1:] == ["bytes=100000-", "bytes=200000-", "bytes=300000-"]

    def test_a_server_without_ranges_starts_again(self, server, target):
        """Its whole file replaces the partial one instead of being appended."""
        server.stop_after = 100_000
        refusal(server, target)
        server.stop_after, server.ranges = None, False
        fetch(server, target)

        assert target.read_bytes() == CONTENT

    def test_a_partial_file_that_is_complete_needs_no_more_bytes(self, server, target):
        """Killed between the last byte and the renaming."""
        target.with_name(f"{target.name}.partial-1-a").write_bytes(CONTENT)
        fetch(server, target)

        assert target.read_bytes() == CONTENT

    def test_killed_it_leaves_no_file_under_the_name_and_the_next_run_resumes(self, server, target):
        """SIGKILL in the middle."""
        server.bytes_per_s = 150_000
        code = (
            "import sys; from pathlib import Path; from deploykit.download import Pace, download;"
            "download(sys.argv[1], Path(sys.argv[2]), sha256=sys.argv[3], pace=Pace())"
        )
        process = subprocess.Popen([sys.executable, "-c", code, server.url, str(target), SHA256])
        deadline = time.monotonic() + 30
        while not (partials(target) and partials(target)[0].stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        left = partials(target)[0].stat().st_size

        assert not target.exists()
        assert 0 < left < len(CONTENT)
        server.bytes_per_s = None
        fetch(server, target)
        assert server.asked == [None, f"bytes={left}-"]
        assert target.read_bytes() == CONTENT


class TestRefusals:
    def test_no_network_is_said_in_seconds(self, server, target):
        """Nobody listens on that port."""
        server.url = "http://127.0.0.1:9/archive.tar.gz"

        assert refusal(server, target) == (
            "127.0.0.1:9 cannot be reached: there is no network, or no way to that server."
        )

    def test_a_name_that_cannot_be_looked_up_is_no_network(self, server, target):
        """The usual way of being offline."""
        server.url = "http://nowhere.invalid/archive.tar.gz"

        assert refusal(server, target) == "The name nowhere.invalid cannot be looked up: there is no network."

    def test_a_page_instead_of_the_archive_is_named(self, server, target):
        """The login page of a hotel."""
        server.content, server.kind = b"<html>Welcome</html>" * 20, "text/html; charset=utf-8"

        assert refusal(server, target) == (
            f"{server.url} answered with a text page (text/html; charset=utf-8) instead of the archive; "
            "a proxy or a login page of the network may stand between"
        )
        assert partials(target) == []

    def test_a_page_that_says_it_is_an_archive_is_noticed_too(self, server, target):
        """By its first two bytes."""
        server.content = b"<html>Welcome</html>" * 20

        assert refusal(server, target) == f"{server.url} answered with something that is not a gzip archive"

    def test_a_page_does_not_spoil_what_was_kept(self, server, target):
        """The partial file is as it was, and the next run resumes."""
        server.stop_after = 100_000
        refusal(server, target)
        server.content, server.kind, server.stop_after, server.ranges = b"<html>" * 50, "text/html", None, False
        refusal(server, target)

        assert [path.read_bytes() for path in partials(target)] == [CONTENT[:100_000]]

    def test_one_flipped_bit_is_noticed_and_thrown_away(self, server, target):
        """Complete, the right length, and wrong: nothing of it stays, and the next run gets the right one."""
        damaged = bytearray(CONTENT)
        damaged[150_000] ^= 1
        server.content = bytes(damaged)
        message = refusal(server, target)

        assert f"its SHA-256 is not the published one ({SHA256[:12]}…)" in message
        assert partials(target) == []
        server.content = CONTENT
        assert fetch(server, target).read_bytes() == CONTENT

    def test_a_flipped_bit_in_the_part_resumed_from_is_not_carried_on(self, server, target):
        """The third run starts anew."""
        target.with_name(f"{target.name}.partial-1-a").write_bytes(b"\x1f\x8b" + bytes(999))
        refusal(server, target)
        fetch(server, target)

        assert server.asked == ["bytes=1001-", None]

    def test_an_earlier_attempt_longer_than_the_file_is_thrown_away(self, server, target):
        """It cannot be a part of the file; the second run starts anew."""
        target.with_name(f"{target.name}.partial-1-a").write_bytes(CONTENT + b"x")
        refusal(server, target)

        assert partials(target) == []
        assert fetch(server, target).read_bytes() == CONTENT

    def test_a_full_disk_leaves_no_file_under_the_name(self, server, target):
        """A limit on file sizes stands for the disk; what fitted is kept for the next attempt."""
        code = (
            "import resource, signal, sys; from pathlib import Path; from deploykit.download import Pace, download;"
            "signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (99_000, 99_000));"
            "download(sys.argv[1], Path(sys.argv[2]), sha256=sys.argv[3], pace=Pace())"
        )
        command = [sys.executable, "-c", code, server.url, target, SHA256]
        run = subprocess.run(command, capture_output=True, text=True, check=False)

        assert "OSError: [Errno 27] File too large" in run.stderr
        assert not target.exists()
        assert partials(target)[0].stat().st_size == 99_000
        assert fetch(server, target).read_bytes() == CONTENT
        assert server.asked[1] == "bytes=99000-"

    def test_a_trickling_server_is_left_with_an_estimate_and_its_bytes_are_kept(self, server, target):
        """20 kB/s for 300 kB: about 14 s, and 5 are waited for."""
        server.bytes_per_s = 20_000
        started = time.monotonic()
        message = refusal(server, target)

        assert time.monotonic() - started < 5
        assert re.match(
            r"The server sends \d+ kB/s; the remaining 0.3 MB would take about \d+ seconds, and at most 5 seconds "
            r"are waited for. 0.0 MB are kept in .* and the next attempt continues there.",
            message,
        )
        assert partials(target)[0].stat().st_size > 0

    def test_a_silent_server_is_left_after_the_window(self, server, target):
        """It sends some bytes and then none, with the connection open."""
        server.bytes_per_s = 1e5
        real, pause = Handler.do_GET, threading.Event()

        def stall(handler):
            handler.server.stop_after = 20_000
            real(handler)
            pause.wait(10)

        Handler.do_GET = stall
        try:
            message = refusal(server, target)
        finally:
            Handler.do_GET = real
            pause.set()

        assert message.startswith("The download from 127.0.0.1")
        assert "are kept in" in message

    def test_patience_without_end_takes_a_slow_server(self, server, target):
        """Who asks for cifar10 by name gets it, however long it takes."""
        server.bytes_per_s = 200_000

        assert fetch(server, target, Pace(window_s=0.3, patience_s=None)).read_bytes() == CONTENT

    def test_an_error_status_is_passed_on(self, server, target, monkeypatch):
        """404 with the server's words."""
        monkeypatch.setattr(Handler, "do_GET", lambda handler: handler.send_error(404))

        assert refusal(server, target) == f"{server.url} answered 404 Not Found"


class TestWhatTheDeadLeft:
    @pytest.fixture
    def dead(self) -> int:
        """Return the number of a process that has ended."""
        process = subprocess.Popen([sys.executable, "-S", "-c", ""])
        process.wait()
        return process.pid

    def left_by(self, process: int, target):
        """Return the name that a process of this machine gave its attempt."""
        ours = places.unique_name(target, module.ATTEMPT_MARK).name
        return target.with_name(ours.replace(f"-{os.getpid()}-", f"-{process}-"))

    def test_its_turn_stops_nobody(self, server, target):
        """A process killed while downloading leaves its turn behind; the next one takes it at once."""
        code = (
            "import os, sys; from pathlib import Path; from deploykit.places import one_at_a_time\n"
            "with one_at_a_time(Path(sys.argv[1]), doing='x'): os.kill(os.getpid(), 9)"
        )
        subprocess.run([sys.executable, "-c", code, target], check=False)
        assert target.with_name(f"{target.name}.turn").exists()
        fetch(server, target)

        assert list(target.parent.iterdir()) == [target]
        assert module.CONNECT_TIMEOUT_S < 10

    def test_its_bytes_are_taken_over_and_not_copied(self, server, target, dead):
        """So the disk needs room for one archive, not two."""
        left = self.left_by(dead, target)
        left.write_bytes(CONTENT[:100_000])
        server.stop_after = 0
        refusal(server, target)

        assert not left.exists()
        assert [path.read_bytes() for path in partials(target)] == [CONTENT[:100_000]]

    def test_they_go_once_the_file_is_there(self, server, target, dead):
        """What a process killed beside a luckier one left; a living one's file stays."""
        self.left_by(dead, target).write_bytes(CONTENT[:9])
        living = self.left_by(os.getpid(), target)
        living.write_bytes(CONTENT[:9])
        target.write_bytes(CONTENT)
        fetch(server, target)

        assert partials(target) == [living]
