"""Execute one notebook in a process of its own: `python -m tools.run_notebook SOURCE TARGET '{"timeout": 300, …}'`.

Each line it prints is one JSON object: {"cell": 3, "of": 20, "source": "…"} before a code cell, and at the end
{"ok": true} or {"ok": false, "kind": …, "cell": 3, "source": "…", "error": "…"}. TARGET always holds what was executed
so far. When its standard input closes, which happens when the process that started it ends in whatever way, it takes
its kernel along and ends.
"""

from __future__ import annotations

import json
import os
import re
import sys
import threading
from pathlib import Path
from typing import Any

import nbformat
import psutil
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from deploykit.places import atomic_write
from make import BUILD

# Of one cell: a page with more is of no use, and the time to look for carriage returns in one line grows as its square.
MOST_TEXT = 50_000
MOST_OUTPUT = 5_000_000
INJECTED = "injected-parameters"  # papermill's tag
OUT_OF_MEMORY = re.compile(r"MemoryError|OutOfMemoryError|can't allocate memory|Cannot allocate memory|bad_alloc")


def report(**event: object) -> None:
    """Tell the starter, on one line."""
    print(json.dumps(event), flush=True)


class Client(NotebookClient):
    """Executes a notebook, and drops what a cell prints beyond `MOST_TEXT` characters or shows beyond `MOST_OUTPUT`."""

    used: dict[tuple[int, bool], int]

    def output(
        self, outs: list[NotebookNode], msg: dict[str, Any], display_id: str | None, cell_index: int
    ) -> NotebookNode | None:
        """Take one output, unless the cell has had its share."""
        if msg["msg_type"] == "error":
            return super().output(outs, msg, display_id, cell_index)
        is_text = msg["msg_type"] == "stream"
        text = msg["content"]["text"] if is_text else ""
        size = len(text) if is_text else len(json.dumps(msg["content"]["data"]))
        used = self.used.get((cell_index, is_text), 0)
        limit = MOST_TEXT if is_text else MOST_OUTPUT
        self.used[cell_index, is_text] = used + size
        if used + size <= limit:
            return super().output(outs, msg, display_id, cell_index)
        if used <= limit:  # the first that is too much
            notice = f"{text[: limit - used]}\n[cut here: this cell put out more than {limit:,} characters]\n"
            outs.append(nbformat.v4.new_output("stream", name="stdout", text=notice))
        return None


def numbered(notebook: NotebookNode) -> dict[int, int]:
    """Index of each code cell -> its number as the reader counts: from 1, without the injected parameters."""
    cells = [i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code" and INJECTED not in tags(cell)]
    return {index: number for number, index in enumerate(cells, 1)}


def tags(cell: NotebookNode) -> list[str]:
    """Return the tags of a cell, which may have none."""
    return cell.metadata.get("tags", [])


def prepared(source: Path, parameters: dict[str, object]) -> NotebookNode:
    """The notebook without outputs, with the parameters in a cell of their own that the book leaves out."""
    # papermill's reader adds the metadata that its injection counts on
    notebook = load_notebook_node(str(source)) if parameters else nbformat.read(source, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    if parameters:
        notebook = parameterize_notebook(notebook, parameters, kernel_name="python3", language="python")
        for cell in notebook.cells:
            cell.metadata.pop("papermill", None)
            if INJECTED in tags(cell):
                cell.metadata.tags = [INJECTED, "remove-cell"]
        notebook.metadata.pop("papermill", None)
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook.metadata.language_info = {"name": "python", "pygments_lexer": "ipython3"}  # for pages of what never ran
    return notebook


def save(notebook: NotebookNode, target: Path) -> None:
    """Write the notebook whole or not at all."""
    with atomic_write(target) as temporary:
        nbformat.write(notebook, temporary)


def execute(source: Path, target: Path, *, parameters: dict[str, object], timeout: float) -> dict[str, object]:
    """Run all cells or up to the first that fails; returns the closing event."""
    notebook = prepared(source, parameters)
    numbers = numbered(notebook)
    now: dict[str, object] = {}

    def starts(cell: NotebookNode, cell_index: int) -> None:
        if cell.cell_type == "code" and cell_index in numbers:
            now.update(cell=numbers[cell_index], source=cell.source.strip().partition("\n")[0][:80])
            report(of=len(numbers), **now)

    def ends(**_: object) -> None:
        save(notebook, target)

    save(notebook, target)
    client = Client(
        notebook,
        timeout=timeout,
        kernel_name="python3",
        resources={"metadata": {"path": str(source.parent)}},
        coalesce_streams=True,
        iopub_timeout=10,  # what a loud cell printed is read for longer than 4 s
        record_timing=False,
        store_widget_state=False,
        shutdown_kernel="immediate",
        on_cell_start=starts,
        on_cell_executed=ends,
    )
    client.used = {}
    try:
        client.execute()
    except CellExecutionError as error:
        last_line = f"{error.ename}: {error.evalue}".strip().partition("\n")[0]
        kind = "out of memory" if OUT_OF_MEMORY.search(last_line) else "error"
        return {"ok": False, "kind": kind, "error": last_line[:300], **now}
    except CellTimeoutError:
        return {"ok": False, "kind": "time-out", "error": f"did not finish within {timeout:g} s", **now}
    except DeadKernelError:
        return {"ok": False, "kind": "kernel died", "error": "the kernel's process ended", **now}
    finally:
        save(notebook, target)
    return {"ok": True}


def _end_with_the_starter() -> None:
    sys.stdin.read()
    kernel = psutil.Process().children(recursive=True)
    for process in kernel:
        process.kill()
    psutil.wait_procs(kernel, timeout=5)
    os._exit(3)


def main() -> None:
    """Execute what the command line names."""
    source, target = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve()
    settings = json.loads(sys.argv[3])
    threading.Thread(target=_end_with_the_starter, daemon=True).start()
    (BUILD / "home" / "jupyter").mkdir(parents=True, exist_ok=True)
    report(**execute(source, target, **settings))


if __name__ == "__main__":
    main()
