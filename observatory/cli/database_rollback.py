"""`observatory rollback --method database` and `observatory backup discard`: their options, output and confirmation."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from observatory import operations
from observatory.backups.target import LABEL, RecoveryTarget, parse_time
from observatory.cli.app import (
    Engine,
    EnvironmentOption,
    NotConfirmedError,
    Output,
    OutputOption,
    confirm,
    print_json,
)
from observatory.cli.backup import group, size
from observatory.cli.terminal import ConsoleReporter, print_result, table

if TYPE_CHECKING:
    from observatory.backups.rollback.loss import Loss
    from observatory.operations import DatabaseRollback, DatabaseRollbackPlan, DatabaseUndoPlan, SchemaChange, SetAside
    from observatory.workspace import Workspace

WHOLE = "whole"  # a live database that was not dropped or emptied: `observatory.database.presence`, which loads psycopg
UNFIT = "its version does not fit that schema"
COLUMNS = ("table", "rows now", "rows then", "lost", "return")


@dataclass(frozen=True, kw_only=True)
class DatabaseOptions:
    """The options of `rollback` that only `--method database` has."""

    to_time: str | None
    backup_file: str | None
    undo: bool
    repository: int | None = None

    def check(self, *, needed: bool, others: bool) -> None:
        """Check that exactly one of them is given where they are `needed`, and none otherwise.

        Raises:
            typer.BadParameter: the combination makes no sense; `others` are options that the method does not take.
        """
        given = sum((self.to_time is not None, self.backup_file is not None, self.undo))
        if not needed and (given or self.repository is not None):
            raise typer.BadParameter("--to-time, --backup-file, --undo and --repository need --method database")
        if needed and given != 1:
            raise typer.BadParameter("--method database needs one of --to-time, --backup-file and --undo")
        if self.undo and self.repository is not None:
            raise typer.BadParameter("--undo restores from no repository: it does not take --repository")
        if needed and others:
            raise typer.BadParameter("--method database does not take --version, --emergency and --force")

    @property
    def target(self) -> RecoveryTarget | Path:
        """What the database is restored to: a time, the end of a backup, or a dump.

        Raises:
            InvalidTargetError: the text is no time with a time zone.
            typer.BadParameter: there is no such file.
        """
        if self.to_time is not None:
            return RecoveryTarget.at_time(parse_time(self.to_time))
        given = self.backup_file or ""
        if LABEL.fullmatch(given):
            return RecoveryTarget.of_backup(given)
        if not Path(given).is_file():
            raise typer.BadParameter(f"--backup-file {given!r} is neither the label of a backup nor a dump's file")
        return Path(given)


def roll_back_database(
    workspace: Workspace,
    options: DatabaseOptions,
    *,
    reason: str,
    yes: bool,
    dry_run: bool,
    engine: Engine,
    output: Output,
) -> None:
    """Roll the database back, or back again, as the options say, and print the result."""
    if options.undo:
        _undo(workspace, reason=reason, yes=yes, dry_run=dry_run, engine=engine, output=output)
        return
    target = options.target
    if dry_run:
        with ConsoleReporter() as report:
            plan = operations.plan_database_rollback(workspace, target, repository=options.repository, report=report)
        if output is Output.JSON:
            print_json(asdict(plan))
            return
        print_result(_plan_view(plan))
        print_result("Nothing was changed.")
        return

    def approve(plan: DatabaseRollbackPlan) -> None:
        if output is not Output.JSON:
            print_result(_plan_view(plan))
        if not yes:
            _confirm_name(plan.database)

    with ConsoleReporter() as report:
        done = operations.roll_back_database(
            workspace,
            target,
            reason=reason,
            repository=options.repository,
            confirm=approve,
            choice=engine.value,
            report=report,
        )
    _show(done, output)


def _undo(workspace: Workspace, *, reason: str, yes: bool, dry_run: bool, engine: Engine, output: Output) -> None:
    if dry_run:
        _show_undo(operations.plan_database_undo(workspace), output)
        return

    def approve(plan: DatabaseUndoPlan) -> None:
        if output is not Output.JSON:
            print_result(_undo_text(plan))
        if not yes:
            confirm("Bring the earlier data back?")

    with ConsoleReporter() as report:
        done = operations.undo_database_rollback(
            workspace, reason=reason, confirm=approve, choice=engine.value, report=report
        )
    _show(done, output)


def _confirm_name(database: str) -> None:
    """Prompt for the database's name on stderr.

    Raises:
        NotConfirmedError: another text was given, or stdin is not a terminal.
    """
    if not sys.stdin.isatty():
        raise NotConfirmedError(
            "The rollback of a database needs its name on a terminal; nothing was changed.",
            remedy="Add --yes to run without one.",
        )
    if typer.prompt(f"Type the name of the database ({database}) to roll it back", err=True) != database:
        raise NotConfirmedError("that is not the name of the database; nothing was changed")


def _plan_view(plan: DatabaseRollbackPlan) -> Any:
    reached = f"{plan.reached:%Y-%m-%d %H:%M:%S.%f} UTC" if plan.reached else "unknown"
    rows = [
        ("target", plan.target),
        ("from", f"{plan.source}, with {plan.segments} WAL segments" if plan.lsn else plan.source),
        *([("restored to", f"{plan.lsn}, last transaction {reached}")] if plan.lsn else []),
        ("schema", _schema_text(plan.schema)),
        ("would be lost", _loss_text(plan)),
        *_other_losses(plan.loss),
        ("estimated", f"{plan.estimated_s:.0f} s"),
    ]
    if plan.schema.stopped:
        rows.append(("stopped", f"{', '.join(plan.schema.stopped)}: {UNFIT}"))
    whole = str(plan.live) == WHOLE
    losses = [
        (each.table, str(each.now), str(each.then), str(each.lost) if whole else "not known", str(each.returned))
        for each in plan.loss.tables
    ]
    from rich.console import Group  # noqa: PLC0415 - only for this view

    summary = table(f"Rollback of the database {plan.database}", ("", ""), rows)
    return Group(summary, table("Rows", COLUMNS, losses)) if losses else summary


def _loss_text(plan: DatabaseRollbackPlan) -> str:
    loss, live = plan.loss, str(plan.live)
    transactions = "" if loss.transactions is None else f"{loss.transactions} transactions, "
    if live == WHOLE:
        return f"{transactions}{'at least ' if loss.unreadable else ''}{loss.rows} rows"
    now = f"{loss.rows} rows of now; " if loss.rows else ""
    return f"{transactions}{now}rows of before: not known, the database was {live}"


def _other_losses(loss: Loss) -> list[tuple[str, str]]:
    """Return the lines about what no row shows."""
    found = (
        ("tables made since", loss.made_since, "would be gone"),
        ("unlogged tables", loss.emptied, "would be empty"),
        ("other databases", loss.databases, "would be as they were, too; their rows were not compared"),
        ("damaged tables", loss.unreadable, "cannot be read, not compared"),
    )
    return [(what, f"{', '.join(names)}: {then}") for what, names, then in found if names]


def _schema_text(schema: SchemaChange) -> str:
    versions = (
        f"{schema.after}, as now" if schema.after == schema.before else f"{schema.after} instead of {schema.before}"
    )
    return f"{versions}; undone: {', '.join(schema.undone)}" if schema.undone else versions


def _undo_text(plan: DatabaseUndoPlan) -> str:
    last, stopped = plan.rollback, ", ".join(plan.schema.stopped)
    return (
        f"Brings the data back that the rollback to {last.target} has set aside on {last.at:%Y-%m-%d %H:%M:%S} UTC. "
        "What was written since stays beside it until `observatory backup discard`. "
        f"Schema: {_schema_text(plan.schema)}.{f' Stopped: {stopped}, {UNFIT}.' if stopped else ''}"
    )


def _show_undo(plan: DatabaseUndoPlan, output: Output) -> None:
    if output is Output.JSON:
        print_json({"rollback": plan.rollback.model_dump(mode="json"), "schema": asdict(plan.schema)})
        return
    print_result(f"{_undo_text(plan)} Nothing was changed.")


def _show(done: DatabaseRollback, output: Output) -> None:
    record = done.record
    if output is Output.JSON:
        plan = asdict(done.plan) if done.plan else None
        print_json({"record": record.model_dump(mode="json"), "plan": plan, "rollout": done.rollout.model_dump()})
        return
    what = "The rollback was undone" if record.kind == "undo" else f"The database is as it was at {record.target}"
    print_result(
        f"{what}. Schema: {record.schema_after}. The data of before is beside it until `observatory backup discard`."
    )
    if record.kind == "rollback" and not record.was_dropped:
        print_result("`observatory rollback --method database --undo` brings it back.")


@group.command()
def discard(
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Skip the confirmation.")] = False,
    environment: EnvironmentOption = "local",
    output: OutputOption = Output.TABLE,
) -> None:
    """Remove the data that rollbacks of the database have set aside."""
    workspace = operations.open_workspace(environment)
    found = operations.list_set_aside(workspace)
    if found and not yes:
        if output is not Output.JSON:
            print_result(_set_aside_table(found))
        confirm("Remove this data? The last rollback of the database cannot be undone then.")
    with ConsoleReporter() as report:
        removed = operations.discard_set_aside(workspace, report=report)
    if output is Output.JSON:
        print_json([asdict(each) for each in removed])
    elif removed:
        print_result(_set_aside_table(removed))
    else:
        print_result("No rollback of the database has set data aside.")


def _set_aside_table(found: list[SetAside]) -> Any:
    rows = [
        (each.id, each.kind, f"{each.at:%Y-%m-%d %H:%M:%S}", size(each.database_bytes), str(each.directory))
        for each in found
    ]
    return table("Set aside", ("id", "by", "at (UTC)", "size", "directory"), rows)
