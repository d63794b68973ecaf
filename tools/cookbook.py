"""`make cookbook`: run every notebook, whatever becomes of the others, and build the site from them.

An interrupted run is continued: notebooks that it finished, and whose contents, package, parameters and data are still
the same, are not run again. A run that came to its end is not: the next one starts afresh.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from deploykit.places import atomic_write, clean_leftovers
from make import BUILD, LOCK_FILE, ROOT, minutes, only_one, progress, say
from tools import book

EXECUTED = BUILD / "notebooks"
STATE = BUILD / "unfinished-run.json"
# A cell that trains takes many minutes with the full budget; the limit is there to end one that hangs.
CELL_TIMEOUT_S = {"smoke": 300, "quick": 300, "full": 4 * 3600}
GRACE_S = 60  # for starting a kernel and writing the notebook, on a busy machine

REMEDIES = {
    "error": "open it (make lab), run up to that cell and read the whole error",
    "time-out": "give each cell longer, in seconds: python3 make.py cookbook --timeout 36000; a busy machine needs it",
    "kernel died": "usually killed for want of memory: close other programs, or run with --budget smoke",
    "out of memory": "close other programs, or run with --budget smoke",
    "runner died": "see build/notebooks/*.log; if it was killed for want of memory, close other programs",
}


@dataclass
class Result:
    """What became of one notebook. `cell` counts code cells from 1; 0 is before the first."""

    name: str
    ok: bool
    seconds: float
    kind: str = "ok"
    cell: int = 0
    source: str = ""
    error: str = ""
    key: str = ""

    @property
    def remedy(self) -> str:
        """What the reader can do about it."""
        if self.error.startswith("ModuleNotFoundError"):
            return "a package is missing: python3 make.py clean --all, then the same command sets .venv up again"
        if "No space left" in self.error:
            return "the disk is full: free some space and run the same command again"
        return REMEDIES[self.kind]


def run_notebook(source: Path, target: Path, *, parameters: dict[str, object], timeout: float) -> Result:
    """Execute one notebook in a process of its own, and stop that process when it no longer reports.

    Args:
        source: the notebook; it is left alone.
        target: the executed copy; written cell by cell, also when it fails.
        parameters: injected after the cell tagged `parameters`; none are injected when it is empty.
        timeout: seconds that one cell may take.
    """
    start = time.monotonic()
    settings = json.dumps({"parameters": parameters, "timeout": timeout})
    command = [sys.executable, "-m", "tools.run_notebook", str(source), str(target), settings]
    target.unlink(missing_ok=True)
    last: dict[str, object] = {}
    with (
        target.with_suffix(".log").open("w", encoding="utf-8") as log,
        # a session of its own, so that Ctrl-C reaches only us and we end it in order
        subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, start_new_session=True
        ) as process,
    ):
        events: queue.Queue[dict[str, object] | None] = queue.Queue()
        threading.Thread(target=_read_events, args=(process, events), daemon=True).start()
        silent_since = time.monotonic()
        try:
            while "ok" not in last:
                with contextlib.suppress(queue.Empty):
                    event = events.get(timeout=1)
                    if event is None:
                        break
                    last = {**last, **event}
                    silent_since = time.monotonic()
                where = f"cell {last['cell']} of {last['of']}" if "cell" in last else "starting"
                progress(f"  {source.stem}  {where}  {time.monotonic() - start:.0f} s")
                if time.monotonic() - silent_since > timeout + GRACE_S:
                    last |= {"ok": False, "kind": "time-out", "error": f"did not finish within {timeout:g} s"}
        finally:
            if process.stdin:
                process.stdin.close()  # it ends its kernel, and then itself
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
            progress("")
    if "ok" not in last:
        words = target.with_suffix(".log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        error = words[-1][:300] if words else f"its process ended with status {process.returncode}"
        last |= {"ok": False, "kind": "runner died", "error": error}
    last.pop("of", None)
    if last["ok"]:
        last = {"ok": True}
    return Result(name=source.stem, seconds=round(time.monotonic() - start, 1), **last)  # type: ignore[arg-type]


def _read_events(process: subprocess.Popen[bytes], events: queue.Queue[dict[str, object] | None]) -> None:
    for line in process.stdout or ():
        with contextlib.suppress(ValueError):
            events.put(json.loads(line))
    events.put(None)


def content_key(source: Path, parameters: dict[str, object], timeout: float) -> str:
    """Changes with what a notebook's outcome depends on (of checkpoints with size and time, of data with its place)."""
    digest = hashlib.sha256(json.dumps([parameters, timeout]).encode())
    package = sorted(path for path in (ROOT / "src").rglob("*") if path.suffix in (".py", ".toml"))
    for path in [source, LOCK_FILE, *package]:
        digest.update(path.read_bytes())
    digest.update(os.environ.get("DEPLOYKIT_DATA", "").encode())
    for path in sorted((ROOT / "data" / "checkpoints").glob("*/*")):
        digest.update(f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}".encode())
    return digest.hexdigest()


