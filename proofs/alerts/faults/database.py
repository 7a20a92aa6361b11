"""Faults inside the database: a damaged page, statements that use every CPU, a job that is paused."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator

import psycopg

from proofs.alerts.faults.means import repeated
from proofs.alerts.monitored import COMMAND_S, Monitored
from proofs.alerts.round import Fault

PAGE = 4096  # somewhere in the first page of a table
RESTART = "observatory exec patroni -- patronictl -c /srv/etc/patroni restart observatory --force"
BUSY = "SELECT count(*) FROM generate_series(1, 1000000) a, generate_series(1, 1000000) b"
CANCEL = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE query LIKE '%1000000) b' AND state = 'active'"
BUSY_PER_CPU = 4
PAUSE = "UPDATE cron.job SET active = {active} WHERE jobname = 'observatory: refresh llm_metrics_1min'"


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

    def run() -> None:
        with contextlib.suppress(psycopg.Error), psycopg.connect(stack.user) as session:
            session.execute(BUSY.encode())

    threads = [threading.Thread(target=run, daemon=True) for _ in range(BUSY_PER_CPU * (os.cpu_count() or 1))]
    for each in threads:
        each.start()
    try:
        yield
    finally:
        stack.superuser(CANCEL)
        for each in threads:
            each.join()


@contextlib.contextmanager
def refresh_paused(stack: Monitored) -> Iterator[None]:
    """Pause the refresh of an aggregate, and write rows that it should have."""
    stack.superuser(PAUSE.format(active="false"), "observatory")
    try:
        with stack.service() as client, repeated(lambda: stack.write_trace(client)):
            yield
    finally:
        stack.superuser(PAUSE.format(active="true"), "observatory")


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
)
CPU = (Fault(alert="StorageCpuPressure", what="statements use every CPU four times", inject=busy_statements),)
