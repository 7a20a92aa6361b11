"""Faults of writes, under the load of users."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator

import httpx

from proofs.alerts.faults.means import repeated
from proofs.alerts.monitored import Monitored
from proofs.alerts.round import Fault
from tests.support.delivery import line

ONE_IN = 100  # writes of logs among those of traces


@contextlib.contextmanager
def _revoked(stack: Monitored, table: str) -> Iterator[None]:
    """Take the service's privilege to insert into a table."""
    stack.sql(f"REVOKE INSERT ON {table} FROM app")
    try:
        yield
    finally:
        stack.sql(f"GRANT INSERT ON {table} TO app")


@contextlib.contextmanager
def every_write_fails(stack: Monitored) -> Iterator[None]:
    """Let every write of traces fail."""
    with stack.service() as client, _revoked(stack, "llm_traces"), repeated(lambda: stack.write_trace(client)):
        yield


@contextlib.contextmanager
def one_in_hundred_fails(stack: Monitored) -> Iterator[None]:
    """Let writes of logs fail, which are one in a hundred."""
    numbers = itertools.count()
    with stack.service() as client:

        def write() -> None:
            if next(numbers) % ONE_IN:
                stack.write_trace(client)
            else:
                with contextlib.suppress(httpx.HTTPError):
                    client.post("/v1/logs", json={"items": [line()]})

        with _revoked(stack, "llm_logs"), repeated(write):
            yield


WRITES = (
    Fault(
        alert="StorageErrorBudgetSlowBurn",
        what="the privilege to insert logs is revoked; one write in a hundred is one of logs",
        inject=one_in_hundred_fails,
        labels={"fleet": "blue"},
    ),
    Fault(
        alert="StorageErrorBudgetFastBurn",
        what="the privilege to insert traces is revoked",
        inject=every_write_fails,
        labels={"fleet": "blue"},
    ),
)
