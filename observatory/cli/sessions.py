"""`observatory psql` and `observatory exec`: a session of the administrator, a command beside a daemon."""

from __future__ import annotations

from typing import Annotated

import typer

from observatory import operations
from observatory.cli.app import EnvironmentOption, Output, OutputOption, app

PASSED_ON = {"ignore_unknown_options": True, "allow_interspersed_args": False}


@app.command(context_settings=PASSED_ON)
def psql(
    arguments: Annotated[list[str] | None, typer.Argument(help="Arguments of psql, after --.")] = None,
    environment: EnvironmentOption = "local",
    output: OutputOption = Output.TABLE,
) -> None:
    """Open psql on the stack's database with its role admin.

    Example: observatory psql -- -c "select count(*) from llm_traces"
    """
    _refuse_json(output)
    raise typer.Exit(operations.run_psql(operations.open_workspace(environment), tuple(arguments or ())))


@app.command(name="exec", context_settings=PASSED_ON)
def execute(
    daemon: Annotated[str, typer.Argument(help="Name of a daemon, as `observatory status` shows it.")],
    command: Annotated[list[str], typer.Argument(help="The command and its arguments, after --.")],
    environment: EnvironmentOption = "local",
    output: OutputOption = Output.TABLE,
) -> None:
    """Run a command in the sandbox with a daemon's environment.

    Example: observatory exec patroni -- patronictl -c /srv/etc/patroni/patroni.yaml list
    """
    _refuse_json(output)
    words = command[1:] if command[0] == "--" else command  # the parser leaves the -- after the daemon's name
    if not words:
        raise typer.BadParameter("name a command after --")
    raise typer.Exit(operations.run_beside(operations.open_workspace(environment), daemon, tuple(words)))


def _refuse_json(output: Output) -> None:
    if output is Output.JSON:
        raise typer.BadParameter("--output json does not apply: the output is that of the command")
