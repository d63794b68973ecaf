"""The ``deploykit`` command, a module for each group of commands; ``contract.py`` holds what all of them keep.

Heavy packages are imported inside the commands, so that ``--help`` answers at once.
"""

from __future__ import annotations

from typing import Annotated

import typer

import deploykit
from deploykit.cli import benchmark, claims, data, doctor, ledger, notebooks, optimize, output, serve, train
from deploykit.cli.contract import NAME, Commands

EPILOG = (
    "Data go to stdout, talk to stderr. Exit status: 0 done, 1 a check failed, 2 the command line is wrong, 3 this "
    "machine is not able (no network, a missing extra, no disk, no GPU), 130 stopped with Ctrl-C."
)

app = typer.Typer(
    cls=Commands,
    help="The commands of a course on making networks cheaper to run that measures what it teaches.",
    epilog=EPILOG,
    add_completion=False,
    rich_markup_mode=None,  # plain text: the same in a pipe, and rich would take longer to import than all of this
    pretty_exceptions_enable=False,
)
app.command()(doctor.doctor)
app.command()(data.data)
app.command()(train.train)
app.command()(benchmark.benchmark)
app.command()(optimize.optimize)
app.command()(serve.serve)
app.add_typer(notebooks.app, name="notebooks")
app.add_typer(ledger.app, name="ledger")
app.command()(claims.claims)
app.command()(claims.predictions)


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    *,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    """Answer what is asked of the program itself."""
    if version:
        output.show(f"{NAME} {deploykit.__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        output.show(context.get_help())
