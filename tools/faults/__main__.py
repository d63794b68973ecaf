"""`make faults`: try everything in the catalogue, print the table, and keep it for the site."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from deploykit.recorded import recorded, write_recorded
from make import minutes
from tools.faults import caches, downloads, kernels, ledgers, page, readers, training
from tools.faults.trials import CATALOGUE, Fault

PARTS = [part.__name__ for part in (training, downloads, caches, ledgers, readers, kernels)]
CATALOGUE.sort(key=lambda fault: PARTS.index(fault.trial.__module__))
WHAT = "Faults tried on purpose, and what became of them"


def options(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; wrong ones end the process with a usage message."""
    parser = argparse.ArgumentParser(
        prog="make.py faults",
        description="Try what goes wrong on real machines, on purpose: print a table of what became of it, and keep it "
        "in data/results/faults.json and docs/faults.md (the whole form only). Exit status 1 when anything else "
        "happened than what was expected.",
    )
    names = [fault.name for fault in CATALOGUE]
    parser.add_argument("names", nargs="*", metavar="FAULT", help=f"only these: {', '.join(names)}")
    parser.add_argument("--short", action="store_true", help="fewer trials of each (a minute or two)")
    parser.add_argument("--seed", type=int, default=0, help="another seed draws other steps and moments; default: 0")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON; the talk goes to stderr")
    parser.add_argument("--page", action="store_true", help="only write docs/faults.md anew from the recorded table")
    chosen = parser.parse_args(arguments)
    if unknown := set(chosen.names) - set(names):
        parser.error(f"there is no fault {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    return chosen


def line(row: Mapping[str, Any]) -> str:
    """Return a row for people."""
    width = max(len(fault.fault) for fault in CATALOGUE)
    verdict = "ok" if row["ok"] else "FAILED"
    return f"{verdict:6}  {row['fault']:{width}}  {row['tried']:3} x  {row['seconds']:6.1f} s  {row['happened']}"


def main(arguments: Sequence[str]) -> int:
    """Do what the command line says; returns the exit status."""
    chosen = options(arguments)
    if chosen.page:
        print(page.write(recorded("faults")))
        return 0
    if sys.platform != "linux":
        print("The faults are tried with the means of Linux (signals, limits, mounts); this is another system.")
        return 3
    talk = sys.stderr if chosen.json else sys.stdout
    wanted: list[Fault] = [fault for fault in CATALOGUE if not chosen.names or fault.name in chosen.names]
    rows = []
    for fault in wanted:
        rows.append(fault.run(seed=chosen.seed, short=chosen.short))
        print(line(rows[-1]), file=talk, flush=True)
    failed = [str(row["fault"]) for row in rows if not row["ok"]]
    seconds = sum(float(row["seconds"]) for row in rows)
    print(f"\n{len(rows) - len(failed)} of {len(rows)} faults ended as expected, {minutes(seconds)}", file=talk)
    for name in failed:
        print(f"failed: {name}", file=talk)
    if not (chosen.short or chosen.names):
        command = f"python make.py faults --seed {chosen.seed}"
        print(write_recorded("faults", rows, what=WHAT, command=command), file=talk)
        print(page.write(recorded("faults")), file=talk)
    if chosen.json:
        print(json.dumps(rows, indent=1))
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
