"""The commands on backups of the database."""

from __future__ import annotations

from typing import Annotated

import typer

from observatory import operations
from observatory.backups.pgbackrest import Backup, BackupType
from observatory.cli.app import EnvironmentOption, Output, OutputOption, app, print_json
from observatory.cli.terminal import ConsoleReporter, answer, table

COLUMNS = ("label", "type", "ended (UTC)", "took", "database", "added", "builds on")
KIB = 1024

group = typer.Typer(help="Make and list backups of the database.", no_args_is_help=True)
app.add_typer(group, name="backup")


@group.command()
def create(
    kind: Annotated[
        BackupType, typer.Option("--type", help="What changed since the last full backup, since any, or all.")
    ] = BackupType.INCREMENTAL,
    environment: EnvironmentOption = "local",
    output: OutputOption = Output.TABLE,
) -> None:
    """Make a backup; without a full one to build on, a full one."""
    with ConsoleReporter() as report:
        made = operations.create_backup(operations.open_workspace(environment), kind, report=report)
    if output is Output.JSON:
        print_json(made.as_json())
        return
    answer(table("Made", COLUMNS, [_row(made)]))


@group.command(name="list")
def list_all(environment: EnvironmentOption = "local", output: OutputOption = Output.TABLE) -> None:
    """List the finished backups, the oldest first."""
    found = operations.list_backups(operations.open_workspace(environment))
    if output is Output.JSON:
        print_json([backup.as_json() for backup in found])
        return
    answer(table("Backups", COLUMNS, [_row(backup) for backup in found]) if found else "There is no backup yet.")


def _row(backup: Backup) -> tuple[str, ...]:
    return (
        backup.label + (" (damaged pages)" if backup.damaged else ""),
        backup.type,
        f"{backup.ended:%Y-%m-%d %H:%M:%S}",
        f"{(backup.ended - backup.started).total_seconds():.0f} s",
        size(backup.database_bytes),
        size(backup.repository_bytes),
        backup.prior or "-",
    )


def size(number: float) -> str:
    """Return a number of bytes for people."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < KIB:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= KIB
    return f"{number:.1f} TiB"
