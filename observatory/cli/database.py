"""`observatory deploy database`: applies migrations, shows their plan, makes the backup before them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from observatory import operations
from observatory.cli.app import EnvironmentOption, Output, OutputOption, WaitOption, confirm, deploy_group, print_json
from observatory.cli.backup import size
from observatory.cli.baseline import show_baseline
from observatory.cli.migration_list import print_script, show_migrations
from observatory.cli.repair import RepairChoice, show_repair
from observatory.cli.terminal import ConsoleReporter, print_result, table
from observatory.errors import DONE, FAILED, REFUSED
from observatory.workspace import Workspace

if TYPE_CHECKING:
    from observatory.database import Deployment, EditionPlan, Plan, Verification
    from observatory.database.planning import PlannedMigration, PlannedStatement

SHOWN_CHARACTERS = 72
STRONG = {"ACCESS EXCLUSIVE", "EXCLUSIVE", "SHARE ROW EXCLUSIVE", "SHARE"}  # block writers

DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Print the plan. Changes nothing.")]
BackupOnlyOption = Annotated[bool, typer.Option("--backup-only", help="Make and verify the backup only.")]
VerifyOnlyOption = Annotated[
    bool, typer.Option("--verify-only", help="Compare the database with its migrations and test reads and writes.")
]
MigrationOption = Annotated[
    str | None, typer.Option("--migration", metavar="FILE", help="Apply only this file; earlier files must be applied.")
]
RetryOption = Annotated[
    int, typer.Option("--retry", min=0, help="Retries of a file while other sessions hold its locks.")
]
InfoOption = Annotated[bool, typer.Option("--info", help="List applied and pending migrations. Changes nothing.")]
SqlOption = Annotated[bool, typer.Option("--sql", help="Print the script that applies them by psql. Changes nothing.")]
BaselineOption = Annotated[
    int | None,
    typer.Option("--baseline", min=1, metavar="N", help="Record that other tools made it up to this migration."),
]
DatabaseUrlOption = Annotated[
    str | None,
    typer.Option("--database-url", metavar="URL", help="A database without a stack. No password: use ~/.pgpass."),
]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Skip the confirmation of --edition and --repair.")]
RepairOption = Annotated[
    RepairChoice | None, typer.Option("--repair", help="Repair the ledger's row of FILE. Needs --reason.")
]
ReasonOption = Annotated[
    str | None, typer.Option("--reason", metavar="TEXT", help="Why the repair is made; goes to the audit.")
]
FileArgument = Annotated[str | None, typer.Argument(metavar="[FILE]", help="The migration that --repair is about.")]


class NewEdition(StrEnum):
    """TimescaleDB edition to move a database to."""

    COMMUNITY = "community"


EditionOption = Annotated[
    NewEdition | None,
    typer.Option("--edition", help="Move the schema to this TimescaleDB edition, after a backup."),
]


@deploy_group.command()
def database(  # noqa: PLR0917 - typer calls it by name
    context: typer.Context,
    environment: EnvironmentOption = "local",
    output: OutputOption = Output.TABLE,
    dry_run: DryRunOption = False,
    backup_only: BackupOnlyOption = False,
    verify_only: VerifyOnlyOption = False,
    info: InfoOption = False,
    sql: SqlOption = False,
    baseline: BaselineOption = None,
    repair: RepairOption = None,
    file: FileArgument = None,
    reason: ReasonOption = None,
    migration: MigrationOption = None,
    retry: RetryOption = operations.DEFAULT_RETRY,
    edition: EditionOption = None,
    database_url: DatabaseUrlOption = None,
    yes: YesOption = False,
    wait: WaitOption = 0,
) -> None:
    """Back up the database, apply pending migrations and verify the schema.

    Exit code 3 (nothing changed): a file contradicts an applied migration, or another deployment is running.
    Exit code 1: a check failed or is unknown. With --edition, no pending migration is applied.
    With --database-url there is no stack: no backup is made, and no role gets privileges.
    """
    _refuse_combinations(context)
    where = _where(environment, database_url)
    if edition:
        with operations.waiting_for_lock(wait):
            _change_edition(operations.open_workspace(environment), retry, output, dry_run=dry_run, yes=yes)
    elif baseline:
        with operations.waiting_for_lock(wait):
            show_baseline(where, baseline, output, dry_run=dry_run)
    elif repair:
        with operations.waiting_for_lock(wait):
            show_repair(where, repair, file, reason, output, dry_run=dry_run, yes=yes)
    elif dry_run:
        _dry_run(where, migration, output)
    elif backup_only:
        _backup_only(operations.open_workspace(environment), output)
    elif verify_only:
        _verify_only(where, output)
    elif info:
        show_migrations(where, output)
    elif sql:
        print_script(where, migration, output)
    else:
        with operations.waiting_for_lock(wait):
            _deploy(where, migration, retry, output)


# What the command does instead of a deployment, each with the options that may accompany it.
_ACTIONS: Mapping[str, frozenset[str]] = {
    "edition": frozenset({"dry_run", "retry", "yes", "wait"}),
    "baseline": frozenset({"dry_run", "database_url", "wait"}),
    "repair": frozenset({"file", "reason", "dry_run", "yes", "database_url", "wait"}),
    "backup_only": frozenset(),
    "verify_only": frozenset({"database_url"}),
    "info": frozenset({"database_url"}),
    "sql": frozenset({"migration", "database_url"}),
    "dry_run": frozenset({"migration", "database_url", "retry", "wait"}),
}
_EVERYWHERE = frozenset({"environment", "output"})


def _refuse_combinations(context: typer.Context) -> None:
    """Refuse options that would have no effect, by name."""
    given = {
        parameter.name: parameter.opts[0]
        for parameter in context.command.params
        if parameter.name and getattr(context.get_parameter_source(parameter.name), "name", "") == "COMMANDLINE"
    }
    if {"database_url", "environment"} <= given.keys():
        raise typer.BadParameter("--database-url has no stack; remove --environment")
    action = next((name for name in _ACTIONS if name in given), None)
    if action != "repair" and ("file" in given or "reason" in given):
        raise typer.BadParameter("FILE and --reason go with --repair; --migration FILE applies one file")
    if action is None:
        return
    others = given.keys() - {action} - _ACTIONS[action] - _EVERYWHERE
    if others:
        raise typer.BadParameter(
            f"{given[action]} does not go with {', '.join(sorted(given[each] for each in others))}"
        )


def _where(environment: str, database_url: str | None) -> Workspace | operations.UrlDatabase:
    return operations.url_database(database_url) if database_url is not None else operations.open_workspace(environment)


def _dry_run(where: Workspace | operations.UrlDatabase, migration: str | None, output: Output) -> None:
    with ConsoleReporter() as report:
        plan = operations.plan_database(where, migration=migration, report=report)
    _show(plan_view(plan), plan.as_json(), output)
    if not plan.would_succeed:
        raise typer.Exit(REFUSED if plan.refusals else FAILED)


def _change_edition(workspace: Workspace, retry: int, output: Output, *, dry_run: bool, yes: bool) -> None:
    with ConsoleReporter() as report:
        plan = operations.plan_edition(workspace, report=report)
    if dry_run:
        _show(_edition_view(plan), asdict(plan), output)
        raise typer.Exit(FAILED if plan.obstacles else DONE)
    if plan.migrations and not plan.obstacles and not yes:
        confirm(
            f"Move the database of {workspace.stack!r} to the community edition? Writers wait while aggregates of "
            f"{size(sum(plan.aggregates.values()))} are copied. Only the backup can undo it."
        )
    with ConsoleReporter() as report:
        done = operations.upgrade_edition(workspace, retry=retry, report=report)
    _show_deployment(done, _edition_summary(done.deployment), output)


def _edition_summary(done: Deployment) -> str:
    if not done.applied:
        return "Nothing to move: the schema already is the community edition's."
    return f"Moved to the community edition: {', '.join(done.applied)}. Backup before: {done.backup_label}."


def _edition_view(plan: EditionPlan) -> str:
    if not plan.migrations:
        return "Nothing to move: the schema already is the community edition's."
    copied = ", ".join(f"{name} ({size(stored)})" for name, stored in plan.aggregates.items())
    backup = f"{plan.backup.kind}: {plan.backup.why}" if plan.backup else "none"
    return (
        f"Files:     {', '.join(plan.migrations)}\nCopied:    {copied}\n"
        "Locks:     writers wait while it runs, in one transaction\n"
        f"Backup:    {backup}\nUndo:      that backup only"
        + "".join(f"\nStopped by: {each}" for each in plan.obstacles)
    )


def _show(text: RenderableType, document: Any, output: Output) -> None:
    if output is Output.JSON:
        print_json(document)
    else:
        print_result(text)


def _backup_only(workspace: Workspace, output: Output) -> None:
    with ConsoleReporter() as report:
        labels = operations.back_up_repositories(workspace, report=report)
    named = ", ".join(f"{label} in repository {number}" for number, label in labels.items())
    document = {"backup_label": next(iter(labels.values())), "backup_labels": labels}
    _show(f"Backups made and verified: {named}", document, output)


def _verify_only(where: Workspace | operations.UrlDatabase, output: Output) -> None:
    with ConsoleReporter() as report:
        found = operations.verify_database(where, report=report)
    _show(_verification_view(found), _verification_json(found), output)
    raise typer.Exit(DONE if found.passed else FAILED)


def _deploy(where: Workspace | operations.UrlDatabase, migration: str | None, retry: int, output: Output) -> None:
    with ConsoleReporter() as report:
        done = operations.deploy_database(where, migration=migration, retry=retry, report=report)
    no_backup = "the database was empty" if isinstance(where, Workspace) else "the database has no stack"
    _show_deployment(done, _summary(done.deployment, no_backup), output)


def _show_deployment(done: operations.DatabaseDeployment, summary: str, output: Output) -> None:
    document = {
        **asdict(done.deployment),
        "notices": done.notices,
        "verification": _verification_json(done.verification),
    }
    _show(Group(summary, _verification_view(done.verification)), document, output)
    raise typer.Exit(DONE if done.verification.passed else FAILED)


def _verification_json(found: Verification) -> dict[str, Any]:
    return {**asdict(found), "passed": found.passed}


def _verification_view(found: Verification) -> RenderableType:
    parts: list[RenderableType] = [f"Verified: {', '.join(check.name for check in found.checks)}."]
    if not found.passed:
        problems = [(check.name, check.verdict, check.detail) for check in found.problems]
        parts = [table("Failed checks", ("check", "verdict", "detail"), problems)]
    if found.drift:
        drift = [(each.difference, each.kind, each.name, each.detail, each.remedy) for each in found.drift]
        parts.append(table("Drift", ("difference", "kind", "object", "detail", "remedy"), drift))
    return Group(*parts)


def _summary(done: Deployment, no_backup: str) -> str:
    if not done.applied:
        return f"No pending migrations. The schema is at version {done.version}."
    backup = f"; backup before: {done.backup_label}" if done.backup_label else f"; no backup: {no_backup}"
    return f"Applied {', '.join(done.applied)}. The schema is at version {done.version}{backup}."


def plan_view(plan: Plan) -> RenderableType:
    """Return the plan as tables."""
    updates = [f"{update}, by `observatory up`, after a backup" for update in plan.extension_updates]
    removed = [f"Removed:    {file}: no longer in the directory, and what it made stays" for file in plan.removed]
    if not plan.pending:
        lines = [f"No pending migrations. The schema is at version {plan.version}."]
        return "\n".join([*lines, *(f"Extension:  {update}" for update in updates), *removed])
    backup = f"{plan.backup.kind}: {plan.backup.why}" if plan.backup else f"none: {plan.backup_detail}"
    after = max(plan.version, *(each.version for each in plan.pending))
    return Group(
        *(_migration_view(migration, plan) for migration in plan.pending),
        Text(f"\nSchema:     version {plan.version} to {after}, {plan.edition} edition"),
        Text(f"Rehearsal:  {plan.rehearsal}: {plan.rehearsal_detail}"),
        Text(f"Backup:     {backup}"),
        Text(f"Undo:       {plan.way_back}"),
        *map(Text, removed),
        *(Text(f"Refused:    {refusal}", style="red") for refusal in plan.refusals),
        *(Text(f"Extension:  {update}") for update in updates),
    )


def _migration_view(migration: PlannedMigration, plan: Plan) -> RenderableType:
    how = "one transaction" if migration.transactional else "statement by statement"
    done = f", {migration.statements_done} already applied" if migration.statements_done else ""
    rows = [
        (statement.place.split(":", 1)[1], _shortened(statement.sql), _lock(statement, plan), _rewritten(statement))
        for statement in migration.statements
    ]
    title = f"\n{migration.file} ({how}{done})"
    findings = [Text(str(finding), style="yellow") for finding in migration.findings]
    return Group(table(title, ("line", "statement", "strongest lock", "rewrites"), rows), *findings)


def _shortened(sql: str) -> str:
    line = " ".join(sql.split())
    return line if len(line) <= SHOWN_CHARACTERS else f"{line[: SHOWN_CHARACTERS - 1]}…"


def _lock(statement: PlannedStatement, plan: Plan) -> Text:
    if statement.lock is None:
        return Text("none" if statement.observed else "unknown")
    mode, relation = statement.lock
    relation_size = plan.sizes.get(relation)
    extent = f" ({relation_size.rows:,} rows, {size(relation_size.bytes)})" if relation_size else ""
    return Text(f"{mode} on {relation}{extent}", style="yellow" if mode in STRONG else "")


def _rewritten(statement: PlannedStatement) -> Text:
    return Text(", ".join(statement.rewrites) or "-", style="red" if statement.rewrites else "")
