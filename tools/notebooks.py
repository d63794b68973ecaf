"""Stub notebooks from solutions, and clean files on disk.

``notebooks/solutions/NN_topic.ipynb`` is the source of a notebook. ``generate`` blanks its solutions, whoever executes
the result calls ``scrub``, ``write`` stores it, and ``hygiene_faults`` says what must not be committed.
"""

from __future__ import annotations

import ast
import copy
import getpass
import platform
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from deploykit.places import atomic_write

BEGIN = "### BEGIN SOLUTION"
END = "### END SOLUTION"
YOUR_TURN = "# YOUR CODE HERE"
LARGEST_BYTES = 3_000_000
SHORTEST_NAME = 4  # a shorter user name is found in words of any text

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
# A marker that differs by a letter or a space would publish the solution, so near misses are errors.
_MARKER = re.compile(r"^\s*#+\s*(begin|end)\s*solutions?\b", re.IGNORECASE)
_PROGRESS_BAR = re.compile(r"\d+%\s*\|.*\|| \[\d+:\d\d[<,]|\d+(\.\d+)?(it|s)/(s|it)\]")
# Where homes, checkouts and temporary files lie on Linux, macOS and Windows; `/usr` and the like are in a traceback.
_MACHINE_PATH = re.compile(
    r"(?<![\w.:/])/(?:home|root|work|tmp|Users|mnt|var|opt|usr|private|workspace|content)(?:/[\w.-]+)+/?"
    r"|[A-Za-z]:\\+(?:Users|Temp|Windows)\\"
)
_KEPT_CELL_METADATA = ("deploykit", "mystnb", "tags")
_COMMON_NAMES = frozenset({"admin", "build", "jovyan", "localhost", "root", "runner", "ubuntu", "user"})


def read(path: Path) -> NotebookNode:
    """Read a notebook in today's format; a cell without an id is given one that depends on its position only."""
    notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
    if (notebook.nbformat, notebook.nbformat_minor) < (4, 5):
        notebook = nbformat.convert(notebook, 4)
        notebook.nbformat_minor = 5
        for index, cell in enumerate(notebook.cells):
            cell.id = f"cell-{index:02d}"
    return notebook


def generate(solution: Path) -> NotebookNode:
    """Return the notebook that readers get: ``solution`` without its solutions and without outputs.

    Each region between ``### BEGIN SOLUTION`` and ``### END SOLUTION`` (nbgrader's markers) becomes the line
    ``# YOUR CODE HERE`` and a placeholder: ``name = ...`` when the region ends by assigning ``name``, else ``...``.
    Everything else, cell ids included, is kept.

    Raises:
        ValueError: markers are unbalanced, nested, misspelt or in a text cell, or a region is not Python; the message
            names the notebook and the cell.
    """
    notebook = normalised(read(solution))
    for index, cell in enumerate(notebook.cells):
        try:
            cell.source = _blanked(cell.source) if cell.cell_type == "code" else _unmarked(cell.source)
        except ValueError as error:
            raise ValueError(f"{solution.name}, cell {index} (id {cell.id}): {error}") from None
    for cell in _code_cells(notebook):
        cell.outputs, cell.execution_count = [], None
    return notebook


def solution_regions(source: str) -> list[str]:
    """Return the text of each solution in ``source``, the markers left out.

    Raises:
        ValueError: markers are unbalanced, nested or misspelt.
    """
    return ["\n".join(region) for kind, region in _pieces(source) if kind == "solution"]


def _pieces(source: str) -> Iterator[tuple[str, list[str]]]:
    """Yield ("text" | "solution", lines) in order."""
    lines: list[str] = []
    inside = False
    for number, line in enumerate(source.splitlines(), start=1):
        if not _MARKER.match(line):
            lines.append(line)
            continue
        if line.strip() not in (BEGIN, END):
            raise ValueError(f"line {number} reads {line.strip()!r}; the markers are {BEGIN!r} and {END!r}")
        if (line.strip() == BEGIN) == inside:
            problem = "a solution begins inside another" if inside else "a solution ends that was not begun"
            raise ValueError(f"{problem} (line {number})")
        yield ("solution" if inside else "text"), lines
        lines, inside = [], not inside
    if inside:
        raise ValueError(f"a solution is begun and not ended; add {END!r}")
    yield "text", lines


def _blanked(source: str) -> str:
    kept: list[str] = []
    for kind, lines in _pieces(source):
        kept += _placeholder(lines) if kind == "solution" else lines
    return "\n".join(kept)


def _unmarked(text: str) -> str:
    if any(_MARKER.match(line) for line in text.splitlines()):
        raise ValueError("a solution marker works in code cells only")
    return text


def _placeholder(region: list[str]) -> list[str]:
    try:
        statements = ast.parse(textwrap.dedent("\n".join(region))).body
    except SyntaxError as error:
        raise ValueError(f"the solution is not Python by itself ({error.msg}); mark whole statements") from None
    if not statements:
        raise ValueError("the solution is empty")
    first = next(line for line in region if line.strip())
    indent = first[: len(first) - len(first.lstrip())]
    return [indent + YOUR_TURN, indent + _stand_in(statements[-1])]


