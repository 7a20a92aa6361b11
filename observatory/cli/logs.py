"""`observatory logs`: the log of a daemon."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from observatory import operations
from observatory.cli.app import EnvironmentOption, Output, OutputOption, app, print_json


@app.command()
def logs(
    daemon: Annotated[str, typer.Argument(help="Name of a daemon, as `observatory status` shows it.")],
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Print new lines until interrupted.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="Number of lines to start with.")] = 100,
    environment: EnvironmentOption = "local",
    output: OutputOption = Output.TABLE,
) -> None:
    """Print the last lines of a daemon's log."""
    workspace = operations.open_workspace(environment)
    if output is Output.JSON:
        if follow:
            raise typer.BadParameter("--follow cannot be combined with --output json")
        print_json({"daemon": daemon, "lines": operations.read_log(workspace, daemon, lines=lines)})
        return
    path = operations.log_file(workspace, daemon)
    follow_options = ("-F",) if follow else ()  # -F also follows the new file after a rotation
    os.execvp("tail", ["tail", "-n", str(lines), *follow_options, "--", str(path)])  # noqa: S606 - no shell
