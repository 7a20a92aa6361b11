"""The command `backup restore-test`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from observatory import operations
from observatory.cli.app import EnvironmentOption, Output, OutputOption, print_json
from observatory.cli.backup import group
from observatory.cli.terminal import ConsoleReporter, print_result, table
from observatory.errors import FAILED

if TYPE_CHECKING:
    from observatory.backups.receipts import Receipt


@group.command(name="restore-test")
def restore_test(
    at: Annotated[
        str, typer.Option(metavar="TIME|latest", help="What to restore: latest, or a time with its time zone.")
    ] = "latest",
    repository: Annotated[
        int | None, typer.Option(min=1, help="Number of the repository. Default: the one with the oldest drill.")
    ] = None,
    environment: EnvironmentOption = "local",
    output: OutputOption = Output.TABLE,
) -> None:
    """Restore a backup beside the live database and prove that it is exact. Exit code 1 if it is not."""
    with ConsoleReporter() as report:
        workspace = operations.open_workspace(environment)
        receipt = operations.drill_restore(workspace, at=at, repository=repository, report=report)
    if output is Output.JSON:
        print_json(receipt.model_dump(mode="json"))
    else:
        rows = [(each.name, each.result, each.detail) for each in receipt.checks]
        print_result(table("Restore drill", ("check", "result", "detail"), rows))
        print_result(_summary(receipt))
    if receipt.result == "failed":
        raise typer.Exit(FAILED)


def _summary(receipt: Receipt) -> str:
    took = "" if receipt.rto_seconds is None else f", readable after {receipt.rto_seconds:.1f} s"
    lost = "" if receipt.rpo_seconds is None else f", at most {receipt.rpo_seconds:.1f} s of transactions not archived"
    return (
        f"{receipt.result}: {receipt.target} from repository {receipt.repository}{took}{lost}. The receipt is signed."
    )
