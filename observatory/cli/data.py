"""`observatory data`: copies masked samples for staging."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from observatory import operations
from observatory.cli.app import EnvironmentOption, Output, OutputOption, app, finite, print_json
from observatory.cli.terminal import ConsoleReporter, print_result

DEFAULT_FRACTION = 0.15

group = typer.Typer(help="Copy masked sample data for staging.", no_args_is_help=True)
app.add_typer(group, name="data")


@group.callback()
def data() -> None:
    """Copy masked sample data for staging."""


@group.command()
def sample(
    *,
    source: Annotated[
        str, typer.Option("--from", metavar="STACK|CONNINFO", help="Source of the traces; it is only read.")
    ],
    fraction: Annotated[
        float, typer.Option(callback=finite, help="Fraction of the traces, above 0 and at most 1.")
    ] = DEFAULT_FRACTION,
    target: Annotated[
        str | None,
        typer.Option("--to", metavar="STACK|CONNINFO", help="Target; default: the stack of --environment."),
    ] = None,
    new_key: Annotated[
        bool, typer.Option("--new-key", help="Remove the target's sample first; copy with another key.")
    ] = False,
    keep_own_data: Annotated[
        bool, typer.Option("--keep-own-data", help="Copy also beside data that no sample copied.")
    ] = False,
    environment: EnvironmentOption = "local",
    output: OutputOption = Output.TABLE,
) -> None:
    """Copy a masked sample of traces from another database. Each run selects the same traces, each one whole.

    Texts, names, times and numbers are masked with a key of the target before they leave the source. An interrupted
    run continues when it is started again. Exit code 3: the target is production or the source itself, has data that no
    sample copied or a sample of another key, or a column has no mask.
    """
    if not 0 < fraction <= 1:
        raise typer.BadParameter(
            f"{fraction:g} is out of range: expected above 0 and at most 1", param_hint="--fraction"
        )
    into = target if target and operations.is_conninfo(target) else None
    workspace = operations.open_workspace(environment if into else target or environment)
    with ConsoleReporter() as report:
        copied = operations.copy_sample(
            workspace,
            source=source,
            fraction=fraction,
            target=into,
            new_key=new_key,
            keep_own_data=keep_own_data,
            report=report,
        )
    if output is Output.JSON:
        print_json(asdict(copied))
        return
    print_result(
        f"{copied.spans} spans and {copied.logs} log lines of {copied.windows} days; "
        f"{copied.skipped} days were already copied."
    )
