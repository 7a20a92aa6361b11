"""A query that waits no longer for its answer than a limit, on a connection that is idle otherwise."""

from __future__ import annotations

import select
import time

import psycopg
from psycopg.pq import ConnStatus, ExecStatus


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
