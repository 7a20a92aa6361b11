"""The commands that run the jobs of the host: all at their times, or one now."""

from __future__ import annotations

from typing import Annotated

import typer

from observatory import operations
from observatory.cli.app import EnvironmentOption, Output, OutputOption, app, print_json
from observatory.cli.stack import jobs_table
from observatory.cli.terminal import answer

group = typer.Typer(help="Run the jobs of the host at their times (backups, log rotation), until it is told to end.")
app.add_typer(group, name="scheduler")


@group.callback(invoke_without_command=True)
def scheduler(
    context: typer.Context,
    environment: EnvironmentOption = "local",
    output: OutputOption = Output.TABLE,  # noqa: ARG001 - an error is told in it
) -> None:
    """Run the jobs of the host at their times, until SIGTERM or an interrupt.

    `observatory up` starts it for the local stack. A stack has one: a second one is refused.
    """
    if context.invoked_subcommand is None:
        operations.run_scheduler(operations.open_workspace(environment))


@group.command()
def run(
    name: Annotated[str, typer.Argument(help="The job.")],
    environment: EnvironmentOption = "local",
    output: OutputOption = Output.TABLE,
) -> None:
    """Run one job now, and keep the record of it; refused where it runs already."""
    record = operations.run_job(operations.open_workspace(environment), name)
    if output is Output.JSON:
        print_json(record.model_dump(mode="json"))
        return
    seconds = (record.ended - record.started).total_seconds() if record.ended and record.started else 0
    answer(f"{name} {record.result} in {seconds:.1f} s")


@group.command(name="list")
def list_all(environment: EnvironmentOption = "local", output: OutputOption = Output.TABLE) -> None:
    """List the jobs: when they run, what became of the last run, when the next is due."""
    jobs = operations.jobs(operations.open_workspace(environment))
    if output is Output.JSON:
        print_json([job.as_json() for job in jobs])
        return
    answer(jobs_table(jobs))
