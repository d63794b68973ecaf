"""The page of recorded results: every run in data/results with its machine, versions, date, command and rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from deploykit.recorded import Recorded, recorded
from deploykit.text import escape_markdown
from make import ROOT

NOTHING = "Nothing has been recorded yet."
DIGITS = 4  # of a measured number; the files hold all of them


def listing() -> str:
    """Return the Markdown of all recorded runs: a table of them, then each with its rows."""
    runs = [recorded(path.stem) for path in sorted((ROOT / "data" / "results").glob("*.json"))]
    if not runs:
        return NOTHING
    return "\n".join([*_overview(runs), *(part for run in runs for part in _run(run))])


def kept(name: str) -> Recorded | None:
    """Return a recorded run of this checkout; None where there is none."""
    return recorded(name) if (ROOT / "data" / "results" / f"{name}.json").is_file() else None


def excerpt(name: str, columns: Mapping[str, str]) -> str:
    """Return some columns of a recorded run as a Markdown table, with its machine, its date and its command.

    Args:
        name: of the run, without ``.json``.
        columns: heading by key; the first one names the rows.
    """
    run = kept(name)
    if run is None:
        return NOTHING
    lines = [tuple(columns.values()), ("---", *["---:"] * (len(columns) - 1))]
    lines += [tuple(_plain(row[key]) for key in columns) for row in run.rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{table}\n\n{escape_markdown(_machine(run))}, {run.date}: `{run.command}`; [all of it](#{anchor(name)})."


def anchor(name: str) -> str:
    """Return where a recorded run is found on the page."""
    return f"run-{name.replace('.', '-')}"


def _overview(runs: list[Recorded]) -> Iterator[str]:
    yield '<table class="table dk-sortable"><thead><tr>'
    yield "<th>run</th><th>date</th><th>machine</th><th>rows</th><th>what</th></tr></thead><tbody>"
    for run in runs:
        yield (
            f'<tr><td><a href="#{anchor(run.name)}">{escape(run.name)}</a></td>'
            f'<td class="dk-whole">{escape(run.date)}</td>'
            f"<td>{escape(_machine(run))}</td><td>{len(run.rows)}</td><td>{escape(run.what)}</td></tr>"
        )
    yield "</tbody></table>\n"


def _run(run: Recorded) -> Iterator[str]:
    yield f"({anchor(run.name)})=\n## {escape_markdown(run.name)}\n"
    yield f"{escape_markdown(run.what)}.\n"
    versions = ", ".join(f"{package} {version}" for package, version in run.versions.items())
    facts = (_machine(run), run.machine.get("os", ""), versions, run.date)
    yield f"{escape_markdown(' · '.join(facts))}\n\n```console\n$ {run.command}\n```\n"
    columns = list(dict.fromkeys(key for row in run.rows for key in row))
    heads = "".join(f"<th>{escape(column.replace('_', ' '))}</th>" for column in columns)
    yield f'<table class="table dk-sortable"><thead><tr>{heads}</tr></thead><tbody>'
    for row in run.rows:
        yield f"<tr>{''.join(_cell(row, column) for column in columns)}</tr>"
    yield "</tbody></table>\n"


def _machine(run: Recorded) -> str:
    machine = run.machine
    return f"{machine.get('gpu') or machine['cpu']}, {machine['threads']} threads"


def _cell(row: Mapping[str, Any], column: str) -> str:
    value = row.get(column)
    match value:
        case None:
            return "<td></td>"
        case bool():
            return f"<td>{'yes' if value else 'no'}</td>"
        case int() | float():
            return f'<td data-sort="{value}">{_number(value)}</td>'
    return f"<td>{escape(value if isinstance(value, str) else str(value))}</td>"


def _plain(value: float | str) -> str:
    return escape_markdown(value) if isinstance(value, str) else _number(value)


def _number(value: float) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if abs(value) >= 10**DIGITS else f"{value:.{DIGITS}g}"
