"""Writes the pending migrations as a script that an administrator runs with psql, ledger rows included.

The script has the settings, the guard and the ledger rows of a deployment: `observatory.database.migrations.ledger`
itself writes the rows, into the script instead of the database. It makes no backup and retries nothing.
"""

from __future__ import annotations

import contextlib
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import psycopg
from psycopg import sql
from psycopg.adapt import Dumper

from observatory.database.advisory_locks import DEPLOYMENT_LOCK, LOCK_CLASS, MIGRATION_LOCK
from observatory.database.connection import SESSION_SETTINGS, describe
from observatory.database.errors import MigrationHistoryError
from observatory.database.existing_objects import refuse_existing_objects
from observatory.database.lint import Finding
from observatory.database.migration_session import MIGRATION_SETTINGS, session
from observatory.database.migrations import ledger
from observatory.database.migrations.expand_contract import SchemaRequirement
from observatory.database.migrations.files import Edition
from observatory.database.migrations.history import History
from observatory.database.migrations.non_transactional import traits_of
from observatory.database.migrations.repeatable import create_table, record
from observatory.database.migrations.statements import Script, Statement
from observatory.database.pending_files import read_pending

_SETTINGS = {"client_encoding": "UTF8", **SESSION_SETTINGS, **MIGRATION_SETTINGS}
_READ_ONLY: Mapping[str, str] = {
    "default_transaction_read_only": "on",
    "default_transaction_isolation": "repeatable read",
    "search_path": "public",
}
# PostgreSQL runs these in a transaction, so their ledger row commits with them.
_MAY_HAVE_TRANSACTION = re.compile(
    r"(INSERT|UPDATE|DELETE|MERGE|COMMENT|GRANT|REVOKE|(CREATE|ALTER)\s+TABLE|"
    r"CREATE\s+(OR\s+REPLACE\s+)?(VIEW|FUNCTION|PROCEDURE|TRIGGER))\b(?!.*\bCONCURRENTLY\b)",
    re.IGNORECASE | re.DOTALL,
)

_FINGERPRINT = """
    SELECT coalesce(encode(sha256(convert_to(string_agg(concat_ws(' ', version, name, variant, sha256,
        statements_done), E'\\n' ORDER BY version), 'UTF8')), 'hex'), '') FROM observatory.schema_migrations
"""
_GUARD = """
DO $guard$
DECLARE
    found text := '';
BEGIN
    IF current_user <> {role} THEN
        RAISE EXCEPTION 'The script is for the role %, and this session is of %', {role}, current_user
            USING HINT = 'Log in as that role, or set PGOPTIONS to -c role= and its name';
    END IF;
    IF pg_is_in_recovery() THEN
        RAISE EXCEPTION 'This server is a read-only standby. Connect to the primary';
    END IF;
    IF {edition} <> (CASE current_setting('timescaledb.license', true) WHEN 'apache' THEN 'apache' ELSE 'community' END)
    THEN
        RAISE EXCEPTION 'The script is for the % edition of TimescaleDB, which this server does not run', {edition};
    END IF;
    IF NOT (pg_try_advisory_lock({lock_class}, {deployment}) AND pg_try_advisory_lock({lock_class}, {migration})) THEN
        RAISE EXCEPTION 'Another deployment is running. Wait until it ends, then run the script again';
    END IF;
    IF to_regclass('observatory.schema_migrations') IS NOT NULL THEN
        EXECUTE {fingerprint} INTO found;
    END IF;
    IF found <> {expected} THEN
        RAISE EXCEPTION 'The ledger is not the one of version {version} that this script was made for. Make it again';
    END IF;
END
$guard$;
"""
_RELOCK = (
    f"SELECT pg_advisory_lock({LOCK_CLASS}, {DEPLOYMENT_LOCK.key}), "
    f"pg_advisory_lock({LOCK_CLASS}, {MIGRATION_LOCK.key});"
)
_MILLISECONDS = "(extract(epoch FROM clock_timestamp() - transaction_timestamp()) * 1000)::integer"


class HandScript(NamedTuple):
    """The script, with what it changes.

    Attributes:
        version: of the schema now; the script refuses every other.
        target: version of the schema after it.
        files: that it applies, in order.
        sql: its text, for psql.
    """

    version: int
    target: int
    files: tuple[str, ...]
    sql: str


