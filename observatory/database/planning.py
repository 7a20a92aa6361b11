"""Plans a deployment: pending statements, their locks, lint findings, the backup, and how to return.

Reads in a READ ONLY transaction, takes no advisory lock and writes no row. A rehearsal runs on another server.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import psycopg

from observatory.database.errors import BackupFailedError, ContractRefusedError, DrillRequiredError, LintRefusedError
from observatory.database.excerpts import excerpt
from observatory.database.existing_objects import refuse_existing_objects
from observatory.database.expected_objects import uncatalogued
from observatory.database.lint import Finding
from observatory.database.lint.pending import refuse_errors
from observatory.database.migration_backup import Backup, PlannedBackup, has_data, plan_backup
from observatory.database.migration_session import session
from observatory.database.migrations.expand_contract import SchemaRequirement
from observatory.database.migrations.files import Edition
from observatory.database.migrations.history import History
from observatory.database.migrations.statement_locks import Lock, StatementEffects, expected_effects, strongest
from observatory.database.migrations.statements import Script
from observatory.database.pending_files import PendingFiles, read_pending
from observatory.database.rehearsal import Rehearsal, Verdict, rehearse
from observatory.database.rehearsal_origin import Origin, read_origin
from observatory.database.roles.extension_updates import ExtensionUpdate, pending_extension_updates
from observatory.database.throwaway_server import Throwaway

PAGE_BYTES = 8192
PLANNED_SQL_LENGTH = 2000

_READ_ONLY: Mapping[str, str] = {
    "default_transaction_read_only": "on",
    "default_transaction_isolation": "repeatable read",
}

# From the last ANALYZE; chunks and partitions count towards their table.
_SIZES = """
    SELECT parent::regclass::text, sum(greatest(reltuples, 0))::bigint, sum(relpages)::bigint
    FROM (SELECT coalesce(inhparent, oid) AS parent, reltuples, relpages
          FROM pg_class LEFT JOIN pg_inherits ON inhrelid = oid WHERE relkind IN ('r', 'm', 'p')) AS stored
    GROUP BY parent ORDER BY 1
