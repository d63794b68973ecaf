"""What documents the command is generated from it, and is what was committed."""

from __future__ import annotations

import pytest
from typer.core import TyperCommand

from deploykit.cli.contract import Status
from tools import cli_reference

REFRESH = "run `python make.py reference` and look at what changed"


def test_the_help_of_every_command_is_the_committed_one() -> None:
    """`--help`, in 80 columns, reads as reviewed.

    Refresh tests/golden/help, and docs/cli.md with it, with `python make.py reference`.
    """
    committed = {path.name: path.read_text(encoding="utf-8") for path in cli_reference.HELP.glob("*.txt")}
    now = cli_reference.golden()

    assert len(now) >= 12
    assert committed.keys() == now.keys(), REFRESH
    assert [name for name in now if committed[name] != now[name]] == [], REFRESH


def test_the_page_of_the_book_is_current() -> None:
    """docs/cli.md is what the generator writes today."""
    assert cli_reference.PAGE.read_text(encoding="utf-8") == cli_reference.page(), REFRESH


def test_the_page_explains_each_exit_status() -> None:
    """The table has a row for each status but that of a closed pipe, which nobody sees."""
    for status in set(Status) - {Status.CUT_OFF}:
        assert f"\n| {status.value} | " in cli_reference.HEAD


@pytest.mark.parametrize(("path", "command"), list(cli_reference.commands()))
def test_help_fits_the_terminal_and_explains_every_parameter(path: tuple[str, ...], command: TyperCommand) -> None:
    """No line is longer than 80 columns, no first sentence is cut, no option stands there without a word."""
    text = cli_reference.help_text(path)

    assert command.help
    assert [parameter.name for parameter in command.params if not parameter.help] == []
    assert max(map(len, text.splitlines())) <= 80
    assert "..." not in text.partition("Commands:")[2]