def write_script(
    conninfo: str,
    *,
    migrations: Path,
    target: int | None = None,
    only: str | None = None,
    requirements: Sequence[SchemaRequirement] = (),
) -> HandScript:
    """Return the script that applies what `deploy` would apply now. Reads only and takes no lock.

    Args:
        conninfo: as the role that owns the schema.
        migrations: directory of the files.
        target: highest version to apply; None is all.
        only: name of the one file to apply; None is all.
        requirements: of the releases that the fleets run or keep for a rollback.

    Raises:
        MigrationFileError, MigrationHistoryError, ContractRefusedError, ObjectsInTheWayError, LintRefusedError:
            `deploy` would be refused, or a file was interrupted, which no script can resume.
        UnreachableError: the connection failed or broke.
        UnsuitableServerError: a standby, or no TimescaleDB.
    """
    with session(conninfo, purpose="script", settings=_READ_ONLY) as (connection, edition), connection.transaction():
        found = read_pending(
            connection, migrations=migrations, edition=edition, target=target, only=only, requirements=requirements
        )
        history, scripts = found.history, found.numbered
        for entry in history.interrupted:
            raise MigrationHistoryError(
                f"{entry.stem}.sql: was interrupted, and a script cannot resume it. Finish it with `observatory deploy "
                f"database --migration {entry.stem}.sql`"
            )
        found.refuse_contracts()
        refuse_existing_objects(connection, conninfo=conninfo, migrations=migrations, history=history, scripts=scripts)
        warnings = found.refuse_findings()
        # A numbered file may drop what any repeatable one makes, and each may run again.
        scripts += found.repeatable if scripts else found.changed
        text = _Writer(connection, edition).whole(conninfo, history, scripts, warnings)
    files = tuple(script.migration.file for script in scripts)
    after = max([history.version, *(script.migration.version for script in scripts)])
    return HandScript(version=history.version, target=after, files=files, sql=text)


class _Expression(str):
    """SQL that stands in the script as it is, where a value is expected."""

    __slots__ = ()


class _ExpressionDumper(Dumper):
    def dump(self, obj: Any) -> bytes:
        return str(obj).encode()

    def quote(self, obj: Any) -> bytes:
        return self.dump(obj)


class _Result(NamedTuple):
    """The result of a statement that will have run: it changed its one row, and the lock is held."""

    rowcount: int = 1

    def fetchone(self) -> tuple[bool]:
        return (True,)


