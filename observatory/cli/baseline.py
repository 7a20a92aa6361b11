"""Prints the comparison of a database that other tools made with a version of the schema, and records that version."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from observatory import operations
from observatory.cli.app import Output, print_json
from observatory.cli.terminal import ConsoleReporter, print_result
from observatory.errors import REFUSED
from observatory.workspace import Workspace

if TYPE_CHECKING:
    from observatory.database import Baseline


def show_baseline(where: Workspace | operations.UrlDatabase, version: int, output: Output, *, dry_run: bool) -> None:
    """Compare, record unless it is a dry run, and print the result; a dry run that would be refused ends with 3."""
    with ConsoleReporter() as report:
        compare = operations.plan_baseline if dry_run else operations.baseline_database
        found = compare(where, version, report=report)
    if output is Output.JSON:
        print_json({**asdict(found), "accepted": found.accepted, "recorded": not dry_run})
    else:
        print_result(_view(found, dry_run=dry_run))
    if not found.accepted:
        raise typer.Exit(REFUSED)


def _view(found: Baseline, *, dry_run: bool) -> RenderableType:
    parts: list[RenderableType] = [
        *_lines("Missing or different", found.differences, "red"),
        *_lines("Made only by later migrations, which would fail", found.later, "red"),
        *_lines("Beyond the migrations, left alone", found.extra, "yellow"),
    ]
    if not found.accepted:
        parts.append(f"The database is not at version {found.version}: --baseline {found.version} would be refused.")
    elif dry_run:
        parts.append(f"The database is at version {found.version}. Would record {', '.join(found.migrations)}.")
    else:
        parts.append(f"Recorded {', '.join(found.migrations)}. `observatory deploy database` applies what is pending.")
    return Group(*parts)


def _lines(title: str, lines: Sequence[str], style: str) -> list[RenderableType]:
    return [Text(f"{title}:"), *(Text(f"  {line}", style=style) for line in lines)] if lines else []
