"""Reads and writes marked rows with the service's login, to verify that the service can work.

The rows have the provider `observatory.verification`, so they form a separate group in every aggregate, and no price,
so they do not change costs. They are removed at once; the rows of a killed run are removed by a later run.
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
# Removes the rows of this run and of killed runs, but not of a run that is in progress. The conditions use indexes and
# the columns by which compressed chunks are segmented.
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
    """Yield an id for the rows of one run. The end of the block removes them, and the rows of killed runs.

    Args:
        owner: a connection as the role that owns the tables, which must exist.
    """
    run = f"{MARK}.{uuid.uuid4()}"
    try:
        yield run
    finally:
        for statement in _REMOVE:
            owner.execute(statement, {"id": run, "mark": MARK})


def write_and_read_back(service: psycopg.Connection, run: str) -> None:
    """Insert and commit a marked row in each table, then read the trace back.

    Raises:
        psycopg.Error: PostgreSQL rejected a statement.
        LookupError: the trace is missing.
    """
    for statement in _WRITE:
        service.execute(statement, {"id": run, "mark": MARK})
    if service.execute(_READ_BACK, {"id": run}).fetchone() != (1,):
        raise LookupError("the committed trace cannot be read back")


def read(service: psycopg.Connection, stored: Sequence[str], views: Sequence[str]) -> None:
    """Read a row of each stored relation, named `schema.name`, and no row of a view, which may scan every trace.

    Raises:
        psycopg.Error: PostgreSQL rejected a statement.
    """
    for rows, relations in ((1, stored), (0, views)):
        for relation in relations:
            name = sql.Identifier(*relation.split(".", 1))
            service.execute(sql.SQL("SELECT FROM {} LIMIT {}").format(name, rows)).fetchall()
