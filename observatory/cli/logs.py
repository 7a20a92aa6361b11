"""The commands on the logs of a stack."""

from __future__ import annotations

from typing import Annotated

import typer

from observatory import operations
from observatory.cli.app import EnvironmentOption, Output, OutputOption, app, print_json
from observatory.cli.terminal import answer

group = typer.Typer(help="Keep the logs below the stack's home in bounds.", no_args_is_help=True)
app.add_typer(group, name="logs")


@group.callback()
def logs() -> None:
    """Keep the logs below the stack's home in bounds."""


@group.command()
def rotate(
    force: Annotated[bool, typer.Option("--force", help="Also those that are neither big nor old.")] = False,
    environment: EnvironmentOption = "local",
    output: OutputOption = Output.TABLE,
) -> None:
    """Rotate the logs that are due by size or age; no line is lost."""
    rotated = operations.rotate_logs(operations.open_workspace(environment), force=force)
    if output is Output.JSON:
        print_json({"rotated": rotated})
        return
    answer("\n".join(rotated) or "No log is due.")
