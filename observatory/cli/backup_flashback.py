"""`observatory backup flashback`: earlier states beside the live database, and missing rows of it."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from observatory import operations
from observatory.cli.app import EnvironmentOption, Output, OutputOption, print_json
from observatory.cli.backup import SourceOption, size
from observatory.cli.backup import group as backup_group
from observatory.cli.terminal import ConsoleReporter, print_result, table
from observatory.errors import FAILED

if TYPE_CHECKING:
    from observatory.backups.flashback.clones import Clone
    from observatory.backups.flashback.difference import Difference

COLUMNS = ("clone", "shows", "open since (UTC)", "closes (UTC)", "size", "connection string")
KINDS = ("missing", "changed", "added")
LONGEST = 60  # characters of a value that an example shows

group = typer.Typer(invoke_without_command=True)
backup_group.add_typer(group, name="flashback")


@group.callback()
def flashback(
    *,
    context: typer.Context,
    to_time: Annotated[
        str | None, typer.Option(metavar="TIME", help="With a time zone, such as 2026-11-29T13:30:00Z.")
    ] = None,
    compared: Annotated[
        str | None, typer.Option("--table", metavar="TABLE", help="Compare this table with the live one.")
    ] = None,
    where: Annotated[
        str | None, typer.Option(metavar="SQL", help="Only rows for which this expression is true.")
    ] = None,
    restore_missing: Annotated[
        bool, typer.Option("--restore-missing", help="Insert the rows that the live table lacks.")
    ] = False,
    repository: SourceOption = None,
    environment: EnvironmentOption = "local",
    output: OutputOption = Output.TABLE,
) -> None:
    """Open a read-only clone of an earlier time; compare a table with it and restore missing rows.

    The clone lies beside the live database, which stays up. It stays open for 24 hours at most, and the same --to-time
    uses it again. Only rows that are missing are inserted, in one transaction: every later write is kept. Exit code 1:
    a missing row was not inserted, because a later row has its place. Exit code 3: no backup covers the time, or the
    table cannot be compared or restored; nothing was changed.
    """
    if context.invoked_subcommand:
        return
    if to_time is None:
        raise typer.BadParameter("is missing", param_hint="--to-time")
    with ConsoleReporter() as report:
        found = operations.flash_back(
            operations.open_workspace(environment),
            to_time=to_time,
            table=compared,
            where=where,
            restore_missing=restore_missing,
            repository=repository,
            report=report,
        )
    if output is Output.JSON:
        difference = asdict(found.difference) if found.difference else None
        print_json({"clone": _as_json(found.clone), "difference": difference})
    else:
        if found.difference:
            _print_difference(found.difference)
        print_result(_description(found.clone))
    if found.difference and found.difference.restored and found.difference.restored.kept:
        raise typer.Exit(FAILED)


@group.command(name="list")
def list_all(environment: EnvironmentOption = "local", output: OutputOption = Output.TABLE) -> None:
    """List the open clones, the oldest first."""
    found = operations.list_clones(operations.open_workspace(environment))
    if output is Output.JSON:
        print_json([{**_as_json(clone), "bytes": taken} for clone, taken in found])
        return
    rows = [
        (each.name, each.target, _moment(each.opened), _moment(each.closes), size(taken), each.conninfo)
        for each, taken in found
    ]
    print_result(table("Clones", COLUMNS, rows) if rows else "No clone is open.")


@group.command()
def close(
    names: Annotated[list[str] | None, typer.Argument(metavar="NAMES", help="Clones, as `list` shows them.")] = None,
    *,
    every: Annotated[bool, typer.Option("--all", help="Close all clones, also those of other people.")] = False,
    expired: Annotated[
        bool, typer.Option("--expired", help="Close clones older than 24 hours, and what killed commands left.")
    ] = False,
    environment: EnvironmentOption = "local",
    output: OutputOption = Output.TABLE,
) -> None:
    """Close clones and remove their files."""
    workspace = operations.open_workspace(environment)
    closed = operations.close_clones(workspace, names or (), every=every, expired=expired)
    if output is Output.JSON:
        print_json({"closed": closed})
        return
    print_result(f"Closed: {', '.join(closed)}." if closed else "Nothing was to be closed.")


def _as_json(clone: Clone) -> dict[str, Any]:
    times = {name: value.isoformat() for name, value in asdict(clone).items() if isinstance(value, datetime)}
    return {**asdict(clone), **times, "conninfo": clone.conninfo}


def _moment(time: datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M:%S}"


def _description(clone: Clone) -> str:
    last = f"; its last transaction ended at {_moment(clone.last_transaction)} UTC" if clone.last_transaction else ""
    return (
        f"Clone {clone.name} shows {clone.target}{last}.\n"
        f'It is read-only, and open until {_moment(clone.closes)} UTC: psql "{clone.conninfo}"'
    )


def _print_difference(found: Difference) -> None:
    by = f"by {', '.join(found.key)}" if found.key else "without a key: by time and content, as often as each occurs"
    print_result(f"{found.table}, {by}")
    notes = {
        "missing": "only the clone has them",
        "changed": "the live table has them with other values",
        "added": "only the live table has them",
    }
    counts = [(kind, str(getattr(found, kind)), notes[kind]) for kind in KINDS]
    if found.expired:
        counts.append(("expired", str(found.expired), "older than the table's rows are kept; not compared"))
    print_result(table("Difference", ("rows", "number", ""), counts))
    _print_examples(found)
    if found.restored:
        _print_restored(found)


def _print_examples(found: Difference) -> None:
    columns = found.key or (found.time or "", "SHA-256 of the row")
    rows = [
        (kind, *(each[:LONGEST] for each in key)) for kind in ("missing", "changed") for key in found.examples[kind]
    ]
    if rows:
        print_result(table("The first ones", ("rows", *columns), rows))


def _print_restored(found: Difference) -> None:
    restored = found.restored
    assert restored is not None  # noqa: S101 - of the caller
    lines = [f"{restored.inserted} rows were inserted."]
    if restored.kept:
        lines.append(
            f"{restored.kept} were not: a later row has the same value in a unique column, and is kept. "
            "Run again without --restore-missing to see which."
        )
    if restored.refreshed:
        lines.append(f"Refreshed: {', '.join(restored.refreshed)}.")
    print_result("\n".join(lines))
