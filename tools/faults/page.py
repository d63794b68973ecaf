"""The site's page of faults, from what was recorded: no number in it is typed."""

from __future__ import annotations

from pathlib import Path

from deploykit.places import atomic_write
from deploykit.recorded import Recorded
from make import ROOT

PAGE = ROOT / "docs" / "faults.md"
INTRODUCTION = """# Faults, tried

Machines lose power, disks fill up, networks break, thirty people press Enter at once. Whether a course survives that
cannot be read off its code, so each of these was brought about on purpose, at moments drawn at random, and what became
of it compared with what must. `make faults` does it again on your machine; a short form of it is part of `make test`.
"""


def text(results: Recorded) -> str:
    """Return the page.

    Args:
        results: what `make faults` recorded.
    """
    tried = sum(row["tried"] for row in results.rows)
    failed = [row["fault"] for row in results.rows if not row["ok"]]
    outcome = f"not as expected: {', '.join(failed)}" if failed else "all as expected"
    machine, versions = results.machine, results.versions
    where = (
        f"{machine['cpu']}, {machine['threads']} threads, {machine['os']}, Python {versions['python']}, "
        f"torch {versions['torch']}, {results.date}: `{results.command}`."
    )
    lines = [INTRODUCTION, f"Faults: {len(results.rows)}; trials: {tried}; {outcome}. {where}", ""]
    for row in results.rows:
        times = f"{row['tried']} {'trial' if row['tried'] == 1 else 'trials'}, {row['seconds']:.0f} s"
        lines += [
            f"## {row['fault'][0].upper()}{row['fault'][1:]}",
            "",
            f"*Done:* {row['done']}.  ",
            f"*Expected:* {row['expected']}.  ",
            f"*Happened:* {'' if row['ok'] else '**not as expected.** '}{_escaped(row['happened'])} ({times}).",
            "",
        ]
    return "\n".join(lines)


def _escaped(words: str) -> str:
    from deploykit.text import escape_markdown

    return escape_markdown(" ".join(words.split()))


def write(results: Recorded) -> Path:
    """Write docs/faults.md and return it."""
    with atomic_write(PAGE) as temporary:
        temporary.write_text(text(results), encoding="utf-8")
    return PAGE
