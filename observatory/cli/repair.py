"""Prints what a repair of the ledger changes, prompts for confirmation, and repairs."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from typing import TYPE_CHECKING

import typer
from rich.text import Text

from observatory import operations
from observatory.cli.app import Output, confirm, print_json
from observatory.cli.terminal import ConsoleReporter, print_result
from observatory.workspace import Workspace

if TYPE_CHECKING:
    from observatory.database import Repair


class RepairChoice(StrEnum):
    """Repair of the ledger's row of a file."""

    FORGET = "forget"
    ACCEPT = "accept"
    APPLIED = "applied"
    RENUMBER = "renumber"


def show_repair(
    where: Workspace | operations.UrlDatabase,
    choice: RepairChoice,
    file: str | None,
    reason: str | None,
    output: Output,
    *,
    dry_run: bool,
    yes: bool,
) -> None:
    """Plan a repair and, unless it is a dry run, make it after a confirmation."""
    if not file:
        raise typer.BadParameter(f"--repair {choice} needs FILE, the name of a migration")
    if not dry_run and not (reason or "").strip():
        raise typer.BadParameter(f"--repair {choice} needs --reason TEXT, which the audit keeps")
    with ConsoleReporter() as report:
        repair = operations.plan_repair(where, choice.value, file, report=report)
    if not dry_run:
        if not yes:
            typer.echo(_text(repair, done=False), err=True)
            confirm("Change the ledger?")
        with ConsoleReporter() as report:
            repair = operations.repair_ledger(
                where, choice.value, file, reason=reason or "", planned=repair, report=report
            )
    if output is Output.JSON:
        print_json({**asdict(repair), "repaired": not dry_run})
    else:
        print_result(Text(_text(repair, done=not dry_run)))


def _text(repair: Repair, *, done: bool) -> str:
    lines = [
        f"{'Repaired' if done else 'Would repair'}: {repair.action} {repair.file}",
        f"Row before: {repair.before or 'none'}",
        f"Row after:  {repair.after or 'none'}",
        *(f"Consider:   {line}" for line in repair.consider),
    ]
    return "\n".join(lines)
