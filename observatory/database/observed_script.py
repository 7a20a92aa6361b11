"""Runs a migration on a throwaway server, and observes the locks and rewrites of its statements.

Reads pg_locks after each statement. The tables of the throwaway server are empty, so this shows which locks a statement
takes, not for how long.
"""

from __future__ import annotations

import psycopg
from psycopg import errors as pg

from observatory.database.connection import connect
from observatory.database.error_translation import translate_errors
from observatory.database.errors import DatabaseError
from observatory.database.migration_session import MIGRATION_SETTINGS
from observatory.database.migrations.non_transactional import traits_of
from observatory.database.migrations.statement_locks import MODES, Lock, StatementEffects, expected_effects
from observatory.database.migrations.statements import Script, Statement

# Without the relations of the system.
_LOCKS = """
    SELECT c.oid, c.oid::regclass::text, l.mode FROM pg_locks l JOIN pg_class c ON c.oid = l.relation
    WHERE l.pid = pg_backend_pid() AND l.granted AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
      AND relnamespace::regnamespace::text !~ '^(pg_|_timescaledb_|information_schema)'
"""
_STORED = """
    SELECT oid, oid::regclass::text, pg_relation_filenode(oid) FROM pg_class
    WHERE relkind IN ('r', 'p', 'v', 'm', 'f')
      AND relnamespace::regnamespace::text !~ '^(pg_|_timescaledb_|information_schema)'
    ORDER BY 2
"""
_MODE_NAMES = {mode.title().replace(" ", "") + "Lock": mode for mode in MODES}


class ObservedScript:
    """Runs one file; keeps the relations that existed before it and the locks that it holds."""

    def __init__(
        self,
        connection: psycopg.Connection,
        conninfo: str,
        script: Script,
        observed: dict[tuple[str, int], StatementEffects],
    ) -> None:
        self._connection = connection
        self._conninfo = conninfo
        self._script = script
        self._observed = observed
        self._files = {oid: node for oid, _, node in connection.execute(_STORED.encode())}
        self._held: set[Lock] = set()

    def run(self) -> None:
        """Run the statements as a deployment does.

        Raises:
            DatabaseError: a statement failed; the message starts with its place.
        """
        if self._script.transactional:
            with self._connection.transaction():
                for number in range(len(self._script.statements)):
                    self._run_statement(number)
            return
        for number in range(len(self._script.statements)):
            self._held = set()
            self._run_separately(number)

    def _run_separately(self, number: int) -> None:
        """Run a statement in its own transaction to observe its locks, or without one where PostgreSQL rejects that."""
        statement = self._script.statements[number]
        if traits_of(statement).fresh_session:
            with connect(self._conninfo, purpose="rehearsal", settings=MIGRATION_SETTINGS) as fresh:
                self._execute(fresh, statement)
            return
        try:
            with self._connection.transaction():
                self._run_statement(number)
        except DatabaseError as error:
            if not isinstance(error.__cause__, (pg.ActiveSqlTransaction, pg.InvalidTransactionTermination)):
                raise
            self._execute(self._connection, statement)

    def _run_statement(self, number: int) -> None:
        statement = self._script.statements[number]
        self._execute(self._connection, statement)
        locks = {
            Lock(_MODE_NAMES[mode], name)
            for oid, name, mode in self._connection.execute(_LOCKS.encode())
            if oid in self._files
        }
        # A lock that the file already holds does not appear again, but the statement takes it too.
        held_before = [lock for lock in expected_effects(statement).locks if lock in self._held]
        key = (self._script.migration.name, number)
        self._observed[key] = StatementEffects(
            locks=(*sorted(locks - self._held), *held_before), rewrites=self._rewritten(statement)
        )
        self._held = locks

    def _rewritten(self, statement: Statement) -> tuple[str, ...]:
        """Return earlier relations whose rows are now in another file; TRUNCATE is not a rewrite."""
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
