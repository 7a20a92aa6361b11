"""Prints the applied and pending migrations of a database, and the script that applies them."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from observatory import operations
from observatory.cli.app import Output, print_json
from observatory.cli.terminal import print_result, table
from observatory.workspace import Workspace

if TYPE_CHECKING:
    from observatory.database import ListedMigration, MigrationList

_COLUMNS = ("version", "file", "state", "applied at (UTC)", "by", "took", "backup before")


def show_migrations(where: Workspace | operations.UrlDatabase, output: Output) -> None:
    """Print the list of a database's migrations."""
    found = operations.list_migrations(where)
    if output is Output.JSON:
        print_json(asdict(found))
    else:
        print_result(_view(found))


def print_script(where: Workspace | operations.UrlDatabase, migration: str | None, output: Output) -> None:
    """Print the script that applies the pending migrations by psql, as it is."""
    script = operations.script_database(where, migration=migration)
    if output is Output.JSON:
        print_json(script._asdict())
    else:
        print(script.sql, end="")  # noqa: T201 - the result, which no width may fold


def _view(found: MigrationList) -> RenderableType:
    pending = sum(each.state in {"pending", "changed"} for each in found.migrations)
    parts: list[RenderableType] = [
        table("Migrations", _COLUMNS, [_row(each) for each in found.migrations]),
        f"The schema is at version {found.version}, {found.edition} edition; {pending} pending.",
    ]
    if found.problem:
        parts.append(Text(f"A deployment would be refused: {found.problem}", style="yellow"))
    return Group(*parts)


def _row(each: ListedMigration) -> tuple[str, ...]:
    if each.applied_at is None or each.duration_ms is None:
        return (str(each.version or "-"), each.file, each.state, "-", "-", "-", "-")
    at = f"{each.applied_at:%Y-%m-%d %H:%M:%S}"
    took = f"{each.duration_ms / 1000:.3f} s"
    return (
        str(each.version or "-"),
        each.file,
        each.state,
        at,
        each.applied_by or "",
        took,
        each.backup_label or "none",
    )
