"""`observatory data`: what is done with the data itself."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from observatory import operations
from observatory.cli.app import EnvironmentOption, Output, OutputOption, app, print_json
from observatory.cli.terminal import ConsoleReporter, answer

DEFAULT_FRACTION = 0.15

group = typer.Typer(help="Data for staging.", no_args_is_help=True)
app.add_typer(group, name="data")


@group.callback()
def data() -> None:
    """Data for staging."""


@group.command()
def sample(
    source: Annotated[
        str, typer.Option("--from", metavar="STACK|CONNINFO", help="Where the traces come from; it is only read.")
    ],
    fraction: Annotated[float, typer.Option(help="Of the traces, above 0 and at most 1.")] = DEFAULT_FRACTION,
    target: Annotated[
        str | None,
        typer.Option("--to", metavar="STACK|CONNINFO", help="The stack that gets them; default: --environment."),
    ] = None,
    environment: EnvironmentOption = "local",
    output: OutputOption = Output.TABLE,
) -> None:
    """Copy a masked sample of another database's traces into a stack's: the same traces each time, all of each.

    What people wrote is replaced and who they are is a salted hash before anything leaves the source. Run again, it
    goes on where it was. Refuses (exit code 3) to write into production, into the source itself, or into a database
    that is named by a connection string and has traces of its own.
    """
    if not 0 < fraction <= 1:
        raise typer.BadParameter(
            f"{fraction:g} is no fraction: give one above 0 and at most 1", param_hint="--fraction"
        )
    into = target if target and operations.is_conninfo(target) else None
    workspace = operations.open_workspace(environment if into else target or environment)
    with ConsoleReporter() as report:
        copied = operations.copy_sample(workspace, source=source, fraction=fraction, target=into, report=report)
    if output is Output.JSON:
        print_json(asdict(copied))
        return
    answer(
        f"{copied.spans} spans and {copied.logs} log lines of {copied.windows} days; "
        f"{copied.skipped} days were there already."
    )