class _Writer:
    """Writes the script. The ledger's functions use it as a connection: it writes their changes, and reads for them."""

    def __init__(self, connection: psycopg.Connection, edition: Edition) -> None:
        self._connection, self._edition = connection, edition
        self._cursor = psycopg.ClientCursor(connection)
        self._cursor.adapters.register_dumper(_Expression, _ExpressionDumper)
        self._parts: list[str] = []
        self._author = ledger.Author(
            actor=cast("str", _Expression("'psql by ' || session_user")),
            deployment_id=str(uuid.uuid4()),
            edition=edition,
        )

    def whole(self, conninfo: str, history: History, scripts: Sequence[Script], warnings: Sequence[Finding]) -> str:
        if not scripts:
            return f"-- Nothing is pending: {describe(conninfo)} is at version {history.version}.\n"
        self._start(conninfo, history, scripts)
        for warning in warnings:
            self._comment(str(warning))
        ledger.create(self._as_connection)
        if any(not script.migration.version for script in scripts):
            create_table(self._as_connection)
        for script in scripts:
            self._comment(f"\n{script.migration.file}: {_kind(script)}")
            if script.transactional:
                self._in_transaction(script)
            else:
                self._one_by_one(script)
        return "".join(self._parts)

    @property
    def _as_connection(self) -> psycopg.Connection:
        return cast("psycopg.Connection", self)

    def execute(self, query: bytes | str, values: Any = None) -> Any:
        """Write a statement of the ledger's functions; run it where it only reads."""
        if query.lstrip()[:6].upper() in {"SELECT", b"SELECT"}:
            return self._connection.execute(query, values)
        self._statement(self._cursor.mogrify(query, values))
        return _Result()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Write BEGIN and COMMIT around what the block writes."""
        self._statement("BEGIN")
        yield
        self._statement("COMMIT")

    def _start(self, conninfo: str, history: History, scripts: Sequence[Script]) -> None:
        files = ", ".join(script.migration.file for script in scripts)
        self._comment(
            f"Migrations of {describe(conninfo)} from version {history.version}, {self._edition} edition: {files}.\n"
            "Run it directly, not through a pooler, as the role that owns the schema:\n"
            "    psql -X -v ON_ERROR_STOP=1 -f FILE\n"
            "It makes no backup: make one first. A statement waits for a lock as long as lock_timeout says, and\n"
            "nothing is retried: after a failure, its transaction is rolled back; make the script again and run it.\n"
            "Afterwards run `observatory deploy database`: it finds nothing to apply, schedules the jobs, grants\n"
            "privileges and verifies the database."
        )
        self._parts.append(
            "\\set ON_ERROR_STOP on\n\\set ON_ERROR_ROLLBACK off\n\\set AUTOCOMMIT on\n\\encoding UTF8\n"
        )
        self._settings()
        self._parts.append(self._guard(history))

    def _guard(self, history: History) -> str:
        has_ledger = self._connection.execute("SELECT to_regclass('observatory.schema_migrations') IS NOT NULL")
        expected = ""
        if has_ledger.fetchone() == (True,):
            [expected] = self._connection.execute(_FINGERPRINT.encode()).fetchone() or ("",)
        [role] = self._connection.execute("SELECT current_user").fetchone() or ("",)
        return _GUARD.format(
            role=_literal(role),
            edition=_literal(self._edition),
            lock_class=LOCK_CLASS,
            deployment=DEPLOYMENT_LOCK.key,
            migration=MIGRATION_LOCK.key,
            fingerprint=_literal(_FINGERPRINT),
            expected=_literal(expected),
            version=history.version,
        )

    def _in_transaction(self, script: Script) -> None:
        with self.transaction():
            for statement in script.statements:
                self._statement(statement.sql)
            self._clean_session()
            self._record(script)

    def _record(self, script: Script) -> None:
        hashes = [statement.sha256 for statement in script.statements]
        duration = cast("int", _Expression(_MILLISECONDS))
        holder = cast("int", _Expression("pg_backend_pid()"))
        if script.migration.version:
            ledger.insert(
                self._as_connection,
                script.migration,
                self._author,
                hashes=hashes,
                total=len(hashes),
                duration_ms=duration,
                holder=holder,
            )
        else:
            record(self._as_connection, script, self._author, duration_ms=duration, holder=holder)

    def _one_by_one(self, script: Script) -> None:
        holder = cast("int", _Expression("pg_backend_pid()"))
        steps = ledger.Steps(script.migration, self._author, total=len(script.statements), holder=holder)
        for statement in script.statements:
            if _MAY_HAVE_TRANSACTION.match(statement.sql):
                with self.transaction():
                    self._statement(statement.sql)
                    steps.finish(self._as_connection, statement.sha256, duration_ms=0)
            else:
                steps.begin(self._as_connection, statement.sha256)
                self._outside_transaction(statement)
                steps.finish(self._as_connection, statement.sha256, duration_ms=0)
        self._clean_session()

    def _outside_transaction(self, statement: Statement) -> None:
        traits = traits_of(statement)
        if traits.fresh_session:
            self._comment("The first statement of its session. The new session takes the locks after it.")
            self._parts.append("\\connect -reuse-previous=on\n")
        if traits.has_no_lock_timeout:
            self._statement("SET lock_timeout = 0")
        self._statement(statement.sql)
        if traits.has_no_lock_timeout:
            self._statement(f"SET lock_timeout = '{MIGRATION_SETTINGS['lock_timeout']}'")
        if traits.fresh_session:
            self._settings()
            self._parts.append(f"{_RELOCK}\n")

    def _clean_session(self) -> None:
        """Undo what the file has set for itself."""
        for statement in ("RESET SESSION AUTHORIZATION", "RESET ROLE", "RESET ALL"):
            self._statement(statement)
        self._settings()

    def _settings(self) -> None:
        for name, value in _SETTINGS.items():
            self._statement(f"SET {name} = {_literal(value)}")

    def _statement(self, text: str) -> None:
        self._parts.append(f"{text.strip()}\n;\n")  # a comment may end the statement's last line

    def _comment(self, text: str) -> None:
        self._parts.append("".join(f"-- {line}\n" if line else "\n" for line in text.split("\n")))


def _kind(script: Script) -> str:
    if script.transactional:
        return "one transaction"
    return "NOT in a transaction. Each finished statement is recorded, and `observatory deploy database` resumes it"


def _literal(value: str) -> str:
    return sql.Literal(value).as_string().strip()
