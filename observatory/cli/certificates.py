"""Commands for the certificates of a stack."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import typer

from observatory import operations
from observatory.cli.app import EnvironmentOption, Output, OutputOption, WaitOption, app, print_json
from observatory.cli.terminal import ConsoleReporter, print_result, table
from observatory.platforms.errors import StackNotUpError

if TYPE_CHECKING:
    from observatory.security.certificates import Validity

group = typer.Typer(help="Show and renew the certificates of a stack.", no_args_is_help=True)
app.add_typer(group, name="certificates")


@group.command("list")
def list_certificates(environment: EnvironmentOption = "local", output: OutputOption = Output.TABLE) -> None:
    """Show when each certificate expires."""
    workspace = operations.open_workspace(environment)
    found = operations.list_certificates(workspace)
    operations.check_none_is_missing(workspace)
    if not found:
        raise StackNotUpError(environment)
    if output is Output.JSON:
        print_json(certificates_json(found))
        return
    rows = [(each.name, f"{each.ends:%Y-%m-%d}", f"{each.days} days") for each in found]
    print_result(table("Certificates", ("certificate", "expires", "left"), rows))


@group.command()
def renew(environment: EnvironmentOption = "local", wait: WaitOption = 0, output: OutputOption = Output.TABLE) -> None:
    """Renew certificates in their last 30 days; no connection closes."""
    workspace = operations.open_workspace(environment)
    with ConsoleReporter() as report, operations.waiting_for_lock(wait):
        done = operations.renew_certificates(workspace, report=report)
    if output is Output.JSON:
        print_json({"renewed": done.renewed, "certificates": certificates_json(done.certificates)})
        return
    print_result(f"Renewed: {', '.join(done.renewed)}" if done.renewed else "No certificate is due for renewal.")


def certificates_json(found: Iterable[Validity]) -> list[dict[str, Any]]:
    """Return certificates as JSON."""
    return [{"name": each.name, "expires": each.ends.isoformat(), "days": each.days} for each in found]
