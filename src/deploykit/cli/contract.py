"""What every command keeps: exit statuses, one line on stderr for what went wrong, and no traceback for a mistake.

Data go to stdout, talk goes to stderr, errors are talk. With ``--json`` stdout holds one whole JSON document or
nothing, so that what reads it never parses half of one.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import os
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn, TextIO

import typer
from typer.core import TyperGroup

from deploykit.places import LEFTOVER_MARK

NAME = "deploykit"
# What allocators say when there is no more: Python's, C++'s, torch's for CPU and GPU.
OUT_OF_MEMORY = re.compile(r"out of memory|can't allocate memory|cannot allocate memory|bad_alloc", re.IGNORECASE)
REMEDIES = {
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "check the path",
    errno.EISDIR: "name a file, not a folder",
    errno.EEXIST: "choose another name",
    errno.EACCES: "choose a place that you may read and write, or have its owner change its permissions",
    errno.EPERM: "choose a place that you may read and write, or have its owner change its permissions",
    errno.EROFS: "choose a place that can be written",
    errno.ENOSPC: "free some space, or choose a place on another drive",
    errno.EDQUOT: "free some space, or choose a place on another drive",
    errno.ENAMETOOLONG: "choose a shorter name",
}


class Status(enum.IntEnum):
    """How a command ends; the same for all commands."""

    DONE = 0
    FAILED_CHECK = 1
    USAGE = 2
    UNABLE = 3
    STOPPED = 130  # 128 + SIGINT, as shells count
    CUT_OFF = 141  # 128 + SIGPIPE


ENDS: tuple[tuple[type[BaseException] | tuple[type[BaseException], ...], Status], ...] = (
    (KeyboardInterrupt, Status.STOPPED),
    (typer.TyperException, Status.USAGE),
    ((FileNotFoundError, NotADirectoryError, IsADirectoryError, FileExistsError, ValueError), Status.USAGE),
    ((OSError, ImportError, MemoryError, RuntimeError), Status.UNABLE),
)


class StopError(Exception):
    """The command ends here; the text says what is wrong and what to do.

    Args:
        message: one line, "what; what to do".
        status: how the command ends.
    """

    def __init__(self, message: str, status: Status) -> None:
        super().__init__(message)
        self.status = status


class Commands(TyperGroup):
    """The root of the commands: ends each with its status, and says on one line what went wrong."""

    def main(self, args: Sequence[str] | None = None, *_: Any, **__: Any) -> NoReturn:
        """Run the command line ``args`` (by default the process's) and exit."""
        arguments = list(sys.argv[1:] if args is None else args)
        for stream in (sys.stdout, sys.stderr):
            _write_anything(stream)
        status = self._run(arguments)
        for stream in (sys.stdout, sys.stderr):
            try:
                if stream is not None:
                    stream.flush()
            except OSError:
                let_go(stream)  # Python would flush again on its way out, and complain
        sys.exit(status)

    def _run(self, arguments: list[str]) -> int:
        try:
            with self.make_context(NAME, list(arguments), obj={"arguments": arguments}) as context:
                self.invoke(context)
        except typer.Exit as end:
            return end.exit_code
        except BrokenPipeError:
            return Status.CUT_OFF
        except (Exception, KeyboardInterrupt) as error:
            status = status_of(error)
            if status is None:
                raise
            # Under torchrun all processes make the same mistake, and the first says so; other trouble may be one's own.
            if status is not Status.USAGE or os.environ.get("RANK", "0") == "0":
                with contextlib.suppress(OSError):  # nobody reads it, or it goes to a full disk: the status remains
                    typer.echo(f"{NAME}: {words_for(error)}", err=True)
            return status
        return Status.DONE


def status_of(error: BaseException) -> Status | None:
    """Return how a command ends with this error; None for one of our own making, which keeps its traceback.

    By deploykit's convention bad input is a ``ValueError``; what the machine refuses is an ``OSError`` or an
    ``ImportError``.
    """
    if isinstance(error, StopError):
        return error.status
    if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] == NAME:
        return None
    if isinstance(error, RuntimeError) and not OUT_OF_MEMORY.search(str(error)):
        return None
    return next((status for kinds, status in ENDS if isinstance(error, kinds)), None)


def words_for(error: BaseException) -> str:
    """Say on one line what is wrong and what to do."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines)
    if isinstance(error, KeyboardInterrupt):
        return text or "stopped"
    if isinstance(error, typer.TyperException):
        return _usage(error)
    if isinstance(error, ImportError) and "install" not in text:
        return f"{text}; install the package that it belongs to"
    if isinstance(error, MemoryError | RuntimeError):
        return f"out of memory ({[*lines, 'MemoryError'][0]}); close other programs, or ask for less"
    if isinstance(error, OSError) and error.errno is not None and error.strerror is not None:
        return _of_the_system(error)
    return text


def let_go(stream: TextIO | None) -> None:
    """Lead what is still written to ``stream`` to nowhere: nobody reads it any more."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        descriptor = os.open(os.devnull, os.O_WRONLY)
        os.dup2(descriptor, stream.fileno())  # type: ignore[union-attr]
        os.close(descriptor)


def _usage(error: typer.TyperException) -> str:
    """Put a usage error, which typer spreads over four lines, on one."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else NAME
    words = " ".join(error.format_message().replace("Value error, ", "").split()).rstrip(".")
    return f"{words[:1].lower()}{words[1:]}{' See' if words.endswith('?') else '; see'} {command} --help"


def _of_the_system(error: OSError) -> str:
    """Write what the system says as "what: where; what to do"."""
    where = ""
    if isinstance(error.filename, str | bytes | os.PathLike):
        path, _, _ = os.fsdecode(error.filename).partition(LEFTOVER_MARK)  # the reader knows the file by its own name
        where = f": {path}"
    remedy = REMEDIES.get(error.errno or 0, "try again, or ask who looks after this machine")
    return f"{error.strerror}{where}; {remedy}"


def _write_anything(stream: TextIO | None) -> None:
    """Let a terminal that lacks a character show its number instead of ending the command."""
    with contextlib.suppress(AttributeError, ValueError):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