def _stand_in(statement: ast.stmt) -> str:
    """Return what replaces a solution that ends with ``statement``, so that the lines after it still run."""
    match statement:
        case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
            return f"{name} = ..."
        case ast.Assign(targets=[ast.Tuple(elts=parts) as several]):
            return f"{ast.unparse(several).strip('()')} = {', '.join(['...'] * len(parts))}"
        case ast.Return():
            return "return ..."  # what an exercise's check takes for not answered yet
    return "..."


def normalised(notebook: NotebookNode) -> NotebookNode:
    """Return a copy without what differs by machine or run: Python version, timings, editor state."""
    clean = copy.deepcopy(notebook)
    clean.metadata = NotebookNode(
        kernelspec={"display_name": "Python 3", "language": "python", "name": "python3"},
        language_info={"name": "python"},
    )
    for cell in clean.cells:
        cell.metadata = NotebookNode({key: cell.metadata[key] for key in _KEPT_CELL_METADATA if key in cell.metadata})
    return clean


def scrub(notebook: NotebookNode) -> NotebookNode:
    """Return a copy of an executed notebook, normalised, without progress bars (text and widgets).

    Nothing else is taken away: a warning or an error stays for ``hygiene_faults`` to find.
    """
    clean = normalised(notebook)
    for cell in _code_cells(clean):
        cell.outputs = [output for output in map(_without_progress, cell.outputs) if output is not None]
    return clean


def _without_progress(output: NotebookNode) -> NotebookNode | None:
    if WIDGET_VIEW in output.get("data", {}):
        del output.data[WIDGET_VIEW]
        shown = set(output.data) - {"text/plain"}  # the plain text beside a widget is its constructor call
        return output if shown else None
    if output.output_type != "stream" or output.name != "stderr":
        return output
    lines = re.split(r"[\r\n]+", output.text)
    kept = [line for line in lines if line.strip() and not _PROGRESS_BAR.search(line)]
    if not kept:
        return None
    output.text = "\n".join(kept) + "\n"
    return output


def write(notebook: NotebookNode, path: Path) -> None:
    """Write ``notebook`` normalised, so that equal notebooks are equal files; complete or not at all.

    Raises:
        nbformat.ValidationError: it is not a valid notebook.
        OSError: the file cannot be written; the old one is as it was.
    """
    clean = normalised(notebook)
    nbformat.validate(clean)
    with atomic_write(path) as temporary:
        temporary.write_text(nbformat.writes(clean, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def hygiene_faults(path: Path) -> list[str]:
    """Return what must not be committed in the executed notebook ``path``: one line per fault, with cell and reason."""
    notebook = read(path)
    faults = [] if path.stat().st_size <= LARGEST_BYTES else [f"the file is larger than {LARGEST_BYTES:,} bytes"]
    cells = list(_code_cells(notebook))
    counts = [cell.execution_count for cell in cells]
    if counts != list(range(1, len(cells) + 1)):
        faults.append(f"execution counts are {counts}; run all cells once, in order")
    for index, cell in enumerate(notebook.cells):
        found = [*_leaks(cell.source, "source")]
        for output in cell.get("outputs", []):
            found += _output_faults(output)
        faults += [f"cell {index} (id {cell.id}): {fault}" for fault in dict.fromkeys(found)]
    return faults


def _output_faults(output: NotebookNode) -> Iterator[str]:
    if output.output_type == "error":
        yield f"error output {output.ename}: {output.evalue}"
        return
    if output.output_type == "stream":
        if output.name == "stderr":
            yield f"text on stderr: {output.text.strip()[:80]!r}"
        texts = {"output": output.text}
    else:
        texts = {kind: text for kind, text in output.data.items() if isinstance(text, str) and not _is_binary(kind)}
        if WIDGET_VIEW in output.data and not set(output.data) - {WIDGET_VIEW, "text/plain"}:
            yield "a widget without another form: static pages show nothing"
    for kind, text in texts.items():
        yield from _leaks(text, kind)
        if "\r" in text or (kind in ("output", "text/plain") and _PROGRESS_BAR.search(text)):
            yield f"remains of a progress bar in {kind}"


def _is_binary(kind: str) -> bool:
    return kind.startswith(("image/", "audio/", "video/", "application/pdf")) and kind != "image/svg+xml"


def _leaks(text: str, where: str) -> Iterator[str]:
    """Yield what ``text`` tells about the machine it was made on; pictures inside HTML are skipped."""
    text = re.sub(r"data:[\w/+.-]+;base64,[A-Za-z0-9+/=\s]+", "", text)
    if path := _MACHINE_PATH.search(text):
        yield f"machine path {path.group()!r} in {where}"
    for name in {getpass.getuser(), platform.node()} - _COMMON_NAMES:
        if len(name) >= SHORTEST_NAME and re.search(rf"\b{re.escape(name)}\b", text):
            yield f"user or host name {name!r} in {where}"


def _code_cells(notebook: NotebookNode) -> Iterator[NotebookNode]:
    return (cell for cell in notebook.cells if cell.cell_type == "code")
