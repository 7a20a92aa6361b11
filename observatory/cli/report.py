"""`observatory report`: deployment history."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.text import Text

from observatory import operations
from observatory.cli.app import EnvironmentOption, Output, OutputOption, app, print_json
from observatory.cli.terminal import ConsoleReporter, print_result, table


@app.command()
def report(
    deployment: Annotated[str | None, typer.Option(help="Show one deployment with all its events.")] = None,
    environment: EnvironmentOption = "local",
    output: OutputOption = Output.TABLE,
) -> None:
    """Show the deployment history: who, when, how, result."""
    with ConsoleReporter() as progress:
        found = operations.report_deliveries(operations.open_workspace(environment), report=progress)
    if deployment is not None:
        found = [each for each in found if each.id == deployment]
        if not found:
            raise typer.BadParameter(f"no deployment {deployment!r} in the history; `observatory report` lists them")
    if output is Output.JSON:
        print_json([asdict(each) for each in found])
        return
    if not found:
        print_result("The deployment history is empty.")
        return
    print_result(Text("\n").join(_summary(each) for each in found))
    if deployment is not None:
        rows = [(_time(entry.at), entry.actor, entry.event, _details(entry.details)) for entry in found[0].entries]
        print_result(table("\nEvents", ("time (UTC)", "by", "event", "details"), rows))


def _summary(found: operations.DeliveryReport) -> Text:
    """Return two lines: what was deployed with which result; its name, who, how long and the gate's evaluations."""
    evaluations = ", ".join(f"{count} {verdict}" for verdict, count in sorted(found.gates.items()))
    details = (
        found.id,
        f"by {found.actor}",
        f"{found.ended - found.started:.0f} s" if found.ended else "not ended",
        f"evaluations: {evaluations or 'none'}",
    )
    return Text.assemble(
        f"{_time(found.started)} UTC  {found.version} to {found.target}, {found.strategy}: ",
        (found.outcome, "green" if found.outcome == "promoted" else "yellow"),
        f": {found.reason}" if found.reason else "",
        (f"\n  {', '.join(details)}", "dim"),
    )


def _time(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}"


def _details(details: dict[str, object]) -> str:
    return ", ".join(f"{key} {value}" for key, value in details.items() if value not in (None, [], {}))
