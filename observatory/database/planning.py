"""The plan of a deployment, as data: what would run, what it locks, what the lint says, the backup, the way back.

Reads only: a READ ONLY transaction, no lock of ours, no row written. Rehearsing happens on another server.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psycopg

from observatory.database.deployment import session
from observatory.database.errors import BackupFailedError
from observatory.database.lint import Finding, LintError, lint_all
from observatory.database.migration_backup import Backup, PlannedBackup, has_data, plan_backup
from observatory.database.migrations import ledger
from observatory.database.migrations.files import Edition, Migration, read_migrations
from observatory.database.migrations.history import History, compare
from observatory.database.migrations.statement_locks import Expected, Lock, expected, strongest
from observatory.database.migrations.statements import Script, parse
from observatory.database.rehearsal import Rehearsal, Throwaway, Verdict, rehearse

PAGE_BYTES = 8192

_READ_ONLY: Mapping[str, str] = {
    "default_transaction_read_only": "on",
    "default_transaction_isolation": "repeatable read",
}

# Of the last ANALYZE, chunks and partitions counted to the table that they belong to.
_SIZES = """
    SELECT parent::regclass::text, sum(greatest(reltuples, 0))::bigint, sum(relpages)::bigint
    FROM (SELECT coalesce(inhparent, oid) AS parent, reltuples, relpages
          FROM pg_class LEFT JOIN pg_inherits ON inhrelid = oid WHERE relkind IN ('r', 'm', 'p')) AS stored
    GROUP BY parent
"""

_BY_TRANSACTION = "a statement that fails undoes its file"
_BY_RESUMING = "files without a transaction keep the statements that were done, and the next run resumes them"


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """How large a table is by its last ANALYZE, chunks counted with it."""

    rows: int
    bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedStatement:
    """A statement that would run.

    Attributes:
        place: `file:line:column`.
        sql: its text.
        lock: the strongest lock that it takes on a relation that exists before its file; None: none is known.
        locks: all of those.
        rewrites: relations whose rows it writes anew.
        observed: seen in a rehearsal; False: read from the statement.
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
        version: its number.
        name: `004_continuous_aggregates`.
        file: its name with edition and ending.
        transactional: it and its ledger row are one transaction.
        statements_done: statements that an interrupted run has done; they would not run again.
        statements: those that would run.
        findings: of the lint.
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
    """What `deploy` would do.

    Attributes:
        version: of the schema now.
        edition: of the server's TimescaleDB.
        pending: what it would apply, in order.
        sizes: of the tables that are locked, by name, as far as they exist.
        rehearsal: whether the files ran through on a throwaway server.
        rehearsal_detail: why not, in one line.
        backup: what would be made first; None: none would.
        backup_detail: why this one, or why none.
        backup_fails: one is needed and could not be made, so that the deployment would stop.
        way_back: how to return, for people.
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
    way_back: str

    @property
    def would_succeed(self) -> bool:
        """Nothing is known that would stop the deployment."""
        return self.rehearsal != "failed" and not self.backup_fails

    def as_json(self) -> dict[str, Any]:
        """The plan as a plain mapping."""
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
    backup: Backup | None = None,
    throwaway: Throwaway | None = None,
) -> Plan:
    """Say what `deploy` would do with the same arguments; read-only, without any lock of ours, writing nothing.

    Args:
        conninfo: as the role that owns the schema.
        migrations: directory of the files.
        target: highest version to apply; None is all.
        only: name of the one file to apply; None is all.
        backup: what would make the backup; it is asked, not used.
        throwaway: makes a server to rehearse on; None: the locks are read from the statements.

    Raises:
        MigrationFileError: an unusable file.
        MigrationHistoryError: files and ledger contradict each other.
        UnreachableError: no connection.
        UnsuitableServerError: a standby, or no TimescaleDB.
    """
    files = read_migrations(migrations)
    with session(conninfo, purpose="plan", settings=_READ_ONLY) as (connection, edition), connection.transaction():
        history = compare(connection, files, edition=edition, target=target, only=only)
        done = {each.version: each.statements_done for each in ledger.read(connection) if not each.complete}
        sizes, worth_a_backup = _sizes(connection), has_data(connection)
        roles = [name for (name,) in connection.execute("SELECT rolname FROM pg_roles WHERE rolname !~ '^pg_'")]
    scripts = tuple(parse(migration) for migration in history.pending)
    rehearsal = _rehearsal(
        throwaway, edition=edition, roles=roles, migrations=migrations, history=history, scripts=scripts
    )
    findings = _findings(files, scripts)
    pending = tuple(_planned(script, done, rehearsal, findings) for script in scripts)
    locked = {lock.relation for each in pending for statement in each.statements for lock in statement.locks}
    needed = backup if worth_a_backup and scripts else None
    planned, why = _planned_backup(needed, empty=not worth_a_backup)
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
        way_back=_way_back(scripts, planned),
    )


def _sizes(connection: psycopg.Connection) -> dict[str, Size]:
    rows = connection.execute(_SIZES.encode()).fetchall()
    return {name: Size(rows=tuples, bytes=pages * PAGE_BYTES) for name, tuples, pages in rows}


def _rehearsal(
    throwaway: Throwaway | None,
    *,
    edition: Edition,
    roles: Sequence[str],
    migrations: Path,
    history: History,
    scripts: tuple[Script, ...],
) -> Rehearsal:
    if not scripts:
        return Rehearsal(verdict="not rehearsed", detail="nothing is pending")
    if throwaway is None:
        return Rehearsal(verdict="not rehearsed", detail="no PostgreSQL to rehearse on is installed here")
    return rehearse(
        throwaway, edition=edition, roles=roles, migrations=migrations, version=history.version, scripts=scripts
    )


def _findings(files: Sequence[Migration], scripts: tuple[Script, ...]) -> list[Finding]:
    if not scripts:
        return []
    try:
        return lint_all(files, wanted=[script.migration for script in scripts])
    except LintError as error:
        first = scripts[0].migration.file
        return [Finding(file=first, line=1, column=1, rule="not-linted", message=str(error), severity="warning")]


def _planned(
    script: Script, done: Mapping[int, int], rehearsal: Rehearsal, findings: list[Finding]
) -> PlannedMigration:
    migration = script.migration
    statements_done = done.get(migration.version, 0)
    return PlannedMigration(
        version=migration.version,
        name=migration.name,
        file=migration.file,
        transactional=script.transactional,
        statements_done=statements_done,
        statements=tuple(
            _planned_statement(script, number, rehearsal.observed.get((migration.version, number)))
            for number in range(statements_done, len(script.statements))
        ),
        findings=tuple(finding for finding in findings if finding.file == migration.file),
    )


def _planned_statement(script: Script, number: int, observed: Expected | None) -> PlannedStatement:
    statement = script.statements[number]
    seen = observed if observed is not None else expected(statement)
    return PlannedStatement(
        place=script.migration.place(statement.offset),
        sql=statement.sql,
        lock=strongest(seen.locks),
        locks=seen.locks,
        rewrites=seen.rewrites,
        observed=observed is not None,
    )


def _planned_backup(backup: Backup | None, *, empty: bool) -> tuple[PlannedBackup | None, str]:
    if backup is None:
        return None, "the database is empty" if empty else "none is needed, or none can be made here"
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
        return f"{during}; afterwards a new migration: no backup would be made"
    return (
        f"{during}; afterwards `observatory rollback --method database --backup-file LABEL` with the label of the "
        f"backup ({backup.kind}) that is made first"
    )
