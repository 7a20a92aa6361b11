"""The database that `benchmarks.backups` backs up: its rows, their changes, and a client beside a rollback."""

from __future__ import annotations

import base64
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import count
from types import TracebackType
from typing import Self

import psycopg

from observatory.backups.pgbackrest import SWITCH
from observatory.waiting import wait_until

GB = 10**9
WRITERS, BATCH = 2, 20_000
TEXT_BYTES = 1500  # random base64: zstd leaves three quarters of it; a row is too short to be stored apart
FIRST_DAY, DAYS = 40, 30  # before today: older than any aggregate's refresh, younger than the retention
SEGMENT_BYTES = 16 << 20
SMALL_SHARE = 1000  # changes some WAL segments of each GB
PAUSE_S, CONNECT_S, PATIENCE_S = 0.02, 5, 120
COPY = (
    "COPY llm_traces (ts, trace_id, span_id, span_name, provider, model, input_type, input_text, duration_ms, "
    "status_code, user_id) FROM STDIN"
)
CHANGE = "UPDATE llm_traces SET duration_ms = duration_ms + 1 WHERE hashtext(span_id) % {} = 0"
WRITE = "INSERT INTO llm_logs (ts, log_level, message) VALUES (now(), 'INFO', 'beside a rollback')"


@dataclass(frozen=True)
class Database:
    """The live database of a stack; `conninfo` is its superuser's."""

    conninfo: str

    def fill(self, size: int) -> int:
        """Add rows until the database has so many bytes, and return how many. Their WAL is not archived."""
        with self._not_archiving(), ThreadPoolExecutor(WRITERS) as pool:
            numbers = count()
            rows = sum(pool.map(lambda _: self._fill(size, numbers), range(WRITERS)))
            self._execute("VACUUM (ANALYZE) llm_traces")
        return rows

    def change(self, share: int = 100) -> int:
        """Change one row of so many, all over the table, and return how many."""
        with self.connect() as connection:
            return connection.execute(CHANGE.format(share).encode()).rowcount

    def write_wal(self, until: int) -> None:
        """Change rows until the WAL has reached a position."""
        for number in count():
            if self.position() >= until:
                return
            self.change(SMALL_SHARE + number)

    def position(self) -> int:
        """Return the position of the WAL, in bytes."""
        with self.connect() as connection:
            return int(connection.execute("SELECT pg_current_wal_insert_lsn() - '0/0'").fetchall()[0][0])

    def now(self) -> str:
        """Return the time of now, which a later transaction follows in the archive."""
        with self.connect() as connection:
            [(at,)] = connection.execute("SELECT clock_timestamp()::text").fetchall()
            connection.execute(WRITE)
            [(segment,)] = connection.execute(SWITCH.encode()).fetchall()
            archived = f"SELECT last_archived_wal >= '{segment}' FROM pg_stat_archiver"  # noqa: S608 - of the server
            if not wait_until(lambda: connection.execute(archived.encode()).fetchall() == [(True,)], PATIENCE_S):
                raise RuntimeError(f"WAL segment {segment} was not archived within {PATIENCE_S} s")
        return str(at)

    def connect(self) -> psycopg.Connection:
        """Return a connection in autocommit mode."""
        return psycopg.connect(self.conninfo, autocommit=True)

    def _fill(self, size: int, numbers: Iterator[int]) -> int:
        rows = 0
        with self.connect() as connection:
            while self._size(connection) < size:
                with connection.cursor().copy(COPY) as copy:
                    copy.write(_batch(next(numbers)))
                rows += BATCH
        return rows

    @contextmanager
    def _not_archiving(self) -> Iterator[None]:
        """Throw WAL away inside the block, as its archive would need as much of the disk as the rows."""
        self._set("SET archive_command = '/bin/true'")
        try:
            yield
        finally:
            self._set("RESET archive_command")

    def _set(self, setting: str) -> None:
        before = self._archive_command()
        self._execute(f"ALTER SYSTEM {setting}")
        self._execute("SELECT pg_reload_conf()")
        wait_until(lambda: self._archive_command() != before, PATIENCE_S)

    def _archive_command(self) -> str:
        with self.connect() as connection:
            return str(connection.execute("SHOW archive_command").fetchall()[0][0])

    def _execute(self, statement: str) -> None:
        with self.connect() as connection:
            connection.execute(statement.encode())

    def _size(self, connection: psycopg.Connection) -> int:
        return int(connection.execute("SELECT pg_database_size(current_database())").fetchall()[0][0])


def _batch(number: int) -> str:
    """Return rows of one day as COPY reads them."""
    midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    day = midnight - timedelta(days=FIRST_DAY - number % DAYS)
    text = base64.b64encode(os.urandom(BATCH * TEXT_BYTES // 4 * 3)).decode()
    ids = os.urandom(BATCH * 8).hex()
    rows = (
        f"{day + timedelta(milliseconds=4 * n, microseconds=number // DAYS)}\t{number:016x}{n:016x}\t"
        f"{ids[n * 16 : n * 16 + 16]}\tchat.completions\tbench\tmodel-{n % 7}\ttext\t"
        f"{text[n * TEXT_BYTES : (n + 1) * TEXT_BYTES]}\t{n % 5000}\tOK\tuser-{n % 500}\n"
        for n in range(BATCH)
    )
    return "".join(rows)


class Client:
    """Writes a row through the pooler each `PAUSE_S` while the block runs, and connects again after an error."""

    def __init__(self, conninfo: str) -> None:
        self.conninfo = conninfo
        self.writes, self.failed, self.longest_s = 0, 0, 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._write_all)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def _write_all(self) -> None:
        last = time.monotonic()
        while not self._over.is_set():
            try:
                with psycopg.connect(self.conninfo, autocommit=True, connect_timeout=CONNECT_S) as connection:
                    while not self._over.wait(PAUSE_S):
                        connection.execute(WRITE)
                        self.longest_s = max(self.longest_s, time.monotonic() - last)
                        last, self.writes = time.monotonic(), self.writes + 1
            except psycopg.Error:
                self.failed += 1
        self.longest_s = max(self.longest_s, time.monotonic() - last)