def _unfinished() -> dict[str, Result]:
    """Results of the run that was interrupted, if one was; a file that cannot be read counts as none."""
    try:
        results = [Result(**row) for row in json.loads(STATE.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError):
        return {}
    return {result.name: result for result in results if result.ok and (EXECUTED / f"{result.name}.ipynb").exists()}


def _remember(results: list[Result]) -> None:
    with atomic_write(STATE) as temporary:
        temporary.write_text(json.dumps([asdict(result) for result in results]), encoding="utf-8")


def run_all(sources: list[Path], *, parameters: dict[str, object], timeout: float) -> list[Result]:
    """Run the notebooks one after another, in a folder that no other process uses meanwhile."""
    EXECUTED.mkdir(parents=True, exist_ok=True)
    for folder in (EXECUTED, STATE.parent):
        clean_leftovers(folder)
    kept = _unfinished()
    results: list[Result] = []
    for number, source in enumerate(sources, 1):
        key = content_key(source, parameters, timeout)
        before = f"[{number}/{len(sources)}] {source.stem}"
        known = kept.get(source.stem)
        if known and known.key == key:
            say(f"{before}  ok, kept from the interrupted run")
            results.append(known)
        else:
            say(f"{before} …")
            result = run_notebook(source, EXECUTED / source.name, parameters=parameters, timeout=timeout)
            result.key = key
            results.append(result)
            words = "ok" if result.ok else f"FAILED in cell {result.cell}: {result.kind}"
            say(f"{before}  {words}, {minutes(result.seconds)}")
        _remember(results)
    return results


def summary(results: list[Result]) -> str:
    """Return a table of all notebooks, with place, error and remedy of those that failed."""
    width = max(len(result.name) for result in results)
    lines = [""]
    for result in results:
        lines.append(f"  {result.name:{width}}  {minutes(result.seconds):>8}  {result.kind}")
        if not result.ok:
            where = (
                f"code cell {result.cell}, which begins {result.source!r}" if result.cell else "before its first cell"
            )
            lines += [f"      where:   {where}", f"      error:   {result.error}", f"      remedy:  {result.remedy}"]
    failed = sum(not result.ok for result in results)
    total = minutes(sum(result.seconds for result in results))
    lines += ["", f"{len(results) - failed} of {len(results)} notebooks ran to their end, {total} in all"]
    return "\n".join(lines)


def selected(names: list[str]) -> list[Path]:
    """The numbered notebooks, or those whose names begin with one of `names`."""
    found = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    if not found:
        raise SystemExit(f"there are no notebooks in {ROOT / 'notebooks'}: is this a whole clone of the project?")
    chosen = [path for path in found if not names or any(path.stem.startswith(name) for name in names)]
    if not chosen:
        raise SystemExit(f"no notebook begins with {' or '.join(names)}; there are {', '.join(p.stem for p in found)}")
    return chosen


def options(arguments: list[str]) -> argparse.Namespace:
    """Parse the command line; wrong ones end the process with a usage message."""
    parser = argparse.ArgumentParser(prog="make.py cookbook", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NOTEBOOK", help="only those that begin so, for instance 01")
    parser.add_argument("--budget", choices=["smoke", "quick", "full"], default="quick", help="default: quick")
    parser.add_argument("--data", default="auto", help="auto (default), cifar10, shapes32, or a folder of images")
    parser.add_argument("--device", default="auto", help="auto (default), cpu or cuda")
    parser.add_argument(
        "--timeout",
        type=float,
        default=os.environ.get("DEPLOYKIT_CELL_TIMEOUT"),
        help="seconds that one cell may take (default: $DEPLOYKIT_CELL_TIMEOUT, else 300, with the full budget 14400)",
    )
    chosen = parser.parse_args(arguments)
    if chosen.timeout is None:
        chosen.timeout = CELL_TIMEOUT_S[chosen.budget]
    return chosen


def main(arguments: list[str]) -> int:
    """Run, build, sum up; returns the exit status, which is 0 when all went well."""
    chosen = options(arguments)
    sources = selected(chosen.names)
    parameters = {"BUDGET": chosen.budget, "DATA": chosen.data, "DEVICE": chosen.device}
    with only_one("cookbook"):
        results = run_all(sources, parameters=parameters, timeout=chosen.timeout)
        say("building the site …")
        site = book.build({result.name: result for result in results}, EXECUTED)
        STATE.unlink(missing_ok=True)
    say(summary(results))
    say(f"the site: {site}" if site else "the site could not be built; the notebooks are in build/notebooks")
    return int(site is None or not all(result.ok for result in results))


def _stop(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _stop)
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        say("\nStopped; no kernel is left running. The same command goes on with the notebook that was running.")
        sys.exit(130)
