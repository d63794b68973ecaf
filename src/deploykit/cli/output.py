"""What commands print: one JSON document, or text that is aligned and fits the terminal."""

from __future__ import annotations

import json
import math
import shutil
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

import typer

from deploykit.cli.contract import let_go

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
GAP = "  "
NARROWEST, WIDEST = 40, 120  # beyond which a line is no longer read at one glance
NARROWEST_LAST_COLUMN = 24
MISSING_CHARACTER = "\N{REPLACEMENT CHARACTER}"


def show(text: str) -> None:
    """Write text to stdout. A reader who has left (``| head``) has what they wanted: that is no error."""
    try:
        typer.echo(text)
    except BrokenPipeError:
        let_go(sys.stdout)


def say(text: str) -> None:
    """Write talk, which is no part of the data, to stderr."""
    typer.echo(text, err=True)


def document(content: Mapping[str, Any]) -> None:
    """Write one JSON document to stdout, with numbers that JSON lacks as the ledger writes them."""
    show(json.dumps(_finite(content), indent=2, allow_nan=False))


def table(rows: Iterable[Sequence[object]], *, head: Sequence[str] | None = None) -> str:
    """Align rows in columns; the last column is wrapped to the terminal's width, 80 where there is none.

    Args:
        rows: cells are shown as text; what a terminal would take for a command is not.
        head: names of the columns, if they are to be shown.
    """
    lines = [[printable(cell) for cell in row] for row in ([head] if head else []) + list(rows)]
    if not lines:
        return ""
    widths = [max(map(len, column)) for column in list(zip(*lines, strict=True))[:-1]]
    return "\n".join(
        hanging("".join(f"{cell:<{width}}{GAP}" for cell, width in zip(cells, widths, strict=True)), text)
        for *cells, text in lines
    )


def hanging(before: str, text: object) -> str:
    """Wrap text to the terminal's width behind what stands ``before`` it on its first line, and as far to the right."""
    width = max(terminal_width(), len(before) + NARROWEST_LAST_COLUMN)
    lines = textwrap.wrap(
        printable(text), width, initial_indent=before, subsequent_indent=" " * len(before), break_on_hyphens=False
    )
    return "\n".join(lines) or before.rstrip()


def paragraph(text: str) -> str:
    """Wrap text to the terminal's width."""
    return hanging("", text)


def printable(value: object) -> str:
    """Return a value on one line, without the characters by which a name from outside could steer the terminal."""
    text = " ".join(str(value).split())
    return "".join(character if character.isprintable() else MISSING_CHARACTER for character in text)


def terminal_width() -> int:
    """Return how many columns to use."""
    return min(max(shutil.get_terminal_size().columns, NARROWEST), WIDEST)


def _finite(value: Any) -> Any:
    from deploykit.ledger import NON_FINITE

    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {NON_FINITE: str(value)}
    return value
