"""`make canary`: the newest releases of everything in an environment of its own, and every notebook's smoke run in it.

The lock holds what is known to work; this asks what will break next. All packages of pyproject.toml and its extras, but
those that need a GPU, are resolved anew without the lock. What broke is grouped by error; a run of all notebooks is
recorded in data/results/canary.json.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from make import BUILD, LOCK_FILE, ROOT, StopError, minutes, only_one, say, surroundings

HOME = BUILD / "canary"
LEFT_OUT = ("gpu", "rtx")  # packages of use with a GPU only
BUILDS_ITSELF = "setuptools>=80"  # installs the checkout
PARAMETERS: dict[str, Any] = {"BUDGET": "smoke", "DATA": "shapes32"}
CELL_TIMEOUT_S = 600.0
NEVER_RAN = "could not be installed"
WHAT = (
    "Each notebook's smoke run on shapes32 with the newest release of every package, resolved without the lock; "
    "what happened, grouped by error, and the packages that are no longer the locked ones"
)


def requirements(project: Mapping[str, Any]) -> list[str]:
    """Return what pyproject.toml's ``project`` table asks for, extras included, each once.

    An extra that asks for another one of the project is no package of the index: that one is there anyway.
    """
    extras = project["optional-dependencies"]
    groups = [project["dependencies"], *(extras[name] for name in extras if name not in LEFT_OUT)]
    wanted = {line for group in groups for line in group} | {BUILDS_ITSELF}
    return sorted(line for line in wanted if names([line]) != [_normal(project["name"])])


def names(lines: Iterable[str]) -> list[str]:
    """Return the packages that requirements name."""
    return [_normal(re.split(r"[<>=!~;\[ ]", line)[0]) for line in lines]


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def moved(locked: str, installed: dict[str, str], wanted: Iterable[str]) -> dict[str, str]:
    """Return those of ``wanted`` whose version is not the lock's for this Python: name -> "locked -> now"."""
    lines = (Requirement(line) for line in re.findall(r"^[\w.-]+==[^\\\n]+", locked, re.MULTILINE))
    pins = {_normal(line.name): str(line.specifier)[2:] for line in lines if not line.marker or line.marker.evaluate()}
    return {
        name: f"{pins[name]} -> {installed[name]}"
        for name in wanted
        if name in pins and name in installed and pins[name] != installed[name]
    }


