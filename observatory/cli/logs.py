"""Commands for the logs of a stack."""

from __future__ import annotations

from typing import Annotated

import typer

from observatory import operations
from observatory.cli.app import EnvironmentOption, Output, OutputOption, app, print_json
from observatory.cli.terminal import print_result

group = typer.Typer(help="Rotate the logs of a stack.", no_args_is_help=True)
app.add_typer(group, name="logs")


@group.callback()
def logs() -> None:
    """Rotate the logs of a stack."""


@group.command()
def rotate(
    force: Annotated[bool, typer.Option("--force", help="Rotate all logs, whatever their size and age.")] = False,
    environment: EnvironmentOption = "local",
    output: OutputOption = Output.TABLE,
) -> None:
    """Rotate the logs that are due by size or age. No line is lost."""
    rotated = operations.rotate_logs(operations.open_workspace(environment), force=force)
    if output is Output.JSON:
        print_json({"rotated": rotated})
        return
    print_result("\n".join(rotated) or "No log is due for rotation.")
