"""Faults of availability."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator

from proofs.alerts.faults.means import stopped
from proofs.alerts.monitored import Monitored
from proofs.alerts.round import Fault
from tests.support.crash import postmasters

PATRONICTL = "observatory exec patroni -- patronictl -c /srv/etc/patroni"


@contextlib.contextmanager
def database_killed(stack: Monitored) -> Iterator[None]:
    """Pause Patroni, which would start PostgreSQL again, and kill the postmaster."""
    stack.shell(f"{PATRONICTL} pause --wait")
    try:
        for pid in postmasters(stack.checkout):
            os.kill(pid, signal.SIGKILL)
        yield
    finally:
        with contextlib.suppress(RuntimeError):  # it is not paused any more
            stack.shell(f"{PATRONICTL} resume --wait")


AVAILABILITY = (
    Fault(
        alert="StorageDatabaseDown",
        what="`patronictl pause`, and the postmaster is killed",
        inject=database_killed,
    ),
    Fault(
        alert="StorageExporterDown",
        what="PostgreSQL's exporter is stopped",
        inject=stopped("postgres-exporter"),
        labels={"job": "postgres"},
    ),
    Fault(
        alert="StorageServiceDown",
        what="both fleets are stopped",
        inject=stopped("storage-blue-1", "storage-green-1"),
        labels={"fleet": "blue"},
    ),
    Fault(
        alert="StorageInstanceDown",
        what="an instance of the idle fleet is stopped",
        inject=stopped("storage-green-1"),
        labels={"server": "green-1"},
    ),
)
