"""Marked rows and keys, which verify that a service can work, and of which nothing remains.

The rows have the provider `observatory.verification`, or `observatory.probe` during a bake. So they form a separate
group in every aggregate, and they have no price, so they do not change costs. They are removed at once, before an
aggregate is refreshed with them, since a refresh leaves out the newest minute. A later run removes the rows and keys of
a killed run.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal, LiteralString

import psycopg
from psycopg import sql

from observatory.database.roles.api_keys import insert_key, key_digest, new_key

Mark = Literal["observatory.verification", "observatory.probe"]
Scope = Literal["read", "write"]
Table = Literal["llm_traces", "llm_metrics", "llm_logs"]

MARK: Mark = "observatory.verification"
PROBE_MARK: Mark = "observatory.probe"
KEY_REQUESTS_PER_MINUTE = 1_000_000
# A run takes less time: what is older belongs to a killed run, and its keys have expired.
LONGEST_RUN: dict[Mark, timedelta] = {MARK: timedelta(minutes=10), PROBE_MARK: timedelta(minutes=1)}
COSTS = "cost_analysis_hourly"

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
# The conditions use indexes and the columns by which compressed chunks are segmented; the own rows are of this day.
_RUN: dict[Table, LiteralString] = {
    "llm_traces": """
        provider = %(mark)s AND model = %(mark)s AND ts > now() - INTERVAL '1 day'
        AND (trace_id = %(id)s OR environment = %(id)s)
    """,
    "llm_metrics": """
        metric_name = %(mark)s AND provider = %(mark)s AND model = %(mark)s AND ts > now() - INTERVAL '1 day'
        AND user_id = %(id)s
    """,
    "llm_logs": "provider = %(mark)s AND log_level = 'DEBUG' AND ts > now() - INTERVAL '1 day' AND trace_id = %(id)s",
}
# Rows and keys of killed runs, but not those of a run that is in progress.
_REMOVE_OLD: tuple[LiteralString, ...] = (
    """
    DELETE FROM llm_traces WHERE provider = %(mark)s AND model = %(mark)s AND ts < now() - %(longest)s
    """,
    """
    DELETE FROM llm_metrics WHERE metric_name = %(mark)s AND provider = %(mark)s AND model = %(mark)s
        AND ts < now() - %(longest)s
    """,
    """
    DELETE FROM llm_logs WHERE provider = %(mark)s AND log_level = 'DEBUG' AND ts < now() - %(longest)s
    """,
    "DELETE FROM api_keys WHERE name = %(mark)s AND expires_at < now()",
)
_REMOVE: tuple[LiteralString, ...] = (
    *(f"DELETE FROM {table} WHERE {condition}" for table, condition in _RUN.items()),  # noqa: S608 - constants
    "DELETE FROM api_keys WHERE name = %(mark)s AND key_hash = ANY (%(keys)s)",
)
_COSTS: LiteralString = "count(*), coalesce(sum(total_tokens), 0), coalesce(sum(total_cost_usd), 0)"
_SPANS: LiteralString = (
    f"SELECT span_id, input_text FROM llm_traces WHERE {_RUN['llm_traces']} AND trace_id = %(trace)s"  # noqa: S608
)


@dataclass(frozen=True, kw_only=True)
class MarkedRows:
    """The rows and keys of one run, as the role that owns the tables finds them.

    Attributes:
        owner: a connection as this role.
        mark: provider of the rows and name of the keys.
        run: `environment` or `trace_id` of the run's traces, `user_id` of its metrics and `trace_id` of its log lines.
        now: the database's time at the start of the run.
    """

    owner: psycopg.Connection
    mark: Mark
    run: str
    now: datetime
    _keys: list[str] = field(default_factory=list, init=False, repr=False)

    def add_key(self, *scopes: Scope) -> str:
        """Return a new key with these scopes; it expires in minutes, and the end of the run removes it."""
        key = new_key()
        self._keys.append(key)
        insert_key(
            self.owner,
            key,
            name=self.mark,
            scopes=scopes,
            rate_limit_rpm=KEY_REQUESTS_PER_MINUTE,
            expires_at=self.now + LONGEST_RUN[self.mark],
        )
        return key

    def spans(self, trace_id: str) -> dict[str, str | None]:
        """Return the text of each stored span of a trace of this run, by its id."""
        found = self.owner.execute(_SPANS, {**self._names, "trace": trace_id}).fetchall()
        return dict(found)

    def count(self, table: Table) -> int:
        """Return the number of this run's rows in a table."""
        query: LiteralString = f"SELECT count(*) FROM {table} WHERE {_RUN[table]}"  # noqa: S608 - constants
        return int((self.owner.execute(query, self._names).fetchone() or (0,))[0])

    def costs(self) -> tuple[int, int, float]:
        """Return number, tokens and costs in USD of this run's traces."""
        query: LiteralString = f"SELECT {_COSTS} FROM llm_traces WHERE {_RUN['llm_traces']}"  # noqa: S608 - constants
        count, tokens, cost = self.owner.execute(query, self._names).fetchone() or (0, 0, 0.0)
        return int(count), int(tokens), float(cost)

    @property
    def has_costs(self) -> bool:
        """Whether the schema has the aggregate of costs."""
        return self.owner.execute("SELECT to_regclass(%s) IS NOT NULL", [COSTS]).fetchone() == (True,)

    def remove(self) -> None:
        """Remove the rows and keys of this run."""
        for statement in _REMOVE:
            self.owner.execute(statement, {**self._names, "keys": [key_digest(key) for key in self._keys]})

    def remove_old(self) -> None:
        """Remove the rows and keys of killed runs with any mark."""
        for mark, longest in LONGEST_RUN.items():
            for statement in _REMOVE_OLD:
                self.owner.execute(statement, {"mark": mark, "longest": longest})

    @property
    def _names(self) -> dict[str, str]:
        return {"mark": self.mark, "id": self.run}


@contextlib.contextmanager
def marked_rows(owner: psycopg.Connection, *, mark: Mark = MARK, clean: bool = True) -> Iterator[MarkedRows]:
    """Yield the rows of one run. The end of the block removes them.

    Args:
        owner: a connection as the role that owns the tables, which must exist.
        mark: provider of the rows.
        clean: remove what killed runs have left, too.
    """
    [now] = owner.execute("SELECT now()").fetchone() or (None,)
    rows = MarkedRows(owner=owner, mark=mark, run=f"{mark}.{uuid.uuid4()}", now=now)
    try:
        yield rows
    finally:
        rows.remove()
        if clean:
            rows.remove_old()


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
