"""`observatory verify`: checks each part of a stack the way its clients use it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from observatory import operations
from observatory.cli.app import EnvironmentOption, Output, OutputOption, app, finite, print_json
from observatory.cli.junit import junit_xml
from observatory.cli.terminal import ConsoleReporter, print_result, table
from observatory.errors import DONE, FAILED
from observatory.settings import FleetName

if TYPE_CHECKING:
    from rich.console import RenderableType

    from observatory.operations import StackVerification


@app.command()
def verify(
    *,
    comprehensive: Annotated[
        bool, typer.Option("--comprehensive", help="Also check both fleets, latency, alerts and the newest backup.")
    ] = False,
    target: Annotated[FleetName | None, typer.Option(help="Fleet to check; default: the active fleet.")] = None,
    timeout: Annotated[
        float | None,
        typer.Option(
            min=1, callback=finite, help="Start no further check after this; default 120 s, comprehensive 600 s."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check connectivity only and list the checks.")] = False,
    junit: Annotated[Path | None, typer.Option(help="Write a JUnit report to this file.")] = None,
    environment: EnvironmentOption = "local",
    output: OutputOption = Output.TABLE,
) -> None:
    """Check each part of a stack.

    Exit code 1 if a check failed or is unknown.
    """
    if junit and not junit.absolute().parent.is_dir():
        raise typer.BadParameter(f"{junit.parent} is not a directory; create it first", param_hint="--junit")
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
        print_result(verification_view(found))
        if names:
            print_result(f"Checks of a full run: {', '.join(names)}.")
    raise typer.Exit(DONE if found.passed else FAILED)


def _json(found: StackVerification, names: tuple[str, ...]) -> dict[str, Any]:
    document = {**asdict(found), "passed": found.passed}
    return {**document, "would_check": names} if names else document


def verification_view(found: StackVerification) -> RenderableType:
    """Return the result of a verification as a table."""
    rows = [(check.name, check.verdict, f"{check.seconds:.1f} s", check.detail) for check in found.checks]
    return table(f"Verification of {found.stack}", ("check", "result", "duration", "detail"), rows)
