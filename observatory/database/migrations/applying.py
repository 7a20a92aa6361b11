"""Runs one migration: its statements and its ledger row together, or resumably one by one.

Owns transactions, lock timeouts and retries. Does not choose what to run: that is `observatory.database.deployment`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import psycopg
from psycopg import errors as pg
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from observatory.database.error_translation import summary, translate_errors
from observatory.database.errors import LockTimeoutError, MigrationHistoryError
from observatory.database.migration_backup import Backup, make_backup
from observatory.database.migrations import ledger
from observatory.database.migrations.blocking_sessions import Blocker, BlockerWatch
from observatory.database.migrations.files import Migration
from observatory.database.migrations.non_transactional import Particulars, particulars, patience, sets_session, settle
from observatory.database.migrations.statements import Script, parse

LOCK_TIMEOUT_MS = 500
BACKOFF_S = (1, 60)

# A file may have set a role or a parameter for itself; the next one starts clean.
_CLEAN_SESSION = b"RESET SESSION AUTHORIZATION; RESET ROLE; RESET ALL"

_ROW_EXISTS = (
    "Another session applied it, or it was interrupted while its header said '-- transaction: false': restore that "
    "header, then run again"
)

EventKind = Literal["waiting", "backup", "applying", "blocked", "statement", "retrying", "applied"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """Progress of a deployment.

    Attributes:
        kind: `waiting` for another deployment, a `backup` is made or verified, `applying` a file, `blocked` by other
            sessions, a `statement` of it is done, `retrying` after a lock timeout, `applied` and committed.
        migration: the file's name, `001_initial_schema`; None for what concerns all of them.
        detail: for people, in one line.
    """

    kind: EventKind
    migration: str | None
    detail: str


OnEvent = Callable[[Event], None]


@dataclass(kw_only=True)
class Applier:
    """Applies migrations, under the migration lock.

    Attributes:
        connection: autocommit, with `lock_timeout` set.
        reconnect: makes another such connection, for what has to be the first statement of its session; the caller
            closes it.
        watch: notes who blocks a statement.
        author: for the ledger.
        retry: how often a file is tried again after a lock timeout.
        on_event: gets the progress.
    """

    connection: psycopg.Connection
    reconnect: Callable[[], psycopg.Connection]
    watch: BlockerWatch
    author: ledger.Author
    retry: int
    on_event: OnEvent | None = None
    _clean: bool = True

    def parse(self, migrations: Iterable[Migration]) -> tuple[Script, ...]:
        """Parse the files, all of them before the first one runs.

        Raises:
            MigrationFileError: an unusable file.
        """
        return tuple(parse(migration) for migration in migrations)

    def tell_waiting(self, holder: str) -> None:
        """Report that another deployment holds the lock."""
        self._tell("waiting", None, f"for the migration lock, held by {holder}")

    def make_backup(self, backup: Backup) -> str:
        """Make a backup, verify it, and have the ledger name it with what is applied from here on.

        Returns:
            The backup's label.

        Raises:
            BackupFailedError: it could not be made or verified.
        """
        label = make_backup(backup, lambda detail: self._tell("backup", None, detail))
        self.author = replace(self.author, backup_label=label)
        return label

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
        attempts = lock_retries(self.retry, lambda detail: self._tell("retrying", name, detail))
        started = time.monotonic()
        with translate_errors(script.migration.place()):
            attempts(self._attempt, script)
        self._tell("applied", name, f"{time.monotonic() - started:.3f} s")
        return name

    def _attempt(self, script: Script) -> None:
        if not self._clean:
            self.connection.execute(_CLEAN_SESSION)
        self._clean = False
        if script.transactional:
            self._run_in_transaction(script)
            self._clean = True  # it ended so
        else:
            self._run_one_by_one(script)

    def _run_in_transaction(self, script: Script) -> None:
        started = time.monotonic()
        with self.connection.transaction():
            for number in range(len(script.statements)):
                with self._named(script, number):
                    self._execute(script, number)
            self.connection.execute(_CLEAN_SESSION)
            with translate_errors(script.migration.place(), remedy=_ROW_EXISTS):
                self._record(script, [statement.sha256 for statement in script.statements], started)

    def _run_one_by_one(self, script: Script) -> None:
        """Run what is not done yet, each statement together with its record where PostgreSQL lets it."""
        progress = ledger.progress(self.connection, script.migration.version)
        done, begun = list(progress.done), progress.running
        _refuse_changed_statements(script, done)
        for statement in filter(sets_session, script.statements[: len(done)]):
            self.connection.execute(statement.sql.encode())
        for number in range(len(done), len(script.statements)):
            with self._named(script, number):
                if not self._run_with_record(script, number, done):
                    self._run_outside(script, number, done, begun=begun)
            done.append(script.statements[number].sha256)
            begun = None

    def _run_with_record(self, script: Script, number: int, done: list[str]) -> bool:
        """Run a statement and record it in one transaction; return False where PostgreSQL refuses the transaction."""
        started, statement = time.monotonic(), script.statements[number]
        if particulars(statement).fresh_session:
            return False
        try:
            with self.connection.transaction():
                self._execute(script, number)
                self._record(script, [*done, statement.sha256], started)
        except (pg.ActiveSqlTransaction, pg.InvalidTransactionTermination):
            return False
        return True

    def _run_outside(self, script: Script, number: int, done: list[str], *, begun: str | None) -> None:
        """Run a statement outside a transaction, between a record that it begins and one that it is done."""
        started, statement = time.monotonic(), script.statements[number]
        kind = particulars(statement)
        self._record(script, done, started, running=statement.sha256)
        if kind.fresh_session:
            self.connection = self.reconnect()
            self._watch(script)
        if begun is None or not settle(self.connection, kind, same=begun == statement.sha256):
            gone = (pg.UndefinedTable, pg.UndefinedObject) if kind.drops and begun == statement.sha256 else ()
            try:
                with patience(self.connection, kind), contextlib.suppress(*gone):
                    self._execute(script, number)
            except psycopg.Error as error:
                self._take_back(script, done, kind, error)
                raise
        self._record(script, [*done, statement.sha256], started)

    def _take_back(self, script: Script, done: list[str], kind: Particulars, error: psycopg.Error) -> None:
        """After a refusal there is no doubt: nothing is left of the statement, or it goes now."""
        with contextlib.suppress(psycopg.Error):  # what fails here is left to the next run, as after a kill
            if not isinstance(error, pg.DuplicateTable):  # else the index of that name is another one
                settle(self.connection, kind, same=False)
            self._record(script, done, time.monotonic())

    def _execute(self, script: Script, number: int) -> None:
        self.connection.execute(script.statements[number].sql.encode())
        self._tell("statement", script.migration.name, f"{number + 1} of {len(script.statements)}")

    def _record(self, script: Script, hashes: list[str], started: float, *, running: str | None = None) -> None:
        ledger.record(
            self.connection,
            script.migration,
            self.author,
            hashes=hashes,
            total=len(script.statements),
            duration_ms=round((time.monotonic() - started) * 1000),
            resumable=not script.transactional,
            running=running,
        )

    @contextlib.contextmanager
    def _named(self, script: Script, number: int) -> Iterator[None]:
        """Name the place of what fails inside, and who stood in its way."""
        statement = script.statements[number]
        self._watch(script)
        try:
            yield
        except (pg.LockNotAvailable, pg.DeadlockDetected) as error:
            place = script.migration.place(statement.offset)
            raise LockTimeoutError(blocked_message(place, error, self.watch.seen)) from error
        except psycopg.Error as error:
            offset = statement.offset + int(error.diag.statement_position or 1) - 1
            with translate_errors(script.migration.place(offset)):
                raise
        finally:
            self.watch.end()

    def _watch(self, script: Script) -> None:
        def tell(blockers: tuple[Blocker, ...]) -> None:
            self._tell("blocked", script.migration.name, f"by {'; '.join(map(str, blockers))}")

        self.watch.begin(self.connection.info.backend_pid, tell)

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


def lock_retries(retry: int, tell: Callable[[str], None]) -> Retrying:
    """What calls a function again after each `LockTimeoutError`, with jittered exponential backoff.

    Args:
        retry: how often at most.
        tell: gets why, and when it goes on.
    """
    return Retrying(
        stop=stop_after_attempt(retry + 1),
        wait=wait_random_exponential(multiplier=2 * BACKOFF_S[0], min=BACKOFF_S[0], max=BACKOFF_S[1]),
        retry=retry_if_exception_type(LockTimeoutError),
        before_sleep=lambda state: tell(_retry_detail(state)),
        reraise=True,
    )


def blocked_message(place: str, error: psycopg.Error, blockers: tuple[Blocker, ...]) -> str:
    """What is said of a statement that did not get its locks: where, and who held them."""
    named = "; ".join(map(str, blockers)) or "sessions that were gone before they could be named"
    return (
        f"{place}: {summary(error)}; blocked by {named}. Nothing of the statement was applied: wait for those "
        "sessions or end them, then run again"
    )


def _retry_detail(state: RetryCallState) -> str:
    error = state.outcome.exception() if state.outcome else None
    return f"attempt {state.attempt_number} of the file failed, next in {state.upcoming_sleep:.1f} s: {error}"
