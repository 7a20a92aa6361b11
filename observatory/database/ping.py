"""Whether a server answers within a limit, on a connection that is idle otherwise, and whether it accepts writes."""

from __future__ import annotations

import select
import time

import psycopg
from psycopg.pq import ConnStatus, ExecStatus

from observatory.database.connection import connect
from observatory.database.errors import UnreachableError


def answered(connection: psycopg.Connection, *, sent: bool, timeout_s: float) -> bool | None:
    """Return whether the server answers a query, False if the connection is lost, None if it is silent.

    Args:
        connection: that no other code uses.
        sent: whether the query of an earlier call is still without an answer.
        timeout_s: seconds to wait for the answer.
    """
    pgconn, deadline = connection.pgconn, time.monotonic() + timeout_s
    try:
        if not sent:
            pgconn.send_query(b"SELECT")
        pgconn.flush()
        while True:
            pgconn.consume_input()
            if not pgconn.is_busy():
                result = pgconn.get_result()
                if result is None:
                    return pgconn.status == ConnStatus.OK
                if result.status != ExecStatus.TUPLES_OK:
                    return False
                continue
            if not select.select([pgconn.socket], [], [], max(0.0, deadline - time.monotonic()))[0]:
                return None
    except (psycopg.Error, OSError, ValueError):  # the socket is closed
        return False


def is_writable(conninfo: str) -> bool:
    """Return whether a new connection to the server can write: it runs, and is no standby."""
    try:
        with connect(conninfo, purpose="wait for the primary") as connection:
            return connection.execute("SELECT NOT pg_is_in_recovery()").fetchone() == (True,)
    except (UnreachableError, psycopg.OperationalError):
        return False
