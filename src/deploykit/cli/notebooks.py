"""``deploykit notebooks``: the course's notebooks in this checkout, running one of them, beginning another."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.util
import json
import os
import re
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from deploykit.cli import output
from deploykit.cli.contract import Status, StopError

MINUTES = re.compile(r"\*\*Minutes:\*\*\s*([\d.]+)\s*quick,\s*([\d.]+)\s*full")
TITLE = re.compile(r"^# +(?:\d\d · )?(.+)$", re.MULTILINE)
NEEDED = ("nbclient", "nbformat", "papermill", "ipykernel")
DATA = "auto, cifar10, shapes32, or a folder of images."
NAME = re.compile(r"\d\d(?:_[a-z0-9]+)+")
TEMPLATE = Path("tools", "notebook_template.json")  # not .ipynb: linters would lay its cells out anew

app = typer.Typer(help="List the notebooks of the course, run one, or begin one.")


@dataclasses.dataclass(frozen=True)
class Entry:
    """A notebook of the course: ``minutes`` are those it says of itself, by budget; None when it says none."""

    number: str
    name: str
    title: str
    minutes: dict[str, float] | None
    claims: tuple[str, ...]


@app.command("list")
def list_notebooks(*, as_json: output.Json = False) -> None:
    """List the notebooks of the course.

    Each with its number, its title, its minutes (quick / full) and the claims that it puts to the test.
    """
    entries = [_entry(path) for path in _sources(_checkout())]
    if as_json:
        output.document({"notebooks": [dataclasses.asdict(entry) for entry in entries]})
        return
    rows = []
    for entry in entries:
        minutes = " / ".join(f"{value:g}" for value in entry.minutes.values()) if entry.minutes else "?"
        rows.append((entry.number, entry.title, minutes, ", ".join(entry.claims)))
    output.show(output.table(rows, head=("no.", "title", "minutes", "claims")))


@app.command()
def run(
    notebook: Annotated[str, typer.Argument(metavar="NUMBER", help="01, or how the notebook's name begins.")],
    *,
    budget: Annotated[
        Literal["quick", "smoke", "full"],
        typer.Option(help="smoke takes seconds, quick a minute or two, full as long as the notebook says."),
    ] = "quick",
    data: Annotated[str, typer.Option(help=DATA)] = "auto",
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="auto takes the GPU if there is one.")] = (
        "auto"
    ),
    timeout: Annotated[
        float | None,
        typer.Option(
            min=1,
            envvar="DEPLOYKIT_CELL_TIMEOUT",
            show_envvar=True,
            show_default="300, with the full budget 14400",
            help="Seconds that one cell may take.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(show_default="build/runs of the checkout", help="Folder for the executed copy.")
    ] = None,
    as_json: output.Json = False,
) -> None:
    """Run one notebook and keep the executed copy.

    It runs from the first cell to the last; the notebook itself is left as it is. Ends with status 1 when a cell
    fails, and says which, why, and what to do.
    """
    checkout = _checkout()
    source = _chosen(notebook, _sources(checkout))
    folder = (out or checkout / "build" / "runs").resolve()
    if folder == source.parent:
        raise StopError(f"{folder} holds the notebook itself; give --out another folder", Status.USAGE)
    parameters = {"BUDGET": budget, "DATA": _data(data), "DEVICE": _device(device)}
    cookbook = _runner(checkout)
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / source.name
    limit = timeout or cookbook.CELL_TIMEOUT_S[budget]
    with contextlib.redirect_stdout(sys.stderr):  # its progress is talk
        result = cookbook.run_notebook(source, target, parameters=parameters, timeout=limit)
    log = target.with_suffix(".log")  # the kernel's words, which help where a cell failed
    if result.ok or not log.stat().st_size:
        log.unlink()
    if as_json:
        output.document(_as_json(result, target, parameters))
    else:
        output.show(f"{cookbook.summary([result]).strip()}\nthe executed copy: {target}")
    raise typer.Exit(Status.DONE if result.ok else Status.FAILED_CHECK)


@app.command("new")
def new_notebook(
    name: Annotated[str, typer.Argument(metavar="NN_TOPIC", help="Number and topic: 16_pruning_heads.")],
    *,
    title: Annotated[
        str | None, typer.Option(show_default="the topic", help="What its heading says after the number.")
    ] = None,
    as_json: output.Json = False,
) -> None:
    """Begin a notebook from a template that keeps the rules of the course.

    It goes into notebooks/solutions, from which `make notebooks` makes the one for readers. What is yet to be written
    says so in it, and CONTRIBUTING.md says how to go on.
    """
    checkout = _checkout()
    number, _, topic = name.partition("_")
    if not NAME.fullmatch(name):
        raise StopError(
            f"{name!r} is no name of a notebook; two digits and a topic in lower case, such as 16_my_topic",
            Status.USAGE,
        )
    folder = checkout / "notebooks" / "solutions"
    if taken := sorted(path.name for path in folder.glob(f"{number}_*.ipynb")):
        raise StopError(f"the number {number} is taken by {taken[0]}; choose another", Status.USAGE)
    words = {"@NUMBER@": number, "@STEM@": name, "@TITLE@": title or topic.replace("_", " ").capitalize()}
    text = (checkout / TEMPLATE).read_text(encoding="utf-8")
    for mark, word in words.items():
        text = text.replace(mark, json.dumps(word, ensure_ascii=False)[1:-1])
    target = folder / f"{name}.ipynb"
    _write_new(target, text)
    if as_json:
        output.document({"notebook": name, "title": words["@TITLE@"], "file": str(target)})
        return
    output.show(f"{target}\nnow write its claims into src/deploykit/claims.toml; CONTRIBUTING.md has the other steps")


def _write_new(target: Path, text: str) -> None:
    from deploykit.places import atomic_write

    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _checkout() -> Path:
    from deploykit.places import repository

    root = repository()
    if not (root / "tools" / "run_notebook.py").is_file() or not (root / "notebooks").is_dir():
        raise StopError(
            f"the notebooks come with a checkout of the repository, and {root} is none; change into one, or set "
            "DEPLOYKIT_HOME to it",
            Status.UNABLE,
        )
    return root


def _sources(checkout: Path) -> list[Path]:
    found = sorted((checkout / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    if not found:
        raise StopError(f"there is no notebook in {checkout / 'notebooks'}; clone the project again", Status.UNABLE)
    return found


def _chosen(asked: str, sources: list[Path]) -> Path:
    begins = f"{int(asked):02}_" if asked.isdecimal() else asked.removesuffix(".ipynb")
    chosen = [path for path in sources if path.stem.startswith(begins)]
    if len(chosen) != 1:
        several = ", ".join(path.stem for path in chosen or sources)
        fits = "more than one notebook" if chosen else "no notebook"
        raise StopError(f"{fits} begins with {begins!r}; choose one of {several}", Status.USAGE)
    return chosen[0]


def _entry(path: Path) -> Entry:
    from deploykit.claims import claims

    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        text = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    except (ValueError, LookupError, TypeError) as error:
        raise StopError(
            f"{path} is no notebook ({type(error).__name__}: {error}); restore it: git checkout -- {path.name}",
            Status.UNABLE,
        ) from error
    number, _, rest = path.stem.partition("_")
    title, minutes = TITLE.search(text), MINUTES.search(text)
    return Entry(
        number=number,
        name=path.stem,
        title=title[1].strip() if title else rest.replace("_", " "),
        minutes={"quick": float(minutes[1]), "full": float(minutes[2])} if minutes else None,
        claims=tuple(claim.id for claim in claims().values() if claim.notebook == number),
    )


def _data(data: str) -> str:
    """Make a folder's path absolute: the notebook runs in a folder of its own."""
    if data in {"auto", "cifar10", "shapes32"}:
        return data
    folder = Path(data).expanduser().resolve()
    if not folder.is_dir():
        raise StopError(f"there is no folder {folder}; --data takes {DATA}", Status.USAGE)
    return str(folder)


def _device(device: str) -> str:
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise StopError(
                "--device is cuda, and torch finds no GPU here; leave it out, or see `deploykit doctor`", Status.UNABLE
            )
    return device


def _runner(checkout: Path) -> Any:
    """Return the checkout's ``tools.cookbook``, which runs a notebook as `make cookbook` does."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise StopError(
            f"running notebooks needs {', '.join(missing)}: pip install 'deploykit[notebooks]'", Status.UNABLE
        )
    if str(checkout) not in sys.path:
        sys.path.insert(0, str(checkout))
    make = importlib.import_module("make")
    os.environ.update(make.surroundings())  # the kernel keeps out of the reader's home folder
    return importlib.import_module("tools.cookbook")


def _as_json(result: Any, target: Path, parameters: dict[str, str]) -> dict[str, Any]:
    failure = None
    if not result.ok:
        failure = {
            "kind": result.kind,
            "cell": result.cell,
            "begins": result.source,
            "error": result.error,
            "remedy": result.remedy,
        }
    return {
        "notebook": result.name,
        "ok": result.ok,
        "seconds": result.seconds,
        "parameters": parameters,
        "executed": str(target),
        "failure": failure,
    }
