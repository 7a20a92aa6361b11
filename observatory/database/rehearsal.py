"""Runs pending migrations on a throwaway server that was migrated from zero, and watches what they lock and rewrite.

Looking into pg_locks after each statement is better than guessing. The tables there are empty: it tells which locks
are taken, not for how long.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import psycopg
from psycopg import errors as pg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from observatory.database.connection import connect, with_database
from observatory.database.deployment import SESSION, deploy, server_edition
from observatory.database.error_translation import translate_errors
from observatory.database.errors import DatabaseError
from observatory.database.migrations.files import Edition
from observatory.database.migrations.non_transactional import particulars
from observatory.database.migrations.statement_locks import MODES, Expected, Lock, expected
from observatory.database.migrations.statements import Script, Statement
from observatory.database.roles.bootstrap import ensure_database

OWNER = "migrator"

Throwaway = Callable[[Edition], AbstractContextManager[str]]
"""Makes a server for a moment and yields its superuser's connection string; see `throwaway_server`."""

Verdict = Literal["passed", "failed", "not rehearsed"]

# Of other relations than the system's own.
_LOCKS = """
    SELECT c.oid, c.oid::regclass::text, l.mode FROM pg_locks l JOIN pg_class c ON c.oid = l.relation
    WHERE l.pid = pg_backend_pid() AND l.granted AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
      AND relnamespace::regnamespace::text !~ '^(pg_|_timescaledb_|information_schema)'
"""
_STORED = """
    SELECT oid, oid::regclass::text, pg_relation_filenode(oid) FROM pg_class
    WHERE relkind IN ('r', 'p', 'v', 'm', 'f')
      AND relnamespace::regnamespace::text !~ '^(pg_|_timescaledb_|information_schema)'
"""
_MODE_NAMES = {mode.title().replace(" ", "") + "Lock": mode for mode in MODES}

Observations = Mapping[tuple[int, int], Expected]
"""What was seen of a statement, by the migration's version and the statement's index."""


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """What a rehearsal showed.

    Attributes:
        verdict: whether the files ran through.
        detail: why not, in one line.
        observed: of each statement that ran in a transaction.
    """

    verdict: Verdict
    detail: str
    observed: Observations = field(default_factory=dict)


def rehearse(
    throwaway: Throwaway,
    *,
    edition: Edition,
    roles: Sequence[str],
    migrations: Path,
    version: int,
    scripts: Sequence[Script],
) -> Rehearsal:
    """Migrate an empty database to `version`, then run the scripts and watch.

    Args:
        throwaway: makes the server.
        edition: of the database that the plan is for.
        roles: of that database's server, which migrations may name.
        migrations: directory of the files.
        version: of the database that the plan is for.
        scripts: what is pending there.
    """
    observed: dict[tuple[int, int], Expected] = {}
    try:
        with throwaway(edition) as admin:
            name = f"rehearsal_{secrets.token_hex(4)}"
            ensure_database(admin, name=name, owner=OWNER)
            _make_roles(admin, roles)
            inside = make_conninfo(with_database(admin, name), user=OWNER)
            with connect(inside, purpose="rehearsal", settings=SESSION) as connection:
                if server_edition(connection, inside) != edition:
                    return _not_rehearsed(f"the throwaway server has not the {edition} edition of TimescaleDB")
            try:
                return _run(inside, migrations, version, scripts, observed)
            finally:
                with connect(admin, purpose="rehearsal") as connection:
                    connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
    except DatabaseError as error:
        return _not_rehearsed(str(error))


def _run(
    conninfo: str, migrations: Path, version: int, scripts: Sequence[Script], observed: dict[tuple[int, int], Expected]
) -> Rehearsal:
    if version:
        deploy(conninfo, migrations=migrations, target=version, actor="rehearsal", deployment_id="rehearsal", retry=0)
    try:
        for script in scripts:
            with connect(conninfo, purpose="rehearsal", settings=SESSION) as connection:
                _Watched(connection, conninfo, script, observed).run()
    except DatabaseError as error:
        return Rehearsal(verdict="failed", detail=str(error), observed=observed)
    return Rehearsal(verdict="passed", detail="each statement ran on empty tables", observed=observed)


def _make_roles(admin: str, roles: Sequence[str]) -> None:
    with connect(admin, purpose="rehearsal") as connection:
        known = {name for (name,) in connection.execute("SELECT rolname FROM pg_roles")}
        for role in sorted(set(roles) - known):
            connection.execute(sql.SQL("CREATE ROLE {}").format(sql.Identifier(role)))


def _not_rehearsed(why: str) -> Rehearsal:
    return Rehearsal(verdict="not rehearsed", detail=why)


class _Watched:
    """One file as it runs: which relations stood before it, and which locks it holds so far."""

    def __init__(
        self,
        connection: psycopg.Connection,
        conninfo: str,
        script: Script,
        observed: dict[tuple[int, int], Expected],
    ) -> None:
        self._connection = connection
        self._conninfo = conninfo
        self._script = script
        self._observed = observed
        self._files = {oid: node for oid, _, node in connection.execute(_STORED.encode())}
        self._held: set[Lock] = set()

    def run(self) -> None:
        if self._script.transactional:
            with self._connection.transaction():
                for number in range(len(self._script.statements)):
                    self._statement(number)
            return
        for number in range(len(self._script.statements)):
            self._held = set()
            self._alone(number)

    def _alone(self, number: int) -> None:
        """Run a statement in a transaction of its own, to see its locks, or without where PostgreSQL refuses that."""
        statement = self._script.statements[number]
        if particulars(statement).fresh_session:
            with connect(self._conninfo, purpose="rehearsal", settings=SESSION) as fresh:
                self._execute(fresh, statement)
            return
        try:
            with self._connection.transaction():
                self._statement(number)
        except DatabaseError as error:
            if not isinstance(error.__cause__, (pg.ActiveSqlTransaction, pg.InvalidTransactionTermination)):
                raise
            self._execute(self._connection, statement)

    def _statement(self, number: int) -> None:
        statement = self._script.statements[number]
        self._execute(self._connection, statement)
        locks = {
            Lock(_MODE_NAMES[mode], name)
            for oid, name, mode in self._connection.execute(_LOCKS.encode())
            if oid in self._files
        }
        # What the statement asks for and the file holds already is not seen anew, yet is its lock too.
        again = [lock for lock in expected(statement).locks if lock in self._held]
        key = (self._script.migration.version, number)
        self._observed[key] = Expected(locks=(*sorted(locks - self._held), *again), rewrites=self._rewritten(statement))
        self._held = locks

    def _rewritten(self, statement: Statement) -> tuple[str, ...]:
        """Relations of before whose rows are in another file now; emptying a table is no rewriting."""
        found = self._connection.execute(_STORED.encode()).fetchall()
        changed = tuple(name for oid, name, node in found if self._files.get(oid, node) != node)
        self._files.update({oid: node for oid, _, node in found if oid in self._files})
        return () if statement.sql[:8].upper() == "TRUNCATE" else changed

    def _execute(self, connection: psycopg.Connection, statement: Statement) -> None:
        try:
            connection.execute(statement.sql.encode())
        except psycopg.Error as error:
            offset = statement.offset + int(error.diag.statement_position or 1) - 1
            with translate_errors(self._script.migration.place(offset)):
                raise
