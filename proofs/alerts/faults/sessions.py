"""Faults that sessions make: connections, transactions, locks and slow statements."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

import psycopg
from psycopg.conninfo import make_conninfo

from proofs.alerts.faults.means import repeated
from proofs.alerts.monitored import SCOPE, Monitored
from proofs.alerts.round import Fault

WAITING = 20  # clients of a pool that has no connection left; pgBouncer ends each after some seconds
SHARE_OF_POOL, SHARE_OF_BACKENDS = 0.95, 0.92
SLOW_S = 5.0  # a statement
WORKING_S = 5.0  # between the statements of a session
POOLED = ("app_a", "readonly_a", "app_b", "readonly_b")  # logins
BLOCKED = 2  # sessions that wait for a lock; a login of an administrator may have five
USED = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'"
FREE = """
SELECT rolconnlimit - (SELECT count(*) FROM pg_stat_activity WHERE usename = rolname)
FROM pg_roles WHERE rolname = '{login}'"""
TABLE, GUESS = "proof_of_alerts", "guess"


@contextlib.contextmanager
def read_only(stack: Monitored) -> Iterator[None]:
    """Let every transaction of the server be read-only."""
    stack.superuser("ALTER SYSTEM SET default_transaction_read_only = on")
    stack.superuser("SELECT pg_reload_conf()")
    try:
        yield
    finally:
        stack.superuser("ALTER SYSTEM RESET default_transaction_read_only")
        stack.superuser("SELECT pg_reload_conf()")


@contextlib.contextmanager
def _idle(address: str, count: int, *, or_fewer: bool = False) -> Iterator[list[psycopg.Connection]]:
    """Yield sessions, each in a transaction that has begun and does nothing; or fewer, where no more are allowed."""
    refused = (psycopg.OperationalError,) if or_fewer else ()
    with contextlib.ExitStack() as opened:
        sessions: list[psycopg.Connection] = []
        with contextlib.suppress(*refused):
            while len(sessions) < count:
                session = psycopg.connect(address)
                opened.callback(session.close)
                session.execute("SELECT 1")
                sessions.append(session)
        yield sessions


@contextlib.contextmanager
def _busy(address: str, count: int, *, or_fewer: bool = False) -> Iterator[None]:
    """Keep sessions in transactions; each works again and again, since PostgreSQL ends idle ones after 30 s."""

    def work() -> None:
        for session in sessions:
            with contextlib.suppress(psycopg.Error):  # the runbook ends it
                session.execute("SELECT 1")
        time.sleep(WORKING_S)

    with _idle(address, count, or_fewer=or_fewer) as sessions, repeated(work):
        yield


def _pool_size(stack: Monitored) -> int:
    """Return the number of connections that pgBouncer opens for a login."""
    selector = SCOPE.select("pgbouncer_databases_pool_size", 'name="observatory"')
    return int(stack.value(f"max({selector})"))


@contextlib.contextmanager
def pool_exhausted(stack: Monitored) -> Iterator[None]:
    """Use every connection of a pool, and let clients wait for one."""
    address = stack.checkout.output("database_url")

    def wait() -> None:
        with contextlib.suppress(psycopg.Error), psycopg.connect(address) as session:
            session.execute("SELECT 1")

    with _busy(address, _pool_size(stack), or_fewer=True), contextlib.ExitStack() as clients:
        for _ in range(WAITING):
            clients.enter_context(repeated(wait))
        yield


@contextlib.contextmanager
def pool_saturated(stack: Monitored) -> Iterator[None]:
    """Use most connections of a pool."""
    with _busy(stack.checkout.output("database_url"), int(SHARE_OF_POOL * _pool_size(stack)), or_fewer=True):
        yield


@contextlib.contextmanager
def backends_used(stack: Monitored) -> Iterator[None]:
    """Use most of PostgreSQL's connections: what the pools of all logins have, and the rest as superuser."""
    allowed = int(stack.superuser("SHOW max_connections")) - int(stack.superuser("SHOW superuser_reserved_connections"))
    with contextlib.ExitStack() as opened:
        for login in POOLED:
            free = int(stack.superuser(FREE.format(login=login)))
            opened.enter_context(_busy(stack.logins[login], free - 1, or_fewer=True))  # the service takes some as well
        rest = int(SHARE_OF_BACKENDS * allowed) - int(stack.superuser(USED))
        opened.enter_context(_busy(stack.admin, max(rest, 0)))
        yield


@contextlib.contextmanager
def idle_in_transaction(stack: Monitored) -> Iterator[None]:
    """Begin a transaction and do nothing."""
    with _idle(stack.user, 1):
        yield


@contextlib.contextmanager
def _table(stack: Monitored) -> Iterator[None]:
    stack.sql(f"CREATE TABLE {TABLE} AS SELECT generate_series(1, 2) AS n", f"GRANT ALL ON {TABLE} TO PUBLIC")
    try:
        yield
    finally:
        stack.sql(f"DROP TABLE {TABLE}")


