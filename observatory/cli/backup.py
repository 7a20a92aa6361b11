"""Commands for backups of the database."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from observatory import operations
from observatory.backups.tool import Backup, BackupType
from observatory.cli.app import EnvironmentOption, Output, OutputOption, app, print_json
from observatory.cli.terminal import ConsoleReporter, print_result, table
from observatory.errors import FAILED

PassphraseFileOption = Annotated[
    Path | None, typer.Option("--passphrase-file", help="First line: passphrase of the key file. Default: a prompt.")
]
COLUMNS = (
    "repository",
    "label",
    "type",
    "finished (UTC)",
    "duration",
    "database",
    "stored",
    "based on",
    "restorable to now",
)
KIB = 1024

RepositoryOption = Annotated[
    int | None, typer.Option("--repository", min=1, help="Number of one repository. Default: each.")
]
SourceOption = Annotated[
    int | None, typer.Option("--repository", min=1, help="Number of the repository to restore from. Default: any.")
]

group = typer.Typer(help="Make, list and verify backups of the database.", no_args_is_help=True)
app.add_typer(group, name="backup")


@group.command()
def create(
    kind: Annotated[
        BackupType, typer.Option("--type", help="full: all; differential: since the last full; incremental: since any.")
    ] = BackupType.INCREMENTAL,
    repository: RepositoryOption = None,
    environment: EnvironmentOption = "local",
    output: OutputOption = Output.TABLE,
) -> None:
    """Make a backup in each repository. Without an earlier full backup there, a full one is made."""
    workspace = operations.open_workspace(environment)
    with ConsoleReporter() as report:
        made = operations.create_backups(workspace, kind, repository=repository, report=report)
    if output is Output.JSON:
        print_json([backup.as_json() for backup in made])
        return
    print_result(table("Backups", COLUMNS, [_row(backup) for backup in made]))


@group.command(name="list")
def list_all(
    repository: RepositoryOption = None,
    environment: EnvironmentOption = "local",
    output: OutputOption = Output.TABLE,
) -> None:
    """List the finished backups, the oldest first."""
    with ConsoleReporter() as report:
        found = operations.list_backups(operations.open_workspace(environment), repository=repository, report=report)
    if output is Output.JSON:
        print_json([backup.as_json() for backup in found])
        return
    print_result(table("Backups", COLUMNS, [_row(backup) for backup in found]) if found else "No backup exists.")


@group.command()
def verify(
    contents: Annotated[bool, typer.Option("--contents", help="Read every file and compare its checksum.")] = False,
    exit_zero: Annotated[
        bool, typer.Option("--exit-zero", help="Exit 0 with findings, too; alerts report them.")
    ] = False,
    repository: RepositoryOption = None,
    environment: EnvironmentOption = "local",
    output: OutputOption = Output.TABLE,
) -> None:
    """Check that no backup and no WAL segment is missing or damaged. Exit code 1 with findings."""
    workspace = operations.open_workspace(environment)
    with ConsoleReporter() as report:
        found = operations.verify_backups(workspace, repository=repository, contents=contents, report=report)
    if output is Output.JSON:
        obstacles = {label: why for (_, label), why in found.obstacles.items()}
        print_json({"findings": [asdict(each) for each in found.findings], "obstacles": obstacles})
    elif found.findings:
        rows = [(str(each.repository), each.kind, each.text) for each in found.findings]
        print_result(table("Findings", ("repository", "in", "finding"), rows))
    else:
        print_result("Every backup and every WAL segment is there.")
    if found.findings and not exit_zero:
        raise typer.Exit(FAILED)


@group.command()
def dump(
    file: Annotated[Path | None, typer.Argument(help="New file. Default: STACK-TIME.dump in this directory.")] = None,
    environment: EnvironmentOption = "local",
    output: OutputOption = Output.TABLE,
) -> None:
    """Write all rows to one encrypted file, to move them elsewhere."""
    with ConsoleReporter() as report:
        made = operations.dump_database(operations.open_workspace(environment), file, report=report)
    found = made.manifest
    if output is Output.JSON:
        print_json({"file": str(made.file), "bytes": made.bytes, "key_file": str(made.key_file), **found.as_json()})
        return
    rows = sum(found.rows.stored.values())
    print_result(
        f"{made.file}: {size(made.bytes)}, {rows} rows in {len(found.rows.stored)} tables and chunks at "
        f"{found.created:%Y-%m-%d %H:%M:%S} UTC; PostgreSQL {found.postgresql}, TimescaleDB {found.timescaledb} "
        f"({found.edition}), schema {found.schema_version}"
    )
    print_result(f"Keep its key, too: {made.key_file}. Without the key the dump cannot be restored.")


keys = typer.Typer(help="Export the keys that a lost machine needs.", no_args_is_help=True)
group.add_typer(keys, name="key")


@keys.command()
def export(
    file: Annotated[Path, typer.Argument(help="New file; keep it apart from the backups.")],
    passphrase_file: PassphraseFileOption = None,
    environment: EnvironmentOption = "local",
    output: OutputOption = Output.TABLE,
) -> None:
    """Write the keys of the backups to a file, encrypted with a passphrase."""
    passphrase = read_passphrase(passphrase_file, confirm=True)
    written = operations.export_keys(operations.open_workspace(environment), file, passphrase)
    if output is Output.JSON:
        print_json({"file": str(file.absolute()), "repositories": sorted(written.repositories)})
        return
    numbers = " and ".join(map(str, sorted(written.repositories)))
    print_result(f"{file} has the keys of repositories {numbers}. Keep it, and its passphrase, off this machine.")


def read_passphrase(file: Path | None, *, confirm: bool = False) -> str:
    """Return the first line of a file, or what is entered at a prompt on the terminal."""
    if file is None:
        if not sys.stdin.isatty():
            raise typer.BadParameter("without a terminal, name a file: --passphrase-file FILE")
        return str(typer.prompt("Passphrase of the key file", hide_input=True, confirmation_prompt=confirm, err=True))
    try:
        return file.read_text(encoding="utf-8").partition("\n")[0]
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"--passphrase-file {file} cannot be read: {error}") from None


def _row(backup: Backup) -> tuple[str, ...]:
    return (
        str(backup.repository),
        backup.label + (" (damaged pages)" if backup.damaged else ""),
        backup.type,
        f"{backup.ended:%Y-%m-%d %H:%M:%S}",
        f"{(backup.ended - backup.started).total_seconds():.0f} s",
        size(backup.database_bytes),
        size(backup.repository_bytes),
        backup.prior or "-",
        "-" if backup.obstacle is None else f"no: {backup.obstacle}" if backup.obstacle else "yes",
    )


def size(number: float) -> str:
    """Return a number of bytes with a binary unit."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < KIB:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= KIB
    return f"{number:.1f} TiB"
