"""Whether a server answers within a limit, on a connection that is idle otherwise, and whether it accepts writes."""

from __future__ import annotations

import contextlib
import select
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import psycopg
from psycopg.pq import ConnStatus, ExecStatus

from observatory.database.connection import connect
from observatory.database.errors import UnreachableError

ANSWER_S = 10.0
_PRIMARY = b"SELECT NOT pg_is_in_recovery()"


@dataclass(frozen=True)
class Watched:
    """A server that is watched.

    Attributes:
        accepted_at_first: whether it accepted writes at the beginning.
        accepted_writes: returns whether it has accepted writes since the beginning.
    """

    accepted_at_first: bool
    accepted_writes: Callable[[], bool]


def answered(
    connection: psycopg.Connection,
    *,
    sent: bool,
    timeout_s: float,
    query: bytes = b"SELECT",
    expected: bytes | None = None,
) -> bool | None:
    """Return whether the server answers a query, False if the connection is lost, None if it is silent.

    Args:
        connection: that no other code uses.
        sent: whether the query of an earlier call is still without an answer.
        timeout_s: seconds to wait for the answer.
        query: to send.
        expected: the value that it must answer; False if it answers another one.
    """
    pgconn, deadline = connection.pgconn, time.monotonic() + timeout_s
    try:
        if not sent:
            pgconn.send_query(query)
        pgconn.flush()
        while True:
            pgconn.consume_input()
            if not pgconn.is_busy():
                result = pgconn.get_result()
                if result is None:
                    return pgconn.status == ConnStatus.OK
                if result.status != ExecStatus.TUPLES_OK or (expected and result.get_value(0, 0) != expected):
                    return False
                continue
            if not select.select([pgconn.socket], [], [], max(0.0, deadline - time.monotonic()))[0]:
                return None
    except (psycopg.Error, OSError, ValueError):  # the socket is closed
        return False


@contextlib.contextmanager
def watched(conninfo: str) -> Iterator[Watched]:
    """Watch whether the server accepts writes from the beginning of the block.

    A session of its own shows it: a server that stops, crashes or recovers ends them all.
    """
    with contextlib.ExitStack() as opened:
        try:
            session = opened.enter_context(connect(conninfo, purpose="watch the server", settings={}))
        except UnreachableError:
            yield Watched(accepted_at_first=False, accepted_writes=lambda: False)
            return
        opened.callback(session.close)  # a commit on it would fail, or never end
        accepted = is_writable(conninfo)
        yield Watched(
            accepted_at_first=accepted,
            accepted_writes=lambda: (
                accepted and answered(session, sent=False, timeout_s=ANSWER_S) is True and is_writable(conninfo)
            ),
        )


def is_writable(conninfo: str) -> bool:
    """Return whether a new connection to the server can write within a limit: it runs, and is no standby."""
    try:
        with connect(conninfo, purpose="wait for the primary") as connection, contextlib.closing(connection):
            found = answered(connection, sent=False, timeout_s=ANSWER_S, query=_PRIMARY, expected=b"t")
            return found is True
    except (UnreachableError, psycopg.OperationalError):
        return False
