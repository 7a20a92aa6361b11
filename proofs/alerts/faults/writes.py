"""Faults of writes and reads, under the load of users."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator

import httpx
import psycopg

from proofs.alerts.faults.means import repeated
from proofs.alerts.monitored import Monitored
from proofs.alerts.round import Fault
from tests.support.delivery import line

HELD_S, FREE_S = 2.0, 0.05  # of a lock
ONE_IN = 100  # writes of logs among those of traces
Act = Callable[[Monitored, httpx.Client], object]


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


def locked_again_and_again(mode: str, act: Act) -> Callable[[Monitored], contextlib.AbstractContextManager[None]]:
    """Return a fault that locks the table of the traces for most of the time, under the load of users."""

    @contextlib.contextmanager
    def fault(stack: Monitored) -> Iterator[None]:
        ended = threading.Event()

        def lock() -> None:
            with contextlib.suppress(psycopg.Error), psycopg.connect(stack.user) as session:
                while not ended.wait(FREE_S):
                    session.execute(f"LOCK TABLE llm_traces IN {mode} MODE".encode())
                    time.sleep(HELD_S)
                    session.commit()

        thread = threading.Thread(target=lock)
        thread.start()
        try:
            with stack.service() as client, repeated(lambda: act(stack, client)):
                yield
        finally:
            ended.set()
            thread.join()

    return fault


def _read(_stack: Monitored, client: httpx.Client) -> None:
    with contextlib.suppress(httpx.HTTPError):
        client.get("/v1/traces", params={"limit": 1})


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
    Fault(
        alert="StorageWriteLatencyHigh",
        what="a session locks the table of the traces for 2 s, again and again",
        inject=locked_again_and_again("SHARE", Monitored.write_trace),
    ),
    Fault(
        alert="StorageQueryLatencyHigh",
        what="a session locks the table of the traces against reads for 2 s, again and again",
        inject=locked_again_and_again("ACCESS EXCLUSIVE", _read),
    ),
    Fault(
        alert="StorageWriteBacklog",
        what="the privilege to insert traces is revoked, so that batches cannot be stored",
        inject=every_write_fails,
    ),
)
