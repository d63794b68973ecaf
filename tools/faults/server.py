"""A small CIFAR-10: an archive in its format, and a server that counts who asks for it."""

from __future__ import annotations

import contextlib
import functools
import gzip
import hashlib
import http.server
import io
import random
import tarfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

RECORDS = 40
BLOCKS_PER_S = 100


@functools.cache
def archive() -> bytes:
    """Return a gzip tar archive of six files of random records, laid out as CIFAR-10's."""
    from deploykit import cifar10

    source, packed = random.Random(0), io.BytesIO()  # noqa: S311 (pictures, not secrets)
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name in (*cifar10.TRAIN_FILES, cifar10.TEST_FILE):
            records = b"".join(bytes([i % 10]) + source.randbytes(cifar10.RECORD_BYTES - 1) for i in range(RECORDS))
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(records)
            tar.addfile(member, io.BytesIO(records))
    return gzip.compress(packed.getvalue(), mtime=0)  # the same bytes in every process


@functools.cache
def sha256() -> str:
    """Return the archive's SHA-256."""
    return hashlib.sha256(archive()).hexdigest()


def stand_in(url: str, sha256: str) -> None:
    """Have this process take the small archive at `url` for CIFAR-10."""
    from deploykit import cifar10

    cifar10.URL, cifar10.ARCHIVE_SHA256 = url, sha256
    cifar10.MEMBER_BYTES = RECORDS * cifar10.RECORD_BYTES


@dataclass
class Served:
    """Where the archive is, and the first byte that each request asked for."""

    url: str
    asked: list[int]


@contextlib.contextmanager
def serving(*, seconds: float) -> Iterator[Served]:
    """Serve the archive on this machine, taking about so long for the whole of it."""
    content, asked = archive(), list[int]()
    block = max(1, int(len(content) / seconds / BLOCKS_PER_S))

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Say nothing."""

        def do_GET(self) -> None:
            """Send the archive from the byte that is asked for."""
            start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
            asked.append(start)
            self.send_response(206 if start else 200)
            self.send_header("Content-Type", "application/x-gzip")
            self.send_header("Content-Length", str(len(content) - start))
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.end_headers()
            with contextlib.suppress(OSError):  # whoever asked is gone
                for position in range(start, len(content), block):
                    self.wfile.write(content[position : position + block])
                    time.sleep(1 / BLOCKS_PER_S)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield Served(f"http://127.0.0.1:{server.server_port}/cifar-10-binary.tar.gz", asked)
        server.shutdown()
