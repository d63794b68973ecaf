"""One large file from the network: complete and checked, or absent; resumed where the last attempt ended.

Every process writes into a file of its own, so nothing depends on a lock being honoured (on network drives it often is
not). An attempt that ends early, even by being killed, leaves that file, and the next attempt starts from a copy of
the longest one. Processes take turns only to save the bandwidth.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit import places

if TYPE_CHECKING:
    from requests import Response

CONNECT_TIMEOUT_S = 4.0
BLOCK_BYTES = 1 << 16
GZIP_MAGIC = b"\x1f\x8b"
ATTEMPT_MARK = ".partial"


class DownloadError(ConnectionError):
    """The file could not be had; the message says why, what was kept and what to do."""


class _TooLongError(Exception):
    """More bytes were kept from an earlier attempt than the file has."""


@dataclass(frozen=True)
class Pace:
    """How slow a server may be.

    Attributes:
        window_s: the rate is measured over this many seconds, again and again; a silence of that length is an end too.
        patience_s: longest acceptable estimate for the rest, in seconds; None waits as long as bytes come at all.
    """

    window_s: float = 10.0
    patience_s: float | None = 600.0


def download(url: str, target: Path, *, sha256: str, pace: Pace) -> Path:
    """Download a gzip file unless ``target`` is there already.

    Args:
        url: where from.
        target: where to; it appears under this name only complete and checked.
        sha256: of the whole file, in hex.
        pace: how slow the server may be.

    Raises:
        DownloadError: no network, an answer that is not the file, a connection that broke or is too slow, or content
            whose SHA-256 is another one.
        OSError: the folder cannot be written or the disk is full.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with places.one_at_a_time(target, doing=f"downloading {target.name}"):
        if not target.exists():
            _fetch(url, target, sha256, pace)
    forget_attempts(target)
    return target


def forget_attempts(target: Path) -> None:
    """Delete what killed attempts left beside ``target``, once that is there."""
    places.clean_leftovers(target.parent)
    for path in _attempts(target):
        with contextlib.suppress(OSError):
            if places.is_abandoned(path):
                path.unlink()


def _fetch(url: str, target: Path, sha256: str, pace: Pace) -> None:
    """Bring a file of our own to the whole length, check it, and give it its name."""
    partial = places.unique_name(target, ATTEMPT_MARK)
    earlier = _attempts(target)
    try:
        _continue(url, partial, target, pace)
        with partial.open("rb") as written:
            os.fsync(written.fileno())
            intact = hashlib.file_digest(written, "sha256").hexdigest() == sha256
    except _TooLongError:
        intact = False
    except DownloadError:
        if partial.exists():  # it contains all that the earlier ones had
            _forget(earlier)
        raise
    _forget(earlier)
    if not intact:
        # The fault may lie in the part that was resumed from: the next attempt must not carry it on.
        partial.unlink(missing_ok=True)
        raise DownloadError(
            f"{url} was downloaded completely, but its SHA-256 is not the published one ({sha256[:12]}…): a bit "
            "was flipped on the way or the file was exchanged. It was thrown away; run again to download it anew."
        )
    partial.replace(target)


def _continue(url: str, partial: Path, target: Path, pace: Pace) -> None:
    """Bring ``partial`` to the whole length, from the longest earlier attempt on."""
    import requests
    from urllib3.exceptions import HTTPError

    if earlier := _attempts(target):
        _take_over(max(earlier, key=lambda path: earlier[path].st_size), partial)
    have = partial.stat().st_size if partial.exists() else 0
    try:
        # Uncompressed transfer: a second gzip around the file would make its bytes and lengths differ from the range's.
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
        with requests.get(url, headers=headers, stream=True, timeout=(CONNECT_TIMEOUT_S, pace.window_s)) as response:
            have, total = _agree(response, have)
            with partial.open("r+b" if have else "wb") as file:
                file.truncate(have)
                file.seek(have)
                for block in _blocks(response, have, total, pace):
                    file.write(block)
    except (requests.RequestException, HTTPError) as error:
        _keep(partial)
        raise DownloadError(f"{_reason(error, url)}{_kept(partial)}") from error
    except DownloadError as error:
        _keep(partial)
        raise DownloadError(f"{error}{_kept(partial)}") from None
    if total is not None and (size := partial.stat().st_size) < total:
        raise DownloadError(f"{url} ended after {size:,} of {total:,} bytes.{_kept(partial)}")


def _take_over(earlier: Path, partial: Path) -> None:
    """Go on from an earlier attempt: with the file itself, or with a copy while its own process may still write it."""
    with contextlib.suppress(FileNotFoundError):  # another process was quicker
        if places.is_abandoned(earlier):
            earlier.replace(partial)
        else:
            shutil.copyfile(earlier, partial)


