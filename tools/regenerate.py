"""`make notebooks`: write notebooks/ anew from notebooks/solutions/: blank the solutions, execute, clean, store.

What is committed comes from a run on real CIFAR-10, so this refuses to start without it. A notebook that fails leaves
the old one as it was.
"""

from __future__ import annotations

import argparse
import sys

import nbformat

from deploykit.data import load_dataset
from make import BUILD, ROOT, minutes, only_one, say
from tools import notebooks
from tools.cookbook import Result, run_notebook, summary

SOLUTIONS = ROOT / "notebooks" / "solutions"


def main(arguments: list[str]) -> int:
    """Regenerate the notebooks whose names begin as the arguments say, or all; returns the exit status."""
    parser = argparse.ArgumentParser(prog="make.py notebooks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NOTEBOOK", help="only those that begin so, for instance 01")
    names = parser.parse_args(arguments).names
    sources = [
        path
        for path in sorted(SOLUTIONS.glob("[0-9][0-9]_*.ipynb"))
        if not names or any(path.stem.startswith(name) for name in names)
    ]
    if not sources:
        raise SystemExit(f"there is no such notebook in {SOLUTIONS}")
    data = load_dataset("auto")
    if data.name != "cifar10":
        raise SystemExit(f"committed outputs come from CIFAR-10, and this would run on {data.source}")
    results: list[Result] = []
    work = BUILD / "stubs"
    with only_one("cookbook"):
        work.mkdir(parents=True, exist_ok=True)
        for source in sources:
            # beside the committed one, so that it sees the same files from the same folder
            stub = ROOT / "notebooks" / f".{source.stem}.stub.ipynb"
            executed = work / source.name
            try:
                nbformat.write(notebooks.generate(source), stub)
                result = run_notebook(stub, executed, parameters={}, timeout=1800)
            finally:
                stub.unlink(missing_ok=True)
            result.name = source.stem
            if result.ok:
                notebooks.write(notebooks.scrub(notebooks.read(executed)), ROOT / "notebooks" / source.name)
            say(f"{result.name}  {result.kind}, {minutes(result.seconds)}")
            results.append(result)
    say(summary(results))
    return int(not all(result.ok for result in results))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
