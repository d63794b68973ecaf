"""Processes to do something to: to kill, to run as somebody else, to leave without disk or memory.

They are forked from one process that has everything imported, so that a trial costs no seconds of starting.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import itertools
import multiprocessing
import multiprocessing.context
import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.faults.trials import UnmetError

NOBODY = 65534
KILLED = -signal.SIGKILL  # the status of a process that was
NEW_MOUNTS = 0x20000  # CLONE_NEWNS of sched.h
CAPABILITY_VERSION = 0x20080522  # _LINUX_CAPABILITY_VERSION_3 of linux/capability.h
BLOCK_BYTES = 4096
PATIENCE_S = 300.0  # for one process, on a machine that is busy with other things
Tell = Callable[[Any], None]

_numbers = itertools.count()


@functools.cache
def _context() -> multiprocessing.context.ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tools.faults.preload"])
    return context


@dataclass(frozen=True)
class Ended:
    """What became of a process: its result or error, its exit status, and what it told and wrote to stderr."""

    value: Any
    error: str
    status: int
    told: list[Any]
    stderr: str


class Child:
    """A process that runs `work(tell, *arguments)`, with `tell` for what it has to say on the way.

    Args:
        work: a function at the top of a module.
        arguments: what can be pickled.
        folder: for what it writes to stderr.
        variables: added to its environment; None takes one away.
    """

    def __init__(
        self, work: Callable[..., Any], *arguments: Any, folder: Path, variables: Mapping[str, str | None] | None = None
    ) -> None:
        self.stderr = folder.parent / f"{folder.name}-stderr-{next(_numbers)}"
        self._told: list[Any] = []
        self._value: Any = None
        self._error = ""
        self._pipe, theirs = _context().Pipe(duplex=False)
        enter = (theirs, str(self.stderr), dict(variables or {}), work, arguments)
        self.process = _context().Process(target=_enter, args=enter, daemon=False)
        self.process.start()
        theirs.close()
        self._pipe.recv()  # it has come to its work

    def kill_after(self, seconds: float, *, word: str | None = None) -> None:
        """Send SIGKILL so long after it has come to its work, or after it has told this word."""
        while word is not None and word not in self._told and self._listen(PATIENCE_S):
            pass
        time.sleep(seconds)
        self.process.kill()

    def _listen(self, timeout_s: float) -> bool:
        """Take the next thing it says; False when it says nothing more."""
        with contextlib.suppress(EOFError, OSError):  # a killed process may end in the middle of a word
            if self._pipe.poll(max(0.0, timeout_s)):
                kind, what = self._pipe.recv()
                if kind == "told":
                    self._told.append(what)
                else:
                    self._value, self._error = (what, "") if kind == "value" else (None, what)
                return True
        return False

    def finish(self, timeout_s: float = PATIENCE_S) -> Ended:
        """Wait for its end.

        Raises:
            UnmetError: it did not end in time; it is killed then.
        """
        deadline = time.monotonic() + timeout_s
        while self._listen(deadline - time.monotonic()):
            pass
        self.process.join(max(0.1, deadline - time.monotonic()))
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
            raise UnmetError(f"a process did not end within {timeout_s:.0f} s")
        said = self.stderr.read_text(encoding="utf-8", errors="replace")
        self.stderr.unlink()
        return Ended(self._value, self._error, self.process.exitcode, self._told, said)


def succeed(work: Callable[..., Any], *arguments: Any, folder: Path, **variables: str | None) -> Any:
    """Run `work` undisturbed in a process of its own and return its result.

    Raises:
        UnmetError: it failed.
    """
    ended = Child(work, *arguments, folder=folder, variables=variables).finish()
    if ended.status or ended.error:
        words = ended.error.removeprefix("UnmetError: ")
        raise UnmetError(words or f"a process ended with status {ended.status}: {ended.stderr[-300:]}")
    return ended.value


def _enter(
    pipe: Any, stderr: str, variables: dict[str, str | None], work: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    import torch

    descriptor = os.open(stderr, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(descriptor, 2)
    os.umask(0o022)  # what others may read shall depend on the course, not on who tries it
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    torch.set_num_threads(1)
    pipe.send(("started", None))
    try:
        pipe.send(("value", work(lambda what: pipe.send(("told", what)), *arguments)))
    except BaseException as error:  # noqa: BLE001 (whatever it is, it is what happened)
        pipe.send(("error", f"{type(error).__name__}: {error}"))


def give_rights_up() -> None:
    """Be bound by permissions like everybody: root, which nothing forbids, gives its capabilities up for good."""
    header, none = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0), (ctypes.c_uint32 * 6)()
    if os.geteuid() == 0 and ctypes.CDLL(None, use_errno=True).capset(header, none) != 0:
        raise UnmetError(f"root could not give its capabilities up: {os.strerror(ctypes.get_errno())}")


def give_away(folder: Path) -> str:
    """Make a folder and all in it somebody else's and read-only; returns what was possible.

    Who may read a file stays as it is: one that was written for its owner alone is closed to everybody then.
    """
    everything = [folder, *folder.rglob("*")]
    for path in everything:
        if os.geteuid() == 0:
            os.chown(path, NOBODY, NOBODY)
        path.chmod(0o555 if path.is_dir() else path.stat().st_mode & 0o444)
    return "somebody else's, read-only" if os.geteuid() == 0 else "read-only"


def mount(folder: Path, options: str) -> bool:
    """Mount an empty tmpfs that only this process sees and that ends with it; return False without the right to."""
    if os.geteuid() != 0 or ctypes.CDLL(None).unshare(NEW_MOUNTS) != 0:
        return False
    commands = (["--make-rprivate", "/"], ["-t", "tmpfs", "-o", options, "tmpfs", str(folder)])
    return all(
        subprocess.run(["mount", *words], capture_output=True, check=False).returncode == 0 for words in commands
    )


class SmallDisk:
    """A disk that can be filled: a tmpfs of its own, or, without the right to mount one, a limit on file sizes.

    Args:
        folder: an empty one, where the disk shall be.
        kib: its size.
    """

    def __init__(self, folder: Path, *, kib: int) -> None:
        self.folder = folder
        self.is_real = mount(folder, f"size={kib}k")
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write itself is to fail

    @property
    def how(self) -> str:
        """What the table says of it."""
        return "a full tmpfs" if self.is_real else "a limit on file sizes (no right to mount a tmpfs)"

    @contextlib.contextmanager
    def full(self, *, but_kib: int = 0, grows: Path | None = None) -> Iterator[None]:
        """Let no more than `but_kib` be written; `grows` is the file that is appended to, if it is not a new one."""
        if self.is_real:
            filler = self.folder / "filler"
            blocks = shutil.disk_usage(self.folder).free // BLOCK_BYTES - but_kib * 1024 // BLOCK_BYTES
            filler.write_bytes(bytes(blocks * BLOCK_BYTES))
            yield
            filler.unlink()
        else:
            limits = resource.getrlimit(resource.RLIMIT_FSIZE)
            most = but_kib * 1024 + (grows.stat().st_size if grows else 0)
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, limits[1]))
            yield
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@contextlib.contextmanager
def little_memory(*, mib: int) -> Iterator[None]:
    """Let this process take no more than so much memory in addition to what it has."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + mib * 2**20, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
