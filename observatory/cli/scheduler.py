"""Commands for scheduled jobs: run the scheduler, run one job, list jobs."""

from __future__ import annotations

from typing import Annotated

import typer

from observatory import operations
from observatory.cli.app import EnvironmentOption, Output, OutputOption, app, print_json
from observatory.cli.terminal import print_result

group = typer.Typer(help="Run scheduled jobs (backups, log rotation).")
app.add_typer(group, name="scheduler")


@group.callback(invoke_without_command=True)
def scheduler(
    context: typer.Context,
    environment: EnvironmentOption = "local",
    output: OutputOption = Output.TABLE,  # noqa: ARG001 - read when an error is printed
) -> None:
    """Run the scheduled jobs until SIGTERM or an interrupt.

    `observatory up` starts the scheduler of the local stack. A second scheduler for a stack is refused.
    """
    if context.invoked_subcommand is None:
        operations.run_scheduler(operations.open_workspace(environment))


@group.command()
def run(
    name: Annotated[str, typer.Argument(help="Name of the job.")],
    environment: EnvironmentOption = "local",
    output: OutputOption = Output.TABLE,
) -> None:
    """Run one job now and record its result. Refused while the job is running."""
    record = operations.run_job(operations.open_workspace(environment), name)
    if output is Output.JSON:
        print_json(record.model_dump(mode="json"))
        return
    seconds = (record.ended - record.started).total_seconds() if record.ended and record.started else 0
    print_result(f"{name} {record.result} in {seconds:.1f} s")


@group.command(name="list")
def list_all(environment: EnvironmentOption = "local", output: OutputOption = Output.TABLE) -> None:
    """List the jobs: schedule, last run, next run."""
    from observatory.cli.stack import jobs_table  # noqa: PLC0415 - what runs every job shows no table

    jobs = operations.jobs(operations.open_workspace(environment))
    if output is Output.JSON:
        print_json([job.as_json() for job in jobs])
        return
    print_result(jobs_table(jobs))


@group.command(hidden=True)
def rotate_logs(
    force: Annotated[bool, typer.Option("--force", help="Rotate all logs, whatever their size and age.")] = False,
    environment: EnvironmentOption = "local",
    output: OutputOption = Output.TABLE,
) -> None:
    """Rotate the logs that are due. The job log-rotation runs it."""
    rotated = operations.rotate_logs(operations.open_workspace(environment), force=force)
    if output is Output.JSON:
        print_json({"rotated": rotated})
        return
    print_result("\n".join(rotated) or "No log is due for rotation.")
