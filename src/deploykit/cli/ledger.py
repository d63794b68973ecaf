"""``deploykit ledger``: what the course has measured on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deploykit.cli import output
from deploykit.cli.contract import Status, StopError

if TYPE_CHECKING:
    import pandas as pd

HEAD = ("time", "kind", "dataset", "what")
# Where a row was measured: the same in most rows, and too wide for a terminal.
CONDITIONS = ("run", "cpu", "gpu", "threads")
EMPTY = "the ledger is empty: run a notebook, each step of it leaves a row"

app = typer.Typer(help="Show or export the ledger of what was measured here.")


@app.command()
def show(
    *,
    kind: Annotated[str | None, typer.Option(help="Only rows of this kind: verdict, prediction, baseline, …")] = None,
    last: Annotated[int, typer.Option(min=1, help="How many rows, the newest.")] = 20,
    as_json: output.Json = False,
) -> None:
    """Show the newest rows, oldest first.

    The text leaves out machine and versions; the JSON document has every column.
    """
    from deploykit import ledger

    every = ledger.rows()
    chosen = every if kind is None else every[every["kind"] == kind]
    rows = _as_dicts(chosen.tail(last))
    if not rows:
        kinds = sorted({str(value) for value in every["kind"]})
        output.say(f"there is no row of kind {kind!r}; there are {', '.join(kinds)}" if kinds else EMPTY)
    elif len(chosen) > last:
        output.say(f"the last {last} of {len(chosen):,} rows; --last {len(chosen)} shows all")
    if as_json:
        output.document({"rows": rows})
    elif rows:
        output.show(_text(rows))


@app.command()
def export(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Ends in .csv or .parquet, which decides the format.")],
    *,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that exists.")] = False,
    as_json: output.Json = False,
) -> None:
    """Write all rows to a CSV or Parquet file."""
    from deploykit import ledger

    if file.exists() and not force:
        raise StopError(f"{file} exists; choose another name, or replace it with --force", Status.USAGE)
    rows = len(ledger.rows())
    if not rows:
        raise StopError(f"{EMPTY}, so nothing was written", Status.UNABLE)
    ledger.export(file)
    if as_json:
        output.document({"file": str(file), "rows": rows})
    else:
        output.show(f"{rows:,} rows written to {file}")


def _as_dicts(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as they were recorded: a column that a row lacks is not there, and a count is no fraction."""
    columns = rows.convert_dtypes()
    return [
        {name: _plain(value) for name, value in record.items() if not _absent(value)}
        for record in columns.astype(object).to_dict("records")
    ]


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def _absent(value: Any) -> bool:
    import pandas as pd

    return value is None or value is pd.NA or (isinstance(value, float) and value != value)  # noqa: PLR0124 (NaN)


def _text(rows: list[dict[str, Any]]) -> str:
    lines = []
    for row in rows:
        lines.append((str(row.get("time"))[:16].replace("T", " "), *(row.get(name, "") for name in HEAD[1:])))
        shown = {k: v for k, v in row.items() if k not in (*HEAD, *CONDITIONS) and not k.startswith("version_")}
        if shown:
            lines.append(("", "", "", "; ".join(f"{name} {_number(value)}" for name, value in shown.items())))
    return output.table(lines, head=("time (UTC)", *HEAD[1:]))


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
