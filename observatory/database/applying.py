"""Runs one migration: its statements and its ledger row together, or resumably one by one.

Owns transactions, lock timeouts and retries. Does not choose what to run: that is `observatory.database.deployment`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import psycopg
from psycopg import errors as pg
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from observatory.database import ledger
from observatory.database.blockers import Blocker, BlockerWatch
from observatory.database.errors import LockTimeoutError, MigrationHistoryError, readable, summary
from observatory.database.files import Migration
from observatory.database.statements import Script, parse

LOCK_TIMEOUT_MS = 500
BACKOFF_S = (1, 60)

# A file may have set a role or a parameter for itself; the next one starts clean.
_CLEAN_SESSION = b"RESET SESSION AUTHORIZATION; RESET ROLE; RESET ALL"

_ROW_EXISTS = (
    "Another session applied it, or it was interrupted while its header said '-- transaction: false': restore that "
    "header, then run again"
)

EventKind = Literal["waiting", "applying", "statement", "retrying", "applied"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """Progress of a deployment.

    Attributes:
        kind: `waiting` for another deployment, `applying` a file, a `statement` of it is done, `retrying` after a
            lock timeout, `applied` and committed.
        migration: the file's name, `001_initial_schema`; None while waiting.
        detail: for people, in one line.
    """

    kind: EventKind
    migration: str | None
    detail: str


OnEvent = Callable[[Event], None]


@dataclass(frozen=True, kw_only=True)
class Applier:
    """Applies migrations over one connection, which holds the migration lock.

    Attributes:
        connection: autocommit, with `lock_timeout` set.
        conninfo: the same server, to ask who blocks.
        author: for the ledger.
        retry: how often a file is tried again after a lock timeout.
        on_event: gets the progress.
    """

    connection: psycopg.Connection
    conninfo: str
    author: ledger.Author
    retry: int
    on_event: OnEvent | None = None

    def parse(self, migrations: Iterable[Migration]) -> tuple[Script, ...]:
        """Parse the files, all of them before the first one runs.

        Raises:
            MigrationFileError: an unusable file.
        """
        return tuple(parse(migration) for migration in migrations)

    def tell_waiting(self, holder: str) -> None:
        """Report that another deployment holds the lock."""
        self._tell("waiting", None, f"for the migration lock, held by {holder}")

    def apply(self, script: Script) -> str:
        """Apply a migration, trying again with jittered exponential backoff while other sessions hold its locks.

        Returns:
            The migration's name.

        Raises:
            LockTimeoutError: the locks stayed taken; the message names the sessions.
            StatementFailedError: PostgreSQL refused a statement.
            MigrationHistoryError: the file's statements that are done already have changed since.
            UnreachableError: the connection broke.
        """
        name = script.migration.name
        self._tell("applying", name, f"{len(script.statements)} statements")
        attempts = Retrying(
            stop=stop_after_attempt(self.retry + 1),
            wait=wait_random_exponential(multiplier=2 * BACKOFF_S[0], min=BACKOFF_S[0], max=BACKOFF_S[1]),
            retry=retry_if_exception_type(LockTimeoutError),
            before_sleep=lambda state: self._tell("retrying", name, _retry_detail(state)),
            reraise=True,
        )
        started = time.monotonic()
        with readable(script.migration.place()):
            attempts(self._attempt, script)
        self._tell("applied", name, f"{time.monotonic() - started:.3f} s")
        return name

    def _attempt(self, script: Script) -> None:
        self.connection.execute(_CLEAN_SESSION)
        run = self._run_in_transaction if script.transactional else self._run_one_by_one
        pid = self.connection.info.backend_pid
        with BlockerWatch(self.conninfo, backend_pid=pid, delay_s=LOCK_TIMEOUT_MS / 2000) as watch:
            run(script, watch)

    def _run_in_transaction(self, script: Script, watch: BlockerWatch) -> None:
        started = time.monotonic()
        with self.connection.transaction():
            for number in range(len(script.statements)):
                self._execute(script, number, watch)
            self.connection.execute(_CLEAN_SESSION)
            with readable(script.migration.place(), remedy=_ROW_EXISTS):
                self._record(script, [statement.sha256 for statement in script.statements], started)

    def _run_one_by_one(self, script: Script, watch: BlockerWatch) -> None:
        done = list(ledger.statement_hashes(self.connection, script.migration.version))
        _refuse_changed_statements(script, done)
        for number in range(len(done), len(script.statements)):
            started = time.monotonic()
            self._execute(script, number, watch)
            done.append(script.statements[number].sha256)
            self._record(script, done, started)

    def _execute(self, script: Script, number: int, watch: BlockerWatch) -> None:
        statement = script.statements[number]
        watch.seen = ()
        try:
            self.connection.execute(statement.sql.encode())
        except (pg.LockNotAvailable, pg.DeadlockDetected) as error:
            place = script.migration.place(statement.offset)
            raise LockTimeoutError(_blocked_message(place, error, watch.seen)) from error
        except psycopg.Error as error:
            offset = statement.offset + int(error.diag.statement_position or 1) - 1
            with readable(script.migration.place(offset)):
                raise
        self._tell("statement", script.migration.name, f"{number + 1} of {len(script.statements)}")

    def _record(self, script: Script, hashes: list[str], started: float) -> None:
        ledger.record(
            self.connection,
            script.migration,
            self.author,
            hashes=hashes,
            total=len(script.statements),
            duration_ms=round((time.monotonic() - started) * 1000),
            resumable=not script.transactional,
        )

    def _tell(self, kind: EventKind, migration: str | None, detail: str) -> None:
        if self.on_event:
            self.on_event(Event(kind=kind, migration=migration, detail=detail))


def _refuse_changed_statements(script: Script, done: list[str]) -> None:
    for number, sha256 in enumerate(done):
        statement = script.statements[number] if number < len(script.statements) else None
        if statement is None or statement.sha256 != sha256:
            place = script.migration.place(statement.offset if statement else 0)
            raise MigrationHistoryError(
                f"{place}: statement {number + 1} was changed after it ran; this file was interrupted after "
                f"{len(done)} statements. Restore the first {len(done)} statements; the others may change"
            )


def _blocked_message(place: str, error: psycopg.Error, blockers: tuple[Blocker, ...]) -> str:
    named = "; ".join(map(str, blockers)) or "sessions that were gone before they could be named"
    return (
        f"{place}: {summary(error)}; blocked by {named}. Nothing of the statement was applied: wait for those "
        "sessions or end them, then run again"
    )


def _retry_detail(state: RetryCallState) -> str:
    error = state.outcome.exception() if state.outcome else None
    return f"attempt {state.attempt_number} of the file failed, next in {state.upcoming_sleep:.1f} s: {error}"
