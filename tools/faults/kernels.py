"""What can happen to a notebook while `make cookbook` runs it."""

from __future__ import annotations

import json
import os
from pathlib import Path

from make import surroundings
from tools.cookbook import Result, run_notebook
from tools.faults.processes import Child, Tell, mount
from tools.faults.trials import Trial, expect, fault

TIMEOUT_S = 5.0
MOST_KEPT = 200_000  # bytes of a notebook that printed 100 MB

KILLED = """import os, random, signal, threading, time
threading.Thread(target=lambda: (time.sleep({delay_s}), os.kill(os.getpid(), signal.SIGKILL))).start()
while True: sum(range(1000))"""
LITTLE_MEMORY = """import resource, torch
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**28,) * 2)"""
AT_HOME = """import tempfile, matplotlib.pyplot as plt
from pathlib import Path
import numpy as np
from PIL import Image
folder = Path(tempfile.mkdtemp())
for number in range(24):
    path = folder / ("test" if number < 4 else "train") / "ab"[number % 2] / f"{number}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
from deploykit import ledger, notebook
session = notebook.start(budget="smoke", data=str(folder), title="home")
ledger.record("home", kind="fault")
plt.plot([1, 2])
plt.show()"""


def run(folder: Path, *cells: str, timeout_s: float = TIMEOUT_S) -> tuple[Result, Path]:
    """Run a notebook of these cells; returns what the summary knows of it, and the executed copy.

    Raises:
        UnmetError: a process is left.
    """
    import nbformat
    import psutil

    source, target = folder / "source" / "trial.ipynb", folder / "target" / "trial.ipynb"
    for path in (source, target):
        path.parent.mkdir()
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells]), source)
    result = run_notebook(source, target, parameters={}, timeout=timeout_s)
    left = [one.pid for one in psutil.process_iter(["cwd"]) if one.info["cwd"] == str(source.parent)]
    expect(not left, f"{len(left)} of its processes are left")
    return result, target


def named(found: Result, kind: str, cell: int, remedy: str) -> None:
    """Check that a failure has this kind, cell and remedy."""
    words = f"the summary says {found.kind!r} in cell {found.cell} ({found.error}), remedy {found.remedy!r}"
    expect((found.kind, found.cell) == (kind, cell) and remedy in found.remedy, words)


@fault(
    "killed kernel",
    done="SIGKILL to a notebook's kernel, at a random moment of its second cell",
    expected="the summary says that the kernel died, in which cell and what to do; what ran is kept; no process left",
    times=3,
    short=1,
)
def kernel_killed(trial: Trial) -> str:
    """Kill a kernel at work."""
    found, target = run(
        trial.folder, "print('before')", KILLED.format(delay_s=trial.random.uniform(0, 1)), timeout_s=60
    )
    named(found, "kernel died", 2, "close other programs")
    expect("before" in target.read_text(encoding="utf-8"), "the output of the first cell is lost")
    return "named, with cell and remedy; no process left"


@fault(
    "endless cell",
    done=f"a cell that never ends, with {TIMEOUT_S:.0f} s for each; one that also ignores being interrupted",
    expected="the summary says that it ran out of time, in which cell, and how to give more; no process is left",
    times=2,
    short=1,
)
def cell_is_endless(trial: Trial) -> str:
    """Never end."""
    deaf = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)"
    found, _ = run(trial.folder, trial.random.choice(["1 + 1", deaf]), "while True: pass")
    named(found, "time-out", 2, "--timeout")
    return "named, with cell and remedy; no process left"


@fault(
    "100 MB of output",
    done="a cell that prints 100 MB",
    expected="the notebook goes on; 50 kB of it are kept, with a word about the rest",
    times=2,
    short=1,
)
def output_is_huge(trial: Trial) -> str:
    """Print without end."""
    found, target = run(trial.folder, "for _ in range(1000): print('x' * 100_000)", "print('after')", timeout_s=120)
    expect(found.ok, f"it ended with {found}")
    written = target.read_text(encoding="utf-8")
    expect(len(written) < MOST_KEPT, f"the executed notebook has {len(written):,} characters")
    expect("cut here" in written and "after" in written, "the word about the rest, or the output after it, is missing")
    return "cut, said, gone on"


@fault(
    "out of memory in a notebook",
    done="RLIMIT_AS 256 MiB above what the kernel uses, and a tensor of 4 GiB",
    expected="the summary says that memory ran out, in which cell, and what to do",
    times=2,
    short=1,
)
def kernel_out_of_memory(trial: Trial) -> str:
    """Want more than there is."""
    found, _ = run(trial.folder, LITTLE_MEMORY, "torch.zeros(2**30)", timeout_s=60)
    named(found, "out of memory", 2, "close other programs")
    return "named, with cell and remedy"


@fault(
    "home not writable",
    done="a notebook that loads a dataset, writes a ledger row and draws a figure, with a home folder on which nothing "
    "can be written",
    expected="it runs to its end, and no package complains",
    times=1,
    short=1,
)
def home_is_not_writable(trial: Trial) -> str:
    """Have a home of no use."""
    home = trial.folder / "home"
    home.mkdir(mode=0o555)
    variables = {"HOME": str(home), "DEPLOYKIT_CACHE": None, "DEPLOYKIT_LEDGER": None, "XDG_CACHE_HOME": None}
    variables |= {"DEPLOYKIT_HOME": str(trial.folder / "course"), "IPYTHONDIR": None, "MPLCONFIGDIR": None}
    ended = Child(_away_from_home, str(trial.folder), folder=trial.folder, variables=variables).finish(300)
    expect(not ended.error, ended.error)
    how, found, words = ended.value
    expect(found.ok, f"it ended with {found}")
    expect(not words, f"it says: {words}")
    expect(not list(home.iterdir()), "something was written at home all the same")
    return f"{how}: it ran, silently"


def _away_from_home(_: Tell, folder: str) -> tuple[str, Result, str]:
    how = "a read-only file system" if mount(Path(folder) / "home", "ro") else "a folder without the right to write"
    os.environ.update(surroundings())
    found, target = run(Path(folder), AT_HOME, timeout_s=120)
    cells = json.loads(target.read_text(encoding="utf-8"))["cells"]
    words = ["".join(output["text"]) for cell in cells for output in cell["outputs"] if output.get("name") == "stderr"]
    return how, found, "".join(words)
