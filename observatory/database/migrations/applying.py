"""Applies one migration: all statements and the ledger row in one transaction, or statement by statement.

Owns transactions, lock timeouts and retries. `observatory.database.deployment` chooses the migrations.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import psycopg
from psycopg import errors as pg

from observatory.database.error_translation import translate_errors
from observatory.database.errors import MigrationLockLostError
from observatory.database.excerpts import excerpt
from observatory.database.migrations import ledger, repeatable
from observatory.database.migrations.blocking_sessions import BlockingSession, BlockingSessionWatch
from observatory.database.migrations.error_places import offset_of_error
from observatory.database.migrations.events import EventKind, OnEvent, report_event
from observatory.database.migrations.lock_retries import (
    lock_timeout_error,
    outlast_autovacuum,
    run_with_lock_retries,
)
from observatory.database.migrations.non_transactional import (
    StatementTraits,
    finish_interrupted,
    sets_session_parameter,
    traits_of,
    without_lock_timeout,
)
from observatory.database.migrations.resuming import begun_statement, refuse_changed_statements
from observatory.database.migrations.statements import Script

# A file may have set a role or a parameter for itself; the next file starts with a clean session.
_CLEAN_SESSION = b"RESET SESSION AUTHORIZATION; RESET ROLE; RESET ALL"

_SHOWN_NOTICES = 50  # of a file: a loop may send thousands

_ROW_EXISTS = "Another session wrote its row meanwhile. Run again"
_LOCK_LOST = (
    "the migration lock was lost while the file ran: a statement released it (pg_advisory_unlock_all, DISCARD ALL), or "
    "its session ended. {}, and no further file was applied. Remove such a statement, check whether another deployment "
    "ran meanwhile, then run again"
)


@dataclass(kw_only=True)
class Applier:
    """Applies migrations. The caller holds the migration lock.

    Attributes:
        connection: autocommit, with `lock_timeout` set.
        reconnect: opens another such connection for a statement that must be the first of its session; the caller
            closes it.
        watch: records the sessions that block a statement.
        author: written to the ledger.
        holder: process id of the session that holds the migration lock.
        retry: highest number of retries of a file after lock timeouts.
        on_event: called with the progress.
    """

    connection: psycopg.Connection
    reconnect: Callable[[], psycopg.Connection]
    watch: BlockingSessionWatch
    author: ledger.Author
    holder: int
    retry: int
    on_event: OnEvent | None = None
    _clean: bool = True
    _applying: str | None = None
    _notices: int = 0

    def __post_init__(self) -> None:
        """Report what PostgreSQL sends while a statement runs."""
        self._report_notices()

    def apply(self, script: Script) -> str:
        """Apply a migration; retry while other sessions hold its locks.

        Returns:
            The migration's name.

        Raises:
            LockTimeoutError: other sessions kept the locks; the message names the sessions.
            StatementFailedError: PostgreSQL rejected a statement.
            MigrationHistoryError: statements that already ran were changed in the file.
            MigrationLockLostError: the migration lock was lost while it ran.
            UnreachableError: the connection broke.
        """
        name = script.migration.name
        self._applying, self._notices = name, 0
        self._report("applying", name, f"{len(script.statements)} statements")
        started = time.monotonic()
        with translate_errors(script.migration.place()):
            run_with_lock_retries(
                partial(self._attempt, script),
                retry=self.retry,
                on_retry=lambda detail: self._report("retrying", name, detail),
            )
        self._report("applied", name, f"{time.monotonic() - started:.3f} s")
        return name

    def _attempt(self, script: Script, past_autovacuum: bool) -> None:
        if not self._clean:
            self.connection.execute(_CLEAN_SESSION)
        self._clean = False
        if past_autovacuum:
            outlast_autovacuum(self.connection)
        if script.transactional:
            self._run_in_transaction(script)
            self._clean = True  # the transaction ends with _CLEAN_SESSION
        else:
            self._run_one_by_one(script)

    def _run_in_transaction(self, script: Script) -> None:
        started = time.monotonic()
        with self.connection.transaction():
            for number in range(len(script.statements)):
                with self._located(script, number):
                    self._execute(script, number)
            self.connection.execute(_CLEAN_SESSION)
            with translate_errors(script.migration.place(), remedy=_ROW_EXISTS):
                held = self._record(script, started)
            _require_lock(script.migration.place(), "The file was rolled back", held=held)

    def _record(self, script: Script, started: float) -> bool:
        """Write the row of a file that is one transaction; return whether the migration lock is held."""
        duration_ms = _milliseconds(started)
        if not script.migration.version:
            return repeatable.record(self.connection, script, self.author, duration_ms=duration_ms, holder=self.holder)
        hashes = [statement.sha256 for statement in script.statements]
        return ledger.insert(
            self.connection,
            script.migration,
            self.author,
            hashes=hashes,
            total=len(hashes),
            duration_ms=duration_ms,
            holder=self.holder,
        )

    def _run_one_by_one(self, script: Script) -> None:
        """Run the statements that are not done, each in one transaction with its record where PostgreSQL allows it."""
        steps = ledger.Steps(script.migration, self.author, total=len(script.statements), holder=self.holder)
        progress = ledger.progress(self.connection, script.migration.version)
        first, begun = self._resume(script, progress, steps) if progress else (0, False)
        for number in range(first, len(script.statements)):
            with self._located(script, number):
                if not self._run_with_record(script, number, steps):
                    self._run_outside_transaction(script, number, steps, begun=begun and number == first)

    def _resume(self, script: Script, progress: ledger.Progress, steps: ledger.Steps) -> tuple[int, bool]:
        """Continue an interrupted file; return its next statement's number, and whether that one was begun."""
        refuse_changed_statements(script, progress)
        done, rest = script.statements[: progress.done], script.statements[progress.done :]
        same = bool(rest) and rest[0].sha256 == progress.running
        begun = None if same else begun_statement(script.migration, progress)
        if begun:
            with self._located(script, min(progress.done, len(script.statements) - 1)):
                finish_interrupted(self.connection, traits_of(begun), same_statement=False)
        steps.resume(
            self.connection, [statement.sha256 for statement in done], running=progress.running if same else None
        )
        for statement in filter(sets_session_parameter, done):
            self.connection.execute(statement.sql.encode())
        return progress.done, same

    def _run_with_record(self, script: Script, number: int, steps: ledger.Steps) -> bool:
        """Run a statement and record it in one transaction; return False where PostgreSQL rejects the transaction."""
        started, statement = time.monotonic(), script.statements[number]
        if traits_of(statement).fresh_session:
            return False
        try:
            with self.connection.transaction():
                self._execute(script, number)
                held = steps.finish(self.connection, statement.sha256, duration_ms=_milliseconds(started))
                _require_lock(script.migration.place(statement.offset), "The statement was rolled back", held=held)
        except (pg.ActiveSqlTransaction, pg.InvalidTransactionTermination):
            return False
        return True

    def _run_outside_transaction(self, script: Script, number: int, steps: ledger.Steps, *, begun: bool) -> None:
        """Run a statement between two records: that it was begun, and that it is done."""
        started, statement = time.monotonic(), script.statements[number]
        traits, place = traits_of(statement), script.migration.place(statement.offset)
        if not begun:
            held = steps.begin(self.connection, statement.sha256)
            _require_lock(place, "The statement did not run", held=held)
        if traits.fresh_session:
            self.connection = self.reconnect()
            self._report_notices()
            self._watch(script)
        if not begun or not finish_interrupted(self.connection, traits, same_statement=True):
            already_dropped = (pg.UndefinedTable, pg.UndefinedObject) if traits.drops and begun else ()
            try:
                with without_lock_timeout(self.connection, traits), contextlib.suppress(*already_dropped):
                    self._execute(script, number)
            except psycopg.Error as error:
                self._undo_failed(steps, traits, error)
                raise
        held = steps.finish(self.connection, statement.sha256, duration_ms=_milliseconds(started))
        _require_lock(place, "The statement is done", held=held)

    def _undo_failed(self, steps: ledger.Steps, traits: StatementTraits, error: psycopg.Error) -> None:
        """Remove what a failed statement left, and record that none is running."""
        with contextlib.suppress(psycopg.Error):  # the next run does it, as after a kill
            if not isinstance(error, pg.DuplicateTable):  # else the index of that name belongs to another statement
                finish_interrupted(self.connection, traits, same_statement=False)
            steps.withdraw(self.connection)

    def _execute(self, script: Script, number: int) -> None:
        self.connection.execute(script.statements[number].sql.encode())
        self._report("statement", script.migration.name, f"{number + 1} of {len(script.statements)}")

    @contextlib.contextmanager
    def _located(self, script: Script, number: int) -> Iterator[None]:
        """Add the statement's place, and the blocking sessions, to an error inside the block."""
        self._watch(script)
        try:
            yield
        except (pg.LockNotAvailable, pg.DeadlockDetected) as error:
            place = script.migration.place(offset_of_error(script, number, error))
            raise lock_timeout_error(place, error, self.watch.seen) from error
        except psycopg.Error as error:
            with translate_errors(script.migration.place(offset_of_error(script, number, error))):
                raise
        finally:
            self.watch.end()

    def _watch(self, script: Script) -> None:
        def on_blocked(sessions: tuple[BlockingSession, ...]) -> None:
            self._report("blocked", script.migration.name, f"by {'; '.join(map(str, sessions))}")

        self.watch.begin(self.connection.info.backend_pid, on_blocked)

    def _report_notices(self) -> None:
        self.connection.add_notice_handler(self._on_notice)

    def _on_notice(self, notice: psycopg.errors.Diagnostic) -> None:
        if self._applying is None:
            return
        self._notices += 1
        if self._notices <= _SHOWN_NOTICES:
            severity = notice.severity_nonlocalized or "NOTICE"
            self._report("notice", self._applying, f"{severity}: {excerpt(notice.message_primary or '')}")
        elif self._notices == _SHOWN_NOTICES + 1:
            self._report(
                "notice", self._applying, f"the file sends more than {_SHOWN_NOTICES}; the others are not shown"
            )

    def _report(self, kind: EventKind, migration: str, detail: str) -> None:
        report_event(self.on_event, kind, migration, detail)


def _require_lock(place: str, what: str, *, held: bool) -> None:
    if not held:
        raise MigrationLockLostError(f"{place}: {_LOCK_LOST.format(what)}")


def _milliseconds(started: float) -> int:
    return round((time.monotonic() - started) * 1000)