def grouped(outcomes: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one row for each kind of outcome: those that ran first, then errors, the commonest first.

    Errors are one kind when they differ in numbers, names in quotes and paths only.

    Args:
        outcomes: of each notebook ``name``, ``ok``, ``kind``, ``error`` and ``source``, the first line of its cell.
    """
    kinds: dict[tuple[bool, str, str], list[dict[str, Any]]] = defaultdict(list)
    for outcome in outcomes:
        pattern = re.sub(r"'[^']*'|\"[^\"]*\"|(?:/[\w.-]+)+|\d+", "…", str(outcome["error"]))
        kinds[not outcome["ok"], str(outcome["kind"]), pattern].append(outcome)
    order = sorted(kinds.items(), key=lambda item: (item[0][0], -len(item[1]), item[0]))
    return [
        {
            "outcome": kind,
            "notebooks": len(members),
            "which": ", ".join(str(member["name"]).partition("_")[0] for member in members),
            "error": str(members[0]["error"]),
            "cell_begins": str(members[0]["source"]),
        }
        for (_, kind, _), members in order
    ]


def install(python: Path, lines: list[str]) -> str:
    """Make the environment and install the newest of everything into it; returns pip's error, "" when it went well."""
    if not python.exists():
        say(f"creating {HOME.relative_to(ROOT)}/venv")
        subprocess.run([sys.executable, "-m", "venv", HOME / "venv"], check=True)
    pip = [str(python), "-m", "pip", "install", "--no-input", "--upgrade"]
    newest = [*pip, "--upgrade-strategy", "eager", *lines]
    itself = [*pip, "--no-deps", "--no-build-isolation", "-e", str(ROOT)]
    log = HOME / "pip.log"
    say(f"installing the newest releases, without the lock: 3 GB of downloads, minutes; see {log.relative_to(ROOT)}")
    for command in ([*pip, "pip"], newest, itself):
        with log.open("a", encoding="utf-8") as words:
            done = subprocess.run(command, stdout=words, stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            return (errors or done.stderr.strip().splitlines() or ["pip failed and said nothing"])[-1][:300]
    return ""


def try_notebooks(numbers: list[str], report: Path) -> int:
    """Run the solutions in this Python, which is the canary's, and write what became of each to ``report``."""
    from deploykit.recorded import write_recorded
    from tools.cookbook import run_notebook

    sources = [
        path
        for path in sorted((ROOT / "notebooks" / "solutions").glob("[0-9][0-9]_*.ipynb"))
        if not numbers or path.name[:2] in numbers
    ]
    if not sources:
        raise StopError(f"there is no notebook {', '.join(numbers)} in notebooks/solutions")
    outcomes: list[dict[str, Any]] = []
    os.environ["DEPLOYKIT_LEDGER"] = str(HOME / "ledger")
    for source in sources:
        result = run_notebook(source, HOME / source.name, parameters=PARAMETERS, timeout=CELL_TIMEOUT_S)
        say(f"  {result.name}  {result.kind}, {minutes(result.seconds)}  {result.error}".rstrip())
        outcomes.append({key: getattr(result, key) for key in ("name", "ok", "kind", "error", "source")})
    rows = grouped(outcomes)
    if not numbers:
        write_recorded("canary", [*rows, *changes()], what=WHAT, command="python make.py canary")
    report.write_text(json.dumps(rows), encoding="utf-8")
    return int(not all(outcome["ok"] for outcome in outcomes))


def changes() -> list[dict[str, Any]]:
    """Return a row for each package of this Python that is not the locked one."""
    installed = {_normal(entry.name): entry.version for entry in importlib.metadata.distributions()}
    wanted = names(requirements(_project()))
    different = moved(LOCK_FILE.read_text(encoding="utf-8"), installed, wanted)
    return [{"outcome": "not as locked", "package": name, "version": how} for name, how in different.items()]


def _project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def options(arguments: list[str]) -> argparse.Namespace:
    """Parse the command line; wrong ones end the process with a usage message."""
    parser = argparse.ArgumentParser(prog="make.py canary", description=__doc__)
    parser.add_argument("--notebooks", nargs="+", default=[], metavar="NN", help="only these, and record nothing")
    parser.add_argument("--keep", action="store_true", help="keep the environment, and use the one that was kept")
    parser.add_argument("--in-this-python", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Install, run, group; returns the exit status, which is 0 when nothing broke."""
    chosen = options(arguments)
    if chosen.in_this_python:
        return try_notebooks(chosen.notebooks, chosen.in_this_python)
    with only_one("canary"), tempfile.TemporaryDirectory() as folder:
        if not chosen.keep:
            shutil.rmtree(HOME, ignore_errors=True)
        HOME.mkdir(parents=True, exist_ok=True)
        python = HOME / "venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
        report = Path(folder) / "rows.json"
        if error := install(python, requirements(_project())):
            rows = grouped([{"name": "all", "ok": False, "kind": NEVER_RAN, "error": error, "source": ""}])
        else:
            again = [str(python), "-m", "tools.canary", "--in-this-python", str(report)]
            numbers = ["--notebooks", *chosen.notebooks] if chosen.notebooks else []
            subprocess.run([*again, *numbers], cwd=ROOT, env=surroundings(), check=False)
            if not report.exists():
                raise StopError("the run in the new environment ended early; what it said stands above")
            rows = json.loads(report.read_text(encoding="utf-8"))
        if not chosen.keep:
            shutil.rmtree(HOME, ignore_errors=True)
    for row in rows:
        say(f"{row['outcome']}: {row['notebooks']} ({row['which']})  {row['error']}".rstrip())
    return int(any(row["outcome"] != "ok" for row in rows))


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except StopError as error:
        sys.exit(f"canary stops: {error}")