def _agree(response: Response, have: int) -> tuple[int, int | None]:
    """Return the position at which the answer starts and the length of the whole file.

    Raises:
        DownloadError: the answer is not (a part of) the file.
        _TooLongError: the earlier attempt is longer than the file.
    """
    if response.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and have:
        # The range starts at or beyond the end: all of it is here, or more than all.
        total = response.headers.get("Content-Range", "").rpartition("/")[2]
        if total.isdigit() and int(total) == have:
            response.close()
            return have, have
        raise _TooLongError
    if response.status_code not in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT):
        raise DownloadError(f"{response.url} answered {response.status_code} {response.reason}")
    kind = response.headers.get("Content-Type", "")
    if kind.startswith("text/"):
        raise DownloadError(
            f"{response.url} answered with a text page ({kind}) instead of the archive; "
            "a proxy or a login page of the network may stand between"
        )
    length = response.headers.get("Content-Length", "")
    if response.status_code == HTTPStatus.PARTIAL_CONTENT:
        start, _, total = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")
        if start != str(have):
            raise DownloadError(f"{response.url} continued at byte {start or '?'} where {have} was asked for")
        total = total.rpartition("/")[2]
        return have, int(total) if total.isdigit() else None
    return 0, int(length) if length.isdigit() else None


def _blocks(response: Response, have: int, total: int | None, pace: Pace) -> Iterator[bytes]:
    """Yield the bytes as they come, as long as they come fast enough."""
    from tqdm.auto import tqdm

    started, in_window = time.monotonic(), 0
    with tqdm(
        total=total, initial=have, unit="B", unit_scale=True, desc="downloading", leave=False, delay=1
    ) as progress:
        # read1 returns what has arrived; read would wait for a full block, which from a trickling server takes minutes.
        while (total is None or have < total) and (block := response.raw.read1(BLOCK_BYTES)):
            if have == 0 and block[:2] != GZIP_MAGIC[: len(block)]:
                raise DownloadError(f"{response.url} answered with something that is not a gzip archive")
            yield block
            have += len(block)
            in_window += len(block)
            progress.update(len(block))
            elapsed = time.monotonic() - started
            if elapsed >= pace.window_s:
                _check_pace(in_window / elapsed, have, total, pace)
                started, in_window = time.monotonic(), 0


def _check_pace(bytes_per_s: float, have: int, total: int | None, pace: Pace) -> None:
    if total is None or pace.patience_s is None:
        return
    left_s = (total - have) / bytes_per_s
    if left_s > pace.patience_s:
        raise DownloadError(
            f"The server sends {bytes_per_s / 1e3:.0f} kB/s; the remaining {(total - have) / 1e6:.1f} MB would take "
            f"about {_duration(left_s)}, and at most {_duration(pace.patience_s)} are waited for."
        )


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} seconds" if seconds < 2 * 60 else f"{seconds / 60:.0f} minutes"


def _reason(error: Exception, url: str) -> str:
    import requests

    host = url.split("/")[2]
    if isinstance(error, requests.ConnectTimeout):
        return f"{host} did not answer within {CONNECT_TIMEOUT_S:.0f} s; there is no network, or no way to that server."
    if isinstance(error, requests.exceptions.SSLError):
        return f"The certificate of {host} could not be verified ({error})."
    if isinstance(error, requests.ConnectionError) and "NewConnectionError" in repr(error):
        return f"{host} cannot be reached: there is no network, or no way to that server."
    if isinstance(error, requests.ConnectionError) and "NameResolution" in repr(error):
        return f"The name {host} cannot be looked up: there is no network."
    return f"The download from {host} broke off ({type(error).__name__})."


def _kept(partial: Path) -> str:
    size = partial.stat().st_size if partial.exists() else 0
    return f" {size / 1e6:.1f} MB are kept in {partial.parent} and the next attempt continues there." if size else ""


def _keep(partial: Path) -> None:
    """Remove an attempt that brought nothing."""
    if partial.exists() and partial.stat().st_size == 0:
        partial.unlink()


def _attempts(target: Path) -> dict[Path, os.stat_result]:
    found = {}
    for path in target.parent.glob(f"{target.name}{ATTEMPT_MARK}-*"):
        with contextlib.suppress(FileNotFoundError):  # another process has just finished with it
            found[path] = path.stat()
    return found


def _forget(attempts: dict[Path, os.stat_result]) -> None:
    """Delete earlier attempts, except those that have grown since: another process is at work on them."""
    for path, status in attempts.items():
        with contextlib.suppress(OSError):
            if path.stat().st_mtime_ns == status.st_mtime_ns:
                path.unlink()
