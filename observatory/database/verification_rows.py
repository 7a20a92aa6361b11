"""Reads and writes as the service does, to see that it can.

The rows are marked: provider `observatory.verification`, in a group of their own in every aggregate and without a
price, so that they are in nobody's costs. They are removed at once; what a killed run left, the next one removes.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator, Sequence
from typing import LiteralString

import psycopg
from psycopg import sql

MARK = "observatory.verification"

_WRITE: tuple[LiteralString, ...] = (
    """
    INSERT INTO llm_traces (ts, trace_id, span_id, span_name, provider, model, input_type, duration_ms, status_code)
    VALUES (now(), %(id)s, 'verification', 'verification', %(mark)s, %(mark)s, 'text', 0, 'UNSET')
    """,
    """
    INSERT INTO llm_metrics (ts, metric_name, metric_type, provider, model, user_id, value)
    VALUES (now(), %(mark)s, 'gauge', %(mark)s, %(mark)s, %(id)s, 0)
    """,
    """
    INSERT INTO llm_logs (ts, trace_id, log_level, message, provider)
    VALUES (now(), %(id)s, 'DEBUG', 'verification', %(mark)s)
    """,
)
_READ_BACK: LiteralString = "SELECT count(*) FROM llm_traces WHERE trace_id = %(id)s"
# One's own, and those of a run that was killed; not those of another run that is still at it. The conditions are those
# of indexes, and of the columns that compressed chunks are segmented by.
_REMOVE: tuple[LiteralString, ...] = (
    """
    DELETE FROM llm_traces WHERE provider = %(mark)s AND model = %(mark)s
        AND (trace_id = %(id)s OR ts < now() - INTERVAL '10 minutes')
    """,
    """
    DELETE FROM llm_metrics WHERE metric_name = %(mark)s AND provider = %(mark)s AND model = %(mark)s
        AND (user_id = %(id)s OR ts < now() - INTERVAL '10 minutes')
    """,
    """
    DELETE FROM llm_logs WHERE provider = %(mark)s AND log_level = 'DEBUG'
        AND (trace_id = %(id)s OR ts < now() - INTERVAL '10 minutes')
    """,
)


@contextlib.contextmanager
def marked_rows(owner: psycopg.Connection) -> Iterator[str]:
    """Give an id for the rows of one run; when the block ends they are removed, and what killed runs left.

    Args:
        owner: a connection of the role that owns the tables, which exist.
    """
    run = f"{MARK}.{uuid.uuid4()}"
    try:
        yield run
    finally:
        for statement in _REMOVE:
            owner.execute(statement, {"id": run, "mark": MARK})


def write_and_read_back(service: psycopg.Connection, run: str) -> None:
    """Add a marked row to each table, committed, and find the trace again.

    Raises:
        psycopg.Error: PostgreSQL refused.
        LookupError: the trace is not there.
    """
    for statement in _WRITE:
        service.execute(statement, {"id": run, "mark": MARK})
    if service.execute(_READ_BACK, {"id": run}).fetchone() != (1,):
        raise LookupError("the trace that was written a moment ago cannot be read")


def read(service: psycopg.Connection, stored: Sequence[str], views: Sequence[str]) -> None:
    """Read a row of each relation, named `schema.name`; of a view none, which may have to look at every trace first.

    Raises:
        psycopg.Error: PostgreSQL refused.
    """
    for rows, relations in ((1, stored), (0, views)):
        for relation in relations:
            name = sql.Identifier(*relation.split(".", 1))
            service.execute(sql.SQL("SELECT FROM {} LIMIT {}").format(name, rows)).fetchall()
