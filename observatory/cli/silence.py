"""Commands for silences: mute alerts for a limited time."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import Annotated

import typer

from observatory import operations
from observatory.cli.app import EnvironmentOption, Output, OutputOption, app, print_json
from observatory.cli.terminal import ConsoleReporter, print_result, table
from observatory.settings import FleetName

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}

group = typer.Typer(help="Mute alerts for a limited time.", no_args_is_help=True)
app.add_typer(group, name="silence")


def _seconds(text: str) -> int:
    given = re.fullmatch(r"([1-9]\d{0,3})([smhd])", text)
    if given is None:
        raise typer.BadParameter(
            f"invalid duration {text!r}; expected a number from 1 to 9999 and s, m, h or d, e.g. 30m"
        )
    return int(given[1]) * UNITS[given[2]]


def _printable(text: str) -> str:
    """Return a text without control characters: other programs also make silences."""
    return "".join(each if each.isprintable() else "?" for each in text)


@group.command()
def create(
    *,
    duration: Annotated[
        int, typer.Option(parser=_seconds, help="Duration up to 7d, e.g. 30m or 2h.", metavar="DURATION")
    ],
    reason: Annotated[str, typer.Option(help="Reason, shown with the silence.")],
    fleet: Annotated[FleetName | None, typer.Option(help="Mute alerts of this fleet; default: all fleets.")] = None,
    alert: Annotated[str | None, typer.Option(help="Mute this alert; default: all alerts that may be muted.")] = None,
    matcher: Annotated[
        list[str] | None,
        typer.Option(help="Mute alerts with this label, e.g. 'job=\"node\"'; repeatable.", metavar="MATCHER"),
    ] = None,
    environment: EnvironmentOption = "local",
    output: OutputOption = Output.TABLE,
) -> None:
    """Mute alerts of a fleet, one alert, or those of matchers. Alerts about user-facing outages cannot be muted."""
    workspace = operations.open_workspace(environment)
    with ConsoleReporter() as progress:
        made = operations.create_silence(
            workspace,
            fleet=fleet,
            alert=alert,
            matchers=matcher or (),
            seconds=duration,
            reason=reason,
            report=progress,
        )
    if output is Output.JSON:
        print_json({"id": made})
        return
    print_result(f"Silenced. `observatory silence end {made}` ends it early.")


@group.command(name="list")
def list_all(environment: EnvironmentOption = "local", output: OutputOption = Output.TABLE) -> None:
    """List the silences: alerts, author, reason, end."""
    found = operations.list_silences(operations.open_workspace(environment))
    if output is Output.JSON:
        print_json([asdict(each) for each in found])
        return
    rows = [
        tuple(
            map(
                _printable,
                (each.id, ", ".join(each.matchers), each.created_by, each.reason, f"{each.ends:%Y-%m-%d %H:%M:%S}"),
            )
        )
        for each in found
    ]
    columns = ("id", "alerts", "by", "reason", "until (UTC)")
    print_result(table("Silences", columns, rows) if rows else "No silences.")


@group.command()
def end(
    silence: Annotated[str, typer.Argument(help="Id of the silence.")],
    environment: EnvironmentOption = "local",
    output: OutputOption = Output.TABLE,
) -> None:
    """End a silence now."""
    operations.end_silence(operations.open_workspace(environment), silence)
    if output is Output.JSON:
        print_json({"id": silence, "ended": True})
        return
    print_result("Ended.")
