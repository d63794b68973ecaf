"""Try what may crash, hang or take all memory in a process of its own: if that dies of it, this one goes on."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

START_S = 120.0  # in which the child has imported what it needs, on a slow drive too
LONGEST_MESSAGE = 300  # characters; some libraries answer with pages
GIB = 2**30


@dataclass(frozen=True)
class Outcome:
    """What became of one call.

    Attributes:
        value: what the function returned, as JSON carries it; None where it failed.
        error: one line that says why it failed; "" where it did not.
        kind: the name of the exception's class; "died" or "time" where the process had to be given up; "" where it did
            not fail.
    """

    value: Any = None
    error: str = ""
    kind: str = ""


def tried_apart(
    function: Callable[..., Any],
    jobs: Iterable[Mapping[str, Any]],
    *,
    memory_gib: float = 8.0,
    seconds: float = 300.0,
) -> Iterator[Outcome]:
    """Call ``function(**job)`` for one job after the other in a child process, and yield what became of each.

    A child that dies or hangs is replaced for the jobs that are left. It may take so much memory more than it has when
    it starts; systems other than Linux do not hold it to that, and there it is a child all the same.

    Args:
        function: of a module, which the child imports by name. What it prints goes nowhere.
        jobs: its arguments by name, of what JSON knows: text, numbers, lists.
        memory_gib: addresses that the child may ask for beyond those that its start took.
        seconds: for one job.

    Raises:
        ChildProcessError: no child can be started.
    """
    waiting = list(jobs)
    while waiting:
        with _started(function, memory_gib) as child:
            alive = True
            while waiting and alive:
                outcome = child.ask(waiting.pop(0), seconds)
                alive = outcome.kind not in ("died", "time")
                yield outcome


class _Child:
    """A process that answers each line of JSON with another."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        with contextlib.suppress(ValueError):  # it was closed meanwhile
            for line in self.process.stdout or ():
                self.lines.put(line)
        self.lines.put(None)

    def ask(self, job: Mapping[str, Any], seconds: float) -> Outcome:
        """Hand over a job and wait for its outcome."""
        if self.process.stdin is not None:
            with contextlib.suppress(OSError):  # it is gone: the answer says so
                self.process.stdin.write(json.dumps(job) + "\n")
                self.process.stdin.flush()
        return self.answer(seconds)

    def answer(self, seconds: float) -> Outcome:
        """Wait for a line."""
        try:
            line = self.lines.get(timeout=seconds)
        except queue.Empty:
            return Outcome(error=f"it took more than {seconds:g} s and was given up", kind="time")
        if line is None:
            return Outcome(error=f"it ended the process that tried it ({_end_of(self.process.wait())})", kind="died")
        return Outcome(**json.loads(line))


@contextlib.contextmanager
def _started(function: Callable[..., Any], memory_gib: float) -> Iterator[_Child]:
    name = f"{function.__module__}:{function.__qualname__}"
    # -P: what lies in the working folder may be called like a package, and is not imported.
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "deploykit.untrusted", name, str(memory_gib)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, encoding="utf-8",
        env={**os.environ, "MALLOC_ARENA_MAX": "2"},  # each thread's own heap would reserve addresses it never uses
    )  # fmt: skip
    try:
        child = _Child(process)
        ready = child.answer(START_S)
        if ready.error:
            raise ChildProcessError(f"no process could be started to try it in: {ready.error}")
        yield child
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):  # what was still to be written to the dead
                if stream is not None:
                    stream.close()


def _end_of(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"


def _serve(name: str, memory_gib: float) -> None:
    """Answer the jobs on stdin, one line each; libraries that print do so on stderr."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    module, _, path = name.partition(":")
    function = getattr(importlib.import_module(module), path)
    _limit_memory(memory_gib)
    print(json.dumps(asdict(Outcome())), file=answers, flush=True)  # it is ready
    for line in sys.stdin:
        try:
            answer = json.dumps(asdict(Outcome(value=function(**json.loads(line)))))
        except MemoryError:
            answer = _failure(f"it needs more than {memory_gib:g} GiB of memory", "MemoryError")
        except Exception as error:  # noqa: BLE001 - whatever a library raises is the answer
            answer = _failure(" ".join(str(error).split()), type(error).__name__)
        print(answer, file=answers, flush=True)


def _failure(words: str, kind: str) -> str:
    return json.dumps(asdict(Outcome(error=(words or kind)[:LONGEST_MESSAGE], kind=kind)))


def _limit_memory(memory_gib: float) -> None:
    try:
        import resource
    except ImportError:  # Windows has none
        return
    import psutil

    most = psutil.Process().memory_info().vms + int(memory_gib * GIB)
    with contextlib.suppress(ValueError, OSError):  # a lower limit holds already, or the system knows none
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


if __name__ == "__main__":
    _serve(sys.argv[1], float(sys.argv[2]))