"""

_BY_TRANSACTION = "a failed statement rolls back its file"
_BY_RESUMING = "a file without a transaction keeps its finished statements, and the next run resumes it"


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """The size of a table with its chunks, from its last ANALYZE."""

    rows: int
    bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedStatement:
    """A statement that would run.

    Attributes:
        place: `file:line:column`.
        sql: its text; of a long one only the start.
        lock: the strongest lock on a relation that exists before its file; None: no lock is known.
        locks: all such locks.
        rewrites: relations that it rewrites.
        observed: True: observed in a rehearsal; False: derived from the text of the statement.
    """

    place: str
    sql: str
    lock: Lock | None
    locks: tuple[Lock, ...]
    rewrites: tuple[str, ...]
    observed: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedMigration:
    """A file that would be applied.

    Attributes:
        version: its number; 0 is a repeatable migration.
        name: `004_continuous_aggregates`.
        file: its name with edition and extension.
        transactional: the file and its ledger row are one transaction.
        statements_done: statements that an interrupted run finished; they do not run again.
        statements: those that would run.
        findings: of the linter.
    """

    version: int
    name: str
    file: str
    transactional: bool
    statements_done: int
    statements: tuple[PlannedStatement, ...]
    findings: tuple[Finding, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """The actions that `deploy` would take.

    Attributes:
        version: of the schema now.
        edition: of the server's TimescaleDB.
        pending: migrations that it would apply, in order.
        sizes: of the existing tables that are locked, by name.
        rehearsal: result of running the files on a throwaway server.
        rehearsal_detail: the reason in one line.
        backup: the backup that would be made first; None: no backup would be made.
        backup_detail: the reason.
        refusals: why the deployment would be refused before it changes anything; empty: it would start.
        backup_fails: a backup is needed and would fail, so the deployment would stop.
        way_back: how to return to the state before, in one line.
        extension_updates: of extensions to the versions of the server's files, which `up` makes and `deploy` does not.
        removed: repeatable migrations that were applied and are no longer in the directory; what they made stays.
    """

    version: int
    edition: Edition
    pending: tuple[PlannedMigration, ...]
    sizes: Mapping[str, Size]
    rehearsal: Verdict
    rehearsal_detail: str
    backup: PlannedBackup | None
    backup_detail: str
    backup_fails: bool
    refusals: tuple[str, ...]
    way_back: str
    extension_updates: tuple[ExtensionUpdate, ...] = ()
    removed: tuple[str, ...] = ()

    @property
    def would_succeed(self) -> bool:
        """Whether no known problem would stop the deployment."""
        return self.rehearsal != "failed" and not self.backup_fails and not self.refusals

    def as_json(self) -> dict[str, Any]:
        """Return the plan as a plain mapping."""
        document = {**asdict(self), "would_succeed": self.would_succeed}
        for migration in document["pending"]:
            for statement in migration["statements"]:
                statement["locks"] = [lock._asdict() for lock in statement["locks"]]
                statement["lock"] = statement["lock"] and statement["lock"]._asdict()
        return document


def plan(
    conninfo: str,
    *,
    migrations: Path,
    target: int | None = None,
    only: str | None = None,
    requirements: Sequence[SchemaRequirement] = (),
    backup: Backup | None = None,
    throwaway: Throwaway | None = None,
) -> Plan:
    """Plan what `deploy` would do with the same arguments. Reads only and takes no advisory lock.

    Args:
        conninfo: as the role that owns the schema.
        migrations: directory of the files.
        target: highest version to apply; None is all.
        only: name of the one file to apply; None is all.
        requirements: of the releases that the fleets run or keep for a rollback.
        backup: lists the existing backups; no backup is made.
        throwaway: starts a server for the rehearsal; None: the locks are derived from the text of the statements.

    Raises:
        MigrationFileError: an unusable file.
        MigrationHistoryError: files and ledger contradict each other.
        ObjectsInTheWayError: the database already has what a pending migration creates.
        UnreachableError: the connection failed or broke.
        UnsuitableServerError: a standby, or no TimescaleDB.
    """
    with session(conninfo, purpose="plan", settings=_READ_ONLY) as (connection, edition), connection.transaction():
        found = read_pending(
            connection, migrations=migrations, edition=edition, target=target, only=only, requirements=requirements
        )
        history, scripts = found.history, found.numbered
        sizes, needs_backup = _sizes(connection), has_data(connection)
        origin = read_origin(connection)
        refuse_existing_objects(connection, conninfo=conninfo, migrations=migrations, history=history, scripts=scripts)
    findings = found.findings()
    rehearsal = _rehearsal(throwaway, conninfo=conninfo, origin=origin, found=found)
    scripts = (*scripts, *found.changed)
    pending = tuple(_planned(script, history, rehearsal, findings) for script in scripts)
    locked = {lock.relation for each in pending for statement in each.statements for lock in statement.locks}
    needed = backup if needs_backup and scripts else None
    planned, why = _planned_backup(needed, empty=not needs_backup)
    return Plan(
        version=history.version,
        edition=edition,
        pending=pending,
        sizes={name: size for name, size in sizes.items() if name in locked},
        rehearsal=rehearsal.verdict,
        rehearsal_detail=rehearsal.detail,
        backup=planned,
        backup_detail=why,
        backup_fails=needed is not None and planned is None,
        refusals=tuple(_refusals(found, findings, needed)),
        removed=found.removed,
        way_back=_way_back(scripts, planned),
        extension_updates=pending_extension_updates(conninfo),
    )


def _sizes(connection: psycopg.Connection) -> dict[str, Size]:
    rows = connection.execute(_SIZES.encode()).fetchall()
    return {name: Size(rows=tuples, bytes=pages * PAGE_BYTES) for name, tuples, pages in rows}


def _rehearsal(throwaway: Throwaway | None, *, conninfo: str, origin: Origin, found: PendingFiles) -> Rehearsal:
    if not found.numbered and not found.changed:
        return Rehearsal(verdict="not rehearsed", detail="nothing is pending")
    scripts = (*found.numbered, *found.repeatable)  # all repeatable ones: a pending one may need another
    edition, files = found.edition, found.files
    if throwaway is None:
        why = "no PostgreSQL for a rehearsal is installed on this machine"
        rehearsal = Rehearsal(verdict="not rehearsed", detail=why)
    else:
        rehearsal = rehearse(throwaway, conninfo=conninfo, origin=origin, edition=edition, files=files, scripts=scripts)
    own = uncatalogued(edition, [script.migration for script in scripts if script.migration.version])
    if own and (rehearsal.copied or rehearsal.verdict == "not rehearsed"):
        return replace(
            rehearsal, detail=f"{rehearsal.detail}. A verification cannot check the objects of {', '.join(own)}"
        )
    return rehearsal


def _refusals(found: PendingFiles, findings: Sequence[Finding], backup: Backup | None) -> Iterator[str]:
    """Yield the messages with which `deploy` would refuse the files."""
    checks: list[Callable[[], None]] = [found.refuse_contracts, partial(refuse_errors, findings)]
    if backup:
        checks.append(backup.check_permitted)
    for check in checks:
        try:
            check()
        except (ContractRefusedError, DrillRequiredError, LintRefusedError) as error:
            yield str(error)


def _planned(script: Script, history: History, rehearsal: Rehearsal, findings: list[Finding]) -> PlannedMigration:
    migration = script.migration
    interrupted = {each.version: each.statements_done for each in history.interrupted}
    statements_done = interrupted.get(migration.version, 0)
    return PlannedMigration(
        version=migration.version,
        name=migration.name,
        file=migration.file,
        transactional=script.transactional,
        statements_done=statements_done,
        statements=tuple(
            _planned_statement(script, number, rehearsal.observed.get((migration.name, number)))
            for number in range(statements_done, len(script.statements))
        ),
        findings=tuple(finding for finding in findings if finding.file == migration.file),
    )


def _planned_statement(script: Script, number: int, observed: StatementEffects | None) -> PlannedStatement:
    statement = script.statements[number]
    effects = observed if observed is not None else expected_effects(statement)
    return PlannedStatement(
        place=script.migration.place(statement.offset),
        sql=excerpt(statement.sql, PLANNED_SQL_LENGTH) if len(statement.sql) > PLANNED_SQL_LENGTH else statement.sql,
        lock=strongest(effects.locks),
        locks=effects.locks,
        rewrites=effects.rewrites,
        observed=observed is not None,
    )


def _planned_backup(backup: Backup | None, *, empty: bool) -> tuple[PlannedBackup | None, str]:
    if backup is None:
        return (
            None,
            "the database is empty" if empty else "nothing is pending, or the platform has no backup of this database",
        )
    try:
        planned = plan_backup(backup)
    except BackupFailedError as error:
        return None, str(error)
    return planned, planned.why


def _way_back(scripts: tuple[Script, ...], backup: PlannedBackup | None) -> str:
    if not scripts:
        return "nothing would change"
    during = (
        _BY_TRANSACTION if all(script.transactional for script in scripts) else f"{_BY_TRANSACTION}; {_BY_RESUMING}"
    )
    if backup is None:
        return f"{during}; afterwards write a new migration, because no backup would be made"
    which = f"backup {backup.label}" if backup.label else f"{backup.kind} backup that is made first"
    return (
        f"{during}; afterwards only a restore undoes the migrations: `observatory rollback --method database "
        f"--to-time TIME`, from the {which}"
    )
