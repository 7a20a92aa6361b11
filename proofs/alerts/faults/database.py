"""Faults inside the database: a damaged page, statements that use every CPU, jobs that fail or are paused, growth."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

import psycopg

from observatory.nodes.postgres import OWNER_ROLE
from proofs.alerts.faults.means import fires, repeated
from proofs.alerts.faults.sessions import wrong_passwords
from proofs.alerts.history import backfill
from proofs.alerts.monitored import COMMAND_S, SCOPE, Monitored
from proofs.alerts.round import Fault

PAGE = 4096  # somewhere in the first page of a table
RESTART = "observatory exec patroni -- patronictl -c /srv/etc/patroni restart observatory --force"
ENDLESS = "SELECT count(*) FROM generate_series(1, 1000000) a, generate_series(1, 1000000) b"
CANCEL = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE query LIKE '%1000000) b' AND state = 'active'"
BUSY = 4  # statements of each login; an administrator's may have five sessions, and the runbook needs one
ADMINISTRATORS = ("admin_a", "admin_b")
PAUSE = "UPDATE cron.job SET active = {active} WHERE jobname = 'observatory: {job}'"
REFRESH, RETENTION = "refresh llm_metrics_1min", "retention of llm_logs"
EXECUTE = f"EXECUTE ON PROCEDURE observatory.refresh_aggregate {{}} {OWNER_ROLE}"
OLD_ROWS = """
INSERT INTO llm_logs (ts, log_level, message)
SELECT now() - make_interval(days => day), 'INFO', 'old' FROM generate_series(40, 44) AS day"""
# Four rows a page, none of them compressed, and none in the WAL: 1.1 GB.
LOAD = "CREATE UNLOGGED TABLE loaded AS SELECT repeat(md5(n::text), 58) AS row FROM generate_series(1, 540000) AS n"
SIZE = "SELECT pg_database_size('observatory')"
DAY_S, LOADED_S, STEP_S = 86_400.0, 600.0, 15.0


@contextlib.contextmanager
def page_read(stack: Monitored) -> Iterator[None]:
    """Damage a page of a table, and read it from the disk; then drop the table, which nothing else reads."""
    stack.superuser("CREATE TABLE precious AS SELECT generate_series(1, 1000) AS n", "observatory")
    stack.superuser("CHECKPOINT")
    path = stack.superuser("SELECT pg_relation_filepath('precious')", "observatory")
    with (stack.checkout.home / "data/postgres" / path).open("r+b") as file:
        file.seek(PAGE)
        file.write(b"damage")
    stack.shell(RESTART)  # what is in its memory is not read from the disk
    stack.wait_for(lambda: stack.superuser("SELECT 1") == "1", "PostgreSQL to answer", timeout_s=COMMAND_S)
    with contextlib.suppress(Exception):  # the read fails, and is counted
        stack.superuser("SELECT count(*) FROM precious", "observatory")
    stack.superuser("DROP TABLE precious", "observatory")
    yield


@contextlib.contextmanager
def busy_statements(stack: Monitored) -> Iterator[None]:
    """Run statements that use every CPU."""

    def run(login: str) -> None:
        with contextlib.suppress(psycopg.Error), psycopg.connect(stack.logins[login]) as session:
            session.execute(ENDLESS.encode())

    threads = [threading.Thread(target=run, args=(login,), daemon=True) for login in ADMINISTRATORS * BUSY]
    for each in threads:
        each.start()
    try:
        yield
    finally:
        stack.superuser(CANCEL)
        for each in threads:
            each.join()


@contextlib.contextmanager
def _paused(stack: Monitored, job: str) -> Iterator[None]:
    stack.superuser(PAUSE.format(active="false", job=job), "observatory")
    try:
        yield
    finally:
        stack.superuser(PAUSE.format(active="true", job=job), "observatory")


@contextlib.contextmanager
def refresh_paused(stack: Monitored) -> Iterator[None]:
    """Pause the refresh of an aggregate, and write rows that it should have."""
    with _paused(stack, REFRESH), stack.service() as client, repeated(lambda: stack.write_trace(client)):
        yield


@contextlib.contextmanager
def retention_paused(stack: Monitored) -> Iterator[None]:
    """Pause the retention of the logs, and write rows in chunks that it should have dropped."""
    with _paused(stack, RETENTION):
        stack.superuser(OLD_ROWS, "observatory")
        yield


@contextlib.contextmanager
def refresh_failed(stack: Monitored) -> Iterator[None]:
    """Let the refreshes fail, for a privilege that they lack."""
    stack.superuser(f"REVOKE {EXECUTE.format('FROM')}", "observatory")
    try:
        yield
    finally:
        stack.superuser(f"GRANT {EXECUTE.format('TO')}", "observatory")


@contextlib.contextmanager
def much_loaded(stack: Monitored) -> Iterator[None]:
    """Load 1.1 GB, with a history in which that is a day ago after ten minutes; a warning fires, or it is not sent."""
    [live] = stack.query(SCOPE.select("pg_database_size_bytes", 'datname="observatory"'))
    with wrong_passwords(stack):
        fires(stack, "StorageAuthFailures")
        before = float(stack.superuser(SIZE))
        stack.superuser(LOAD, "observatory")
        try:
            after, day_ago = float(stack.superuser(SIZE)), time.time() - DAY_S
            times = (day_ago - LOADED_S + step * STEP_S for step in range(int(6 * LOADED_S / STEP_S)))
            samples = ((at, before if at < day_ago + LOADED_S else after) for at in times)
            backfill(stack, "pg_database_size_bytes", live, samples)
            yield
        finally:
            stack.superuser("DROP TABLE loaded", "observatory")


@contextlib.contextmanager
def monitor_blinded(stack: Monitored) -> Iterator[None]:
    """Take the membership away that lets the collector see sessions."""
    stack.superuser("REVOKE pg_monitor FROM monitor GRANTED BY provisioner")
    try:
        yield
    finally:
        stack.superuser("GRANT pg_monitor TO monitor GRANTED BY provisioner")


DATABASE = (
    Fault(
        alert="StorageCollectorQueryFailed",
        what="the role of the collector is no member of `pg_monitor`",
        inject=monitor_blinded,
    ),
    Fault(
        alert="StorageChecksumFailure",
        what="bytes of a table's page are overwritten, and read",
        inject=page_read,
        labels={"datname": "observatory"},
    ),
    Fault(
        alert="StorageAggregateStale",
        what="the refresh of an aggregate is paused, and rows are written",
        inject=refresh_paused,
        labels={"aggregate": "llm_metrics_1min"},
    ),
    Fault(
        alert="StorageJobFailed",
        what="the refreshes of the aggregates may not run their procedure",
        inject=refresh_failed,
        ended_by_hand=True,
        labels={"application_name": "refresh llm_metrics_1hour", "state": "has failed"},
    ),
    Fault(
        alert="StorageCompressionBacklog",
        what="the retention of the logs is paused, and old rows are written",
        inject=retention_paused,
        labels={"hypertable": "llm_logs", "policy": "retention"},
    ),
    Fault(
        alert="StorageDatabaseGrowthHigh",
        what="1.1 GB is loaded, with a history of the day before (backfilled blocks), while logins fail",
        inject=much_loaded,
        labels={"datname": "observatory"},
    ),
)
CPU = (Fault(alert="StorageCpuPressure", what="eight statements without an end use every CPU", inject=busy_statements),)
