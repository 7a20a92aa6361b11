"""The commands that hold alerts back for a time."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import Annotated

import typer

from observatory import operations
from observatory.cli.app import EnvironmentOption, Output, OutputOption, app, print_json
from observatory.cli.terminal import answer, table
from observatory.settings import FleetName

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}

group = typer.Typer(help="Hold alerts back for a time; deployments do it by themselves.", no_args_is_help=True)
app.add_typer(group, name="silence")


def _seconds(text: str) -> int:
    given = re.fullmatch(r"([1-9]\d{0,3})([smhd])", text)
    if given is None:
        raise typer.BadParameter(f"{text!r} is no duration such as 30m, 2h or 1d")
    return int(given[1]) * UNITS[given[2]]


@group.command()
def add(
    *,
    duration: Annotated[int, typer.Option(parser=_seconds, help="How long, as 30m or 2h.", metavar="DURATION")],
    reason: Annotated[str, typer.Option(help="Why, for whoever wonders.")],
    fleet: Annotated[FleetName | None, typer.Option(help="Whose alerts; of all fleets by default.")] = None,
    alert: Annotated[str | None, typer.Option(help="Which alert; all that may be held back by default.")] = None,
    environment: EnvironmentOption = "local",
    output: OutputOption = Output.TABLE,
) -> None:
    """Hold back a fleet's alerts, one alert, or one of a fleet; never those that tell that users are not served."""
    workspace = operations.open_workspace(environment)
    made = operations.add_silence(workspace, fleet=fleet, alert=alert, seconds=duration, reason=reason)
    if output is Output.JSON:
        print_json({"id": made})
        return
    answer(f"Held back; `observatory silence end {made}` ends it earlier.")


@group.command(name="list")
def list_all(environment: EnvironmentOption = "local", output: OutputOption = Output.TABLE) -> None:
    """List what is held back, by whom, why and until when."""
    found = operations.list_silences(operations.open_workspace(environment))
    if output is Output.JSON:
        print_json([asdict(each) for each in found])
        return
    rows = [
        (each.id, ", ".join(each.matchers), each.created_by, each.reason, f"{each.ends:%Y-%m-%d %H:%M:%S}")
        for each in found
    ]
    columns = ("id", "alerts", "by", "reason", "until (UTC)")
    answer(table("Silences", columns, rows) if rows else "Nothing is held back.")


@group.command()
def end(
    silence: Annotated[str, typer.Argument(help="The id.")],
    environment: EnvironmentOption = "local",
    output: OutputOption = Output.TABLE,
) -> None:
    """End a silence now."""
    operations.end_silence(operations.open_workspace(environment), silence)
    if output is Output.JSON:
        print_json({"id": silence, "ended": True})
        return
    answer("Ended.")
