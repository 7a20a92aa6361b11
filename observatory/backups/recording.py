"""Recording values after a backup: under one exact snapshot, in a tenth of the time that the backup took.

Small tables are always counted. Of the others as many pieces as fit into the time: those of the newest chunks, and in
turn with them those that were not counted for the longest time, so that every piece is counted at last.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain, zip_longest
from queue import Empty, SimpleQueue

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from observatory.backups.exact_snapshot import (
    NOT_AFFECTED,
    PATIENCE_S,
    SETTINGS,
    ExactSnapshot,
    Table,
    ValuesNotRecordedError,
    exact_snapshot,
)
from observatory.backups.pgbackrest import PgBackRest
from observatory.backups.values import Piece, RecordedValues, ValueStore, count_piece
from observatory.database.connection import cancellable, connect
from observatory.database.errors import UnreachableError
from observatory.files.sockets import short_path
from observatory.interruption.parallel import in_parallel
from observatory.nodes import Paths
from observatory.runtime import Sandbox

SHARE = 0.1  # of the duration of the backup
LEAST_S, MOST_S = 0.3, 1.5  # a backup takes at most two seconds more than pgBackRest alone
WORKERS = 2  # as many as processes of pgBackRest
BLOCK_BYTES = 8192
PIECE_BLOCKS = 1024
SMALL_BYTES = 4 << 20
SMALL_S = 10  # for one small table, on a busy machine
NEVER = datetime.min.replace(tzinfo=UTC)

_SIZE = "SELECT pg_relation_size(c.oid) FROM pg_class c WHERE c.oid = %s AND c.relfilenode = %s"
_STORAGE = "SELECT pg_relation_filenode(%s::oid)"
_RESTORE_POINT = "SELECT pg_create_restore_point(%s)"

Key = tuple[str, int]


def budget(seconds: float) -> float:
    """Return the seconds that values may take after a backup of so many seconds."""
    return min(MOST_S, max(LEAST_S, SHARE * seconds))


@dataclass(frozen=True, kw_only=True)
class _Part:
    """Some blocks of a table; `end` is None for the last ones."""

    table: Table
    first: int
    end: int | None
    bytes: int
    small: bool = False

    @property
    def key(self) -> Key:
        return self.table.qualified, self.first


def record_values(
    conninfo: str,
    *,
    budget_s: float,
    last_compared: Mapping[Key, datetime] | None = None,
    patience_s: float = PATIENCE_S,
) -> RecordedValues:
    """Count rows of a database under an exact snapshot, and return their numbers and checksums.

    Args:
        conninfo: to the database, as superuser.
        budget_s: seconds after which no further piece is counted.
        last_compared: when each piece was last counted, by table and first block.
        patience_s: seconds to wait for transactions that write.

    Raises:
        ValuesNotRecordedError: they did not end in time.
        UnreachableError: the server is unreachable.
    """
    started = time.monotonic()
    with exact_snapshot(conninfo, patience_s=patience_s) as snapshot:
        parts = _parts(conninfo, snapshot)
        queue: SimpleQueue[_Part] = SimpleQueue()
        for part in _ordered(parts, last_compared or {}):
            queue.put(part)
        deadline = time.monotonic() + budget_s
        counts = in_parallel(lambda _worker: _count(conninfo, snapshot, queue, deadline), range(WORKERS))
        counted = [each for found in counts for each in found]
    name = f"{snapshot.taken.astimezone(UTC):%Y%m%dT%H%M%S}.{snapshot.taken.microsecond:06d}Z"
    database = _end_with_restore_point(conninfo, f"observatory-values-{name}")
    return RecordedValues(
        name=name,
        recorded=snapshot.taken,
        database=database,
        system=snapshot.system,
        timeline=snapshot.timeline,
        lsn=snapshot.lsn,
        tables={each.qualified: each.kind for each in snapshot.tables},
        left_out=tuple(sorted(snapshot.left_out)),
        bytes=sum(part.bytes for part in parts),
        compared_bytes=sum(part.bytes for part, _ in counted),
        pieces=tuple(piece for _, piece in sorted(counted, key=lambda each: each[0].key)),
        seconds=round(time.monotonic() - started, 3),
    )


def record_after_backup(sandbox: Sandbox, *, seconds: float) -> RecordedValues:
    """Record the values of the stack's database, and return them.

    Args:
        sandbox: of the stack, which is up.
        seconds: that the backup took.

    Raises:
        ValuesNotRecordedError: transactions on the tables did not end in time, or the server did not answer.
        BackupError: the stack has no settings of a repository yet.
    """
    store = ValueStore(sandbox)
    try:
        with live_conninfo(sandbox) as conninfo:
            values = record_values(conninfo, budget_s=budget(seconds), last_compared=store.last_compared())
    except (UnreachableError, psycopg.Error) as error:
        raise ValuesNotRecordedError(
            f"the values of the tables were not recorded: {error}", remedy=NOT_AFFECTED
        ) from error
    store.add(values)
    return values


@contextlib.contextmanager
def live_conninfo(sandbox: Sandbox) -> Iterator[str]:
    """Yield the superuser's connection string to the stack's database.

    Raises:
        ValuesNotRecordedError: an earlier release wrote the settings, without the database's name.
        BackupError: the stack has no settings of a repository yet.
    """
    settings = PgBackRest(sandbox).settings()
    if "database" not in settings:
        raise ValuesNotRecordedError(
            "the values of the tables were not recorded: the stack is of an earlier release",
            remedy="Run `observatory up`.",
        )
    with short_path(sandbox.host_path(Paths().postgres_socket)) as host:
        yield make_conninfo(host=host, port=settings["port"], user="postgres", dbname=settings["database"])


def _end_with_restore_point(conninfo: str, name: str) -> str:
    """Write a record after the snapshot's place, so that a recovery can stop there; return the database's name."""
    with connect(conninfo, purpose="backup values") as connection:
        connection.execute(_RESTORE_POINT.encode(), [name])
        return connection.info.dbname


def _parts(conninfo: str, snapshot: ExactSnapshot) -> list[_Part]:
    with connect(conninfo, purpose="backup values", settings=SETTINGS) as connection:
        return [part for table in snapshot.tables for part in _parts_of(connection, table)]


def _parts_of(connection: psycopg.Connection, table: Table) -> Iterator[_Part]:
    """Yield the parts of a table; the last one has no end, because rows may be added meanwhile."""
    row = connection.execute(_SIZE.encode(), [table.oid, table.storage]).fetchone()
    if row is None or row[0] is None:  # removed or rewritten meanwhile
        return
    blocks = row[0] // BLOCK_BYTES
    small = table.kind == "table" and row[0] <= SMALL_BYTES
    starts = range(0, max(blocks, 1), PIECE_BLOCKS)
    for first in starts:
        end = first + PIECE_BLOCKS
        is_last = first == starts[-1]
        size = ((blocks if is_last else end) - first) * BLOCK_BYTES
        yield _Part(table=table, first=first, end=None if is_last else end, bytes=size, small=small)


def _ordered(parts: Iterable[_Part], last_compared: Mapping[Key, datetime]) -> Iterator[_Part]:
    """Yield the small tables, then parts of the newest chunks and the other parts in turn, oldest count first."""
    parts = sorted(parts, key=lambda part: last_compared.get(part.key, NEVER))
    newest: dict[int, int] = {}
    for part in parts:
        if part.table.hypertable is not None and part.table.newest is not None:
            newest[part.table.hypertable] = max(newest.get(part.table.hypertable, 0), part.table.newest)
    large = [part for part in parts if not part.small]
    first = [part for part in large if part.table.hypertable and part.table.newest == newest[part.table.hypertable]]
    rest = [part for part in large if part not in first]
    yield from (part for part in parts if part.small)
    yield from (part for part in chain.from_iterable(zip_longest(first, rest)) if part is not None)


def _count(
    conninfo: str, snapshot: ExactSnapshot, queue: SimpleQueue[_Part], deadline: float
) -> list[tuple[_Part, Piece]]:
    """Count parts from the queue until it is empty or the time is over."""
    counted: list[tuple[_Part, Piece]] = []
    with connect(conninfo, purpose="backup values", settings=SETTINGS) as connection:
        while True:
            try:
                part = queue.get_nowait()
            except Empty:
                return counted
            left = SMALL_S if part.small else deadline - time.monotonic()
            if left <= 0:
                return counted
            if piece := _counted(connection, snapshot, part, left):
                counted.append((part, piece))


def _counted(connection: psycopg.Connection, snapshot: ExactSnapshot, part: _Part, seconds: float) -> Piece | None:
    """Return the values of a part; None where the time was not enough, or the table was rewritten or removed."""
    table = part.table
    try:
        with cancellable(connection), connection.transaction():
            connection.execute(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(sql.Literal(snapshot.identifier)))
            connection.execute(sql.SQL("SET LOCAL statement_timeout = {}").format(max(1, round(seconds * 1000))))
            rows, checksum = count_piece(connection, (table.schema, table.name), part.first, part.end)
            # TRUNCATE and a rewrite show another state to this snapshot; the lock of the count now keeps them away.
            if connection.execute(_STORAGE.encode(), [table.oid]).fetchone() != (table.storage,):
                return None
    except (psycopg.errors.QueryCanceled, psycopg.errors.UndefinedTable):
        return None
    except psycopg.OperationalError as error:
        raise UnreachableError(f"the server ended the session that counted rows: {error}") from error
    return Piece(table=(table.schema, table.name), first=part.first, end=part.end, rows=rows, checksum=checksum)
