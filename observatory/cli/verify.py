"""`observatory verify`: every part of a stack, asked as those who need it ask."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from observatory import operations
from observatory.cli.app import EnvironmentOption, Output, OutputOption, app, print_json
from observatory.cli.junit import junit_xml
from observatory.cli.terminal import ConsoleReporter, answer, table
from observatory.errors import DONE, FAILED
from observatory.settings import FleetName

if TYPE_CHECKING:
    from rich.console import RenderableType

    from observatory.operations import StackVerification


@app.command()
def verify(
    *,
    comprehensive: Annotated[
        bool, typer.Option("--comprehensive", help="Both fleets, latency, alerts and the newest backup, too.")
    ] = False,
    target: Annotated[FleetName | None, typer.Option(help="The fleet to exercise; the one that serves.")] = None,
    timeout: Annotated[
        float | None, typer.Option(min=1, help="Seconds after which nothing more is begun: 120, comprehensive 600.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Look whether all can be reached, and list the checks.")
    ] = False,
    junit: Annotated[Path | None, typer.Option(help="Write a report for CI to this file.")] = None,
    environment: EnvironmentOption = "local",
    output: OutputOption = Output.TABLE,
) -> None:
    """Verify a stack; exit code 1 when something is wrong, or could not be looked at."""
    workspace = operations.open_workspace(environment)
    names: tuple[str, ...] = ()
    if dry_run:
        found, names = operations.list_checks(workspace, comprehensive=comprehensive, target=target)
    else:
        with ConsoleReporter() as report:
            found = operations.verify(
                workspace, comprehensive=comprehensive, target=target, timeout_s=timeout, report=report
            )
    if junit:
        junit.write_text(junit_xml(found), encoding="utf-8")
    if output is Output.JSON:
        print_json(_json(found, names))
    else:
        answer(verification_view(found))
        if names:
            answer(f"Would be looked at: {', '.join(names)}.")
    raise typer.Exit(DONE if found.passed else FAILED)


def _json(found: StackVerification, names: tuple[str, ...]) -> dict[str, Any]:
    document = {**asdict(found), "passed": found.passed}
    return {**document, "would_check": names} if names else document


def verification_view(found: StackVerification) -> RenderableType:
    """Return a verification for people."""
    rows = [(check.name, check.verdict, f"{check.seconds:.1f} s", check.detail) for check in found.checks]
    return table(f"Verification of {found.stack}", ("check", "verdict", "took", "found"), rows)