@contextlib.contextmanager
def locked_table(stack: Monitored) -> Iterator[None]:
    """Lock a table, and let other sessions wait for it."""
    with _table(stack), psycopg.connect(stack.user) as holder, contextlib.ExitStack() as clients:

        def wait() -> None:
            with contextlib.suppress(psycopg.Error), psycopg.connect(stack.user) as session:
                session.execute(f"SELECT FROM {TABLE}".encode())

        holder.execute(f"LOCK TABLE {TABLE} IN ACCESS EXCLUSIVE MODE".encode())
        for _ in range(BLOCKED):
            clients.enter_context(repeated(wait))
        try:
            yield
        finally:
            holder.close()


@contextlib.contextmanager
def deadlocks(stack: Monitored) -> Iterator[None]:
    """Let two sessions lock two rows in opposite order, again and again, until the alert has come."""

    def lock(first: int, second: int) -> Callable[[], None]:
        def both() -> None:
            with contextlib.suppress(psycopg.errors.DeadlockDetected), psycopg.connect(stack.user) as session:
                for row in (first, second):
                    session.execute(f"SELECT FROM {TABLE} WHERE n = {row} FOR UPDATE".encode())
                    time.sleep(SLOW_S / 10)

        return both

    with _table(stack):
        first, second = (threading.Thread(target=lock(*rows)) for rows in ((1, 2), (2, 1)))
        for each in (first, second):
            each.start()
        for each in (first, second):
            each.join()
        yield


@contextlib.contextmanager
def slow_statements(stack: Monitored) -> Iterator[None]:
    """Run a slow statement again and again, until it is cancelled."""
    ended = threading.Event()

    def job() -> None:
        with contextlib.suppress(psycopg.Error), psycopg.connect(stack.user) as session:
            while not ended.is_set():
                session.execute(f"SELECT pg_sleep({SLOW_S})".encode())

    thread = threading.Thread(target=job)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextlib.contextmanager
def long_transaction(stack: Monitored) -> Iterator[None]:
    """Run a statement for hours, in a thread."""

    def sleep() -> None:
        with contextlib.suppress(psycopg.Error), psycopg.connect(stack.user) as session:
            session.execute("SELECT pg_sleep(14400)")

    thread = threading.Thread(target=sleep, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stack.superuser("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(14400)'")
        thread.join()


@contextlib.contextmanager
def wrong_passwords(stack: Monitored) -> Iterator[None]:
    """Log in with a wrong password again and again, until the end of the block."""
    address = make_conninfo(stack.user, password=GUESS)

    def guess() -> None:
        with contextlib.suppress(psycopg.OperationalError):
            psycopg.connect(address).close()
        time.sleep(1)

    with repeated(guess):
        yield


@contextlib.contextmanager
def plaintext_session(stack: Monitored) -> Iterator[None]:
    """Let pg_hba.conf accept connections without TLS, and open one."""
    file = stack.superuser("SHOW hba_file")
    text = stack.sandbox.host_path(file).read_text()
    stack.sandbox.write_file(file, f"host all all 127.0.0.1/32 scram-sha-256\n{text}")
    stack.superuser("SELECT pg_reload_conf()")
    with contextlib.suppress(psycopg.Error), psycopg.connect(stack.user, sslmode="disable") as session:
        session.execute("SELECT 1")
        yield


SESSIONS = (
    Fault(alert="StorageDatabaseReadOnly", what="`ALTER SYSTEM SET default_transaction_read_only`", inject=read_only),
    Fault(
        alert="StoragePoolExhausted",
        what="all connections of a pool are in transactions, and 20 clients wait",
        inject=pool_exhausted,
    ),
    Fault(
        alert="StoragePoolSaturated",
        what="95 % of the connections of a pool are in transactions",
        inject=pool_saturated,
    ),
    Fault(
        alert="StorageBackendsHigh", what="92 % of PostgreSQL's connections are in transactions", inject=backends_used
    ),
    Fault(alert="StorageIdleInTransaction", what="`BEGIN`, and nothing more", inject=idle_in_transaction),
    Fault(alert="StorageLockWaits", what="`LOCK TABLE` in one session, and others read it", inject=locked_table),
    Fault(alert="StorageDeadlocks", what="two sessions lock two rows in opposite order", inject=deadlocks),
    Fault(
        alert="StorageSlowStatements",
        what="`SELECT pg_sleep(5)`, again and again, by a job that ends with an error",
        inject=slow_statements,
    ),
    Fault(alert="StorageLongTransaction", what="a statement that runs for hours", inject=long_transaction),
    Fault(
        alert="StorageAuthFailures",
        what="logins with a wrong password, one a second",
        inject=wrong_passwords,
        ended_by_hand=True,
    ),
    Fault(
        alert="StoragePlaintextSessions",
        what="a `host` line in pg_hba.conf, and a session with `sslmode=disable`",
        inject=plaintext_session,
    ),
)
