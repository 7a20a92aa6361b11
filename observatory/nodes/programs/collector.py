"""Shows Prometheus what no packaged exporter has: of PostgreSQL, of TimescaleDB's jobs, and of failed logins.

    storage_pg_checksum_failures_total{datname}
    storage_pg_plaintext_sessions
    storage_pg_auth_failures_total{server,sqlstate}
    timescaledb_job_last_run_failed{job_id,application_name,hypertable}
    timescaledb_job_overdue_seconds{job_id,application_name,hypertable}
    timescaledb_chunks_overdue_compression{hypertable,policy}
    timescaledb_aggregate_lag_seconds{aggregate}
    storage_collector_success{query}, storage_collector_duration_seconds{query}

Queries run in the background, read-only and for `STATEMENT_MS` at most, in one session. A query that fails, returns
nothing, or does not end has the success 0, and its series are absent. In the result of a query a column with the name
of a metric is its value, and the other columns are labels.

On TimescaleDB's Apache edition the schema's owner logs in for the three queries of the jobs that stand in for policies:
pg_cron shows a job to its owner only.

Failed logins, and failed jobs of pg_cron, are read from the servers' logs, through rotations. Counts and positions are
kept in the file `--state`, so that a restart neither loses a line nor sets a counter back. No label has the text of a
client.
"""

from __future__ import annotations

import argparse
import calendar
import contextlib
import json
import os
import re
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, NoReturn

FAST_S, SLOW_S = 5, 30  # between the starts of two runs
STATEMENT_MS = 5000
SESSION_OPTIONS = f"-c statement_timeout={STATEMENT_MS} -c lock_timeout=1000 -c default_transaction_read_only=on"
CONNECT_S = 5
GRACE_S = 20  # after which a query that has not ended counts as failed
CLIENT_S = 10
READ_BYTES, LINE_BYTES, JOURNAL_LINES = 1 << 20, 1 << 16, 100_000

_CHECKSUMS = """
SELECT coalesce(datname, '(shared)') AS datname, checksum_failures AS storage_pg_checksum_failures_total
FROM pg_stat_database WHERE checksum_failures IS NOT NULL"""

# A role without the right to see other sessions would count none of them.
_PLAINTEXT = """
SELECT count(*) AS storage_pg_plaintext_sessions FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)
WHERE NOT ssl AND client_addr IS NOT NULL HAVING pg_has_role('pg_read_all_stats', 'USAGE')"""

_MACROS = {
    "<name>": "coalesce(<of view>, <of j.hypertable>, '')",
    "<of view>": "CASE view_schema WHEN 'public' THEN view_name ELSE view_schema || '.' || view_name END",
    "<of j.hypertable>": """CASE j.hypertable_schema WHEN 'public' THEN j.hypertable_name
    ELSE j.hypertable_schema || '.' || j.hypertable_name END""",
    "<policies>": """timescaledb_information.jobs j LEFT JOIN timescaledb_information.continuous_aggregates
    ON materialization_hypertable_schema = j.hypertable_schema
    AND materialization_hypertable_name = j.hypertable_name""",
    # Between two runs by a schedule of pg_cron.
    "<period>": """CASE WHEN schedule LIKE '%%second%%' THEN split_part(schedule, ' ', 1)::int
    WHEN schedule ~ '^\\S+/\\d' THEN 60 * substring(schedule FROM '/(\\d+)')::int WHEN schedule LIKE '* %%' THEN 60
    WHEN split_part(schedule, ' ', 2) = '*' THEN 3600 ELSE 86400 END""",
}


def _filled(sql: str) -> str:
    for name, text in _MACROS.items():
        sql = sql.replace(name, text)
    return sql


_JOBS = _filled("""
SELECT job_id, application_name, <name> AS hypertable,
  coalesce(last_run_status = 'Failed', false)::int AS timescaledb_job_last_run_failed,
  CASE WHEN scheduled THEN greatest(0, extract(epoch FROM now() - CASE WHEN isfinite(s.next_start) THEN s.next_start
    ELSE schedule_interval + CASE WHEN isfinite(last_run_started_at) THEN last_run_started_at
      ELSE pg_postmaster_start_time() END END)) ELSE 0 END AS timescaledb_job_overdue_seconds
FROM <policies> LEFT JOIN timescaledb_information.job_stats s USING (job_id) WHERE job_id >= 1000""")

_CHUNKS = _filled("""
SELECT <name> AS hypertable, 'compression' AS policy, count(*) FILTER (WHERE NOT is_compressed
  AND range_end < now() - (config->>'compress_after')::interval - 2 * schedule_interval)
  AS timescaledb_chunks_overdue_compression
FROM <policies> LEFT JOIN timescaledb_information.chunks c
ON (c.hypertable_schema, c.hypertable_name) = (j.hypertable_schema, j.hypertable_name)
WHERE config ? 'compress_after' GROUP BY 1""")

# One that no policy refreshes is late too.
_AGGREGATES = _filled("""
SELECT <of view> AS aggregate, greatest(0, extract(epoch FROM now() - coalesce(schedule_interval, '0')
  - CASE WHEN isfinite(last_successful_finish) THEN last_successful_finish ELSE pg_postmaster_start_time() END))
  AS timescaledb_aggregate_lag_seconds
FROM timescaledb_information.continuous_aggregates LEFT JOIN timescaledb_information.jobs j
ON materialization_hypertable_schema = j.hypertable_schema AND materialization_hypertable_name = j.hypertable_name
AND proc_name = 'policy_refresh_continuous_aggregate' LEFT JOIN timescaledb_information.job_stats USING (job_id)""")

_CRON_JOBS = _filled("""
SELECT jobid AS job_id, substr(jobname, 14) AS application_name,
  coalesce(regexp_replace(substring(command FROM $$'(.+?)'$$), '^public\\.', ''), '') AS hypertable,
  coalesce((%(failed)s::json ->> jobid::text)::float + 60 + <period> > extract(epoch FROM now()), false)::int
    AS timescaledb_job_last_run_failed,
  CASE WHEN NOT active OR pg_is_in_recovery() THEN 0
    WHEN launcher IS NULL THEN extract(epoch FROM now() - pg_postmaster_start_time())
    ELSE greatest(0, extract(epoch FROM now() - begun) - <period>) END AS timescaledb_job_overdue_seconds
FROM cron.job LEFT JOIN (SELECT query, min(backend_start) AS begun FROM pg_stat_activity
  WHERE backend_type = 'pg_cron' GROUP BY 1) AS running ON query = command
LEFT JOIN (SELECT min(pid) AS launcher FROM pg_stat_activity WHERE backend_type = 'pg_cron launcher') AS l ON true
WHERE starts_with(jobname, 'observatory: ')""")

_CRON_CHUNKS = """
SELECT regexp_replace(found[1], '^public\\.', '') AS hypertable, 'retention' AS policy, count(*) FILTER (
  WHERE range_end < now() - found[2]::interval - interval '2 hours') AS timescaledb_chunks_overdue_compression
FROM observatory.jobs, regexp_match(command, $$drop_old_chunks\\('(.+?)', INTERVAL '(.+?)'\\)$$) AS found
LEFT JOIN timescaledb_information.chunks ON hypertable_schema || '.' || hypertable_name = found[1]
WHERE found IS NOT NULL GROUP BY 1"""

# A refresh that has nothing to write notes its time once a day only, so what it should have written is looked for.
# While the server was down none could run: after a start one is late from its first period on.
_CRON_AGGREGATES = _filled("""
SELECT a.name AS aggregate, greatest(0, least(extract(epoch FROM now() - pg_postmaster_start_time()) - period,
  greatest(0, extract(epoch FROM now() - refreshed_at) - 86400 - period, extract(epoch FROM now() - time_bucket(bucket,
  CASE WHEN a.name = 'llm_error_summary' THEN (SELECT ts FROM public.llm_traces
    WHERE status_code = 'ERROR' AND ts >= since AND ts < until ORDER BY ts LIMIT 1)
  WHEN a.name ~ '^(llm_metrics_1(min|hour|day)|cost_analysis_hourly)$' THEN (SELECT ts FROM public.llm_traces
    WHERE ts >= since AND ts < until ORDER BY ts LIMIT 1) END) - bucket - refresh_to) - period)))
  AS timescaledb_aggregate_lag_seconds
FROM observatory.aggregates a LEFT JOIN observatory.jobs j ON j.name = 'refresh ' || a.name,
coalesce(<period>, 0) AS period, coalesce(refreshed_until, '-infinity') AS since,
time_bucket(bucket, now() - refresh_to) AS until""")

_STANDS_IN = """
SELECT EXISTS (SELECT FROM pg_class JOIN pg_namespace n ON n.oid = relnamespace
  WHERE nspname = 'observatory' AND relname = 'aggregates')"""

# A line of PostgreSQL begins with its log_line_prefix, in which only the time and the process precede the SQLSTATE.
_POSTGRESQL = re.compile(
    rb"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)\.\d+ \S+ \[\d+\] (\S+) (?:LOG:  cron job (\d+))?", re.MULTILINE
)
_SQLSTATE = re.compile(r"[0-9A-Z]{5}")
_PGBOUNCER = re.compile(rb"pooler error: \S+ authentication failed$", re.MULTILINE)
_COUNTED = ("postgresql 28P01", "postgresql 28000", "pgbouncer 28P01")

Sample = tuple[str, tuple[tuple[str, str], ...]]


@dataclass(kw_only=True)
class Query:
    """What is measured at once, its result, and when its last run ended."""

    name: str
    interval_s: float
    run: Callable[[], Mapping[Sample, float]]
    samples: Mapping[Sample, float] = field(default_factory=dict)
    seconds: float = 0
    ended: float = field(default_factory=time.monotonic)
    due: float = 0
    error: str = ""

    def measure(self) -> None:
        """Run it, keep the result, and write to the log when it begins or ceases to fail."""
        begun, samples, error = time.monotonic(), dict[Sample, float](), ""
        try:
            samples = dict(self.run())
            error = "" if samples else "it returned nothing"
        except Exception as problem:  # of the driver, or of a file: whatever it is, nothing was measured
            error = f"{type(problem).__name__}: {problem}".strip().partition("\n")[0]
        self.samples, self.ended = samples, time.monotonic()
        self.seconds, self.due = self.ended - begun, begun + self.interval_s
        if error != self.error:
            self.error = error
            sys.stderr.write(f"{self.name}: {error or 'succeeds'}\n")

    def exposed(self) -> Iterator[tuple[Sample, float]]:
        """Yield the series."""
        fresh = time.monotonic() - self.ended < self.interval_s + GRACE_S
        query = (("query", self.name),)
        yield ("storage_collector_success", query), float(fresh and bool(self.samples))
        yield ("storage_collector_duration_seconds", query), self.seconds
        if fresh:
            yield from self.samples.items()


class Database:
    """The session of a role, which is opened again after a failure."""

    def __init__(self, options: str) -> None:
        self._options = options
        self._session: Any = None

    def rows(self, sql: str, values: Mapping[str, str] | None = None) -> tuple[list[str], list[tuple[Any, ...]]]:
        """Return the names of the columns, and the rows."""
        import psycopg2  # type: ignore[import-untyped] # noqa: PLC0415 - of the machine: Patroni needs it too

        try:
            if self._session is None:
                self._session = psycopg2.connect(self._options)
                self._session.autocommit = True
            with self._session.cursor() as cursor:
                cursor.execute(sql, values)
                return [column.name for column in cursor.description], cursor.fetchall()
        except psycopg2.Error:
            self.close()
            raise

    def close(self) -> None:
        """End the session."""
        if self._session is not None:
            with contextlib.suppress(Exception):
                self._session.close()
        self._session = None


def samples_of(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> dict[Sample, float]:
    """Return the value of each series of a result."""
    metrics = [name for name in columns if name.startswith(("storage_", "timescaledb_"))]
    found: dict[Sample, float] = {}
    for row in rows:
        values = dict(zip(columns, row, strict=True))
        labels = tuple((name, str(values[name])) for name in columns if name not in metrics)
        found.update({(metric, labels): float(values[metric]) for metric in metrics})
    return found


class LogFile:
    """A log that another program writes and rotates: the lines since a position, its inode and offset."""

    def __init__(self, path: Path, position: Sequence[int] | None) -> None:
        self._path = path
        self._file: int | None = None
        self.position = list(position or ())

    def chunks(self) -> Iterator[bytes]:
        """Yield the complete lines that were written since the last call, in pieces.

        Once the path has a new file, its writer has left the renamed one.

        Raises:
            OSError: there is no such file, or it cannot be read.
        """
        if self._file is None:
            self._begin()
        try:
            inode = self._path.stat().st_ino
        except FileNotFoundError:  # between the two steps of a rotation, or removed: its writer still has it open
            inode = self.position[0]
        yield from self._rest()
        if inode != self.position[0]:
            self._switch(self._path, 0)
            yield from self._rest()

    def _begin(self) -> None:
        """Continue where the last process ended, in the renamed file if need be; the first one begins at the end."""
        if not self.position:
            self._switch(self._path, self._path.stat().st_size)
            return
        inode, offset = self.position
        renamed = self._path.parent.glob(f"{self._path.name}[-.]*")
        path = next((each for each in (self._path, *renamed) if each.stat().st_ino == inode), None)
        self._switch(path or self._path, offset if path else 0)

    def _switch(self, path: Path, offset: int) -> None:
        opened = os.open(path, os.O_RDONLY)
        if self._file is not None:
            os.close(self._file)
        self._file, self.position = opened, [os.fstat(opened).st_ino, offset]

    def _rest(self) -> Iterator[bytes]:
        size = os.fstat(self._file or 0).st_size
        if size < self.position[1]:  # it was truncated
            self.position[1] = 0
        while self.position[1] < size:
            read = os.pread(self._file or 0, READ_BYTES, self.position[1])
            end = read.rfind(b"\n") + 1 or (len(read) if len(read) >= LINE_BYTES else 0)
            if not end:
                return
            self.position[1] += end
            yield read[:end]


class Journal:
    """A unit's log in systemd's journal; journalctl keeps the position in the file `cursor`."""

    position = ()

    def __init__(self, unit: str, cursor: Path) -> None:
        self._command = (
            *("journalctl", "--quiet", "--output=cat", f"--lines={JOURNAL_LINES}"),
            *(f"--unit={unit}", f"--cursor-file={cursor}"),
        )

    def chunks(self) -> Iterator[bytes]:
        """Yield the lines since the last call."""
        yield subprocess.run(self._command, check=True, capture_output=True, timeout=GRACE_S).stdout


def _kept(state: Path) -> tuple[dict[str, int], dict[str, float], dict[str, list[int]]]:
    """Return the counts, failed jobs and positions that the last process kept; none of a damaged file's."""
    try:
        kept = json.loads(state.read_bytes())
        counts = {key: int(kept["counts"][key]) for key in _COUNTED}
        failed = {job: float(moment) for job, moment in kept["failed"].items()}
        positions = {server: [int(inode), int(offset)] for server, (inode, offset) in kept["positions"].items()}
    except (OSError, ValueError, TypeError, LookupError, AttributeError):
        return dict.fromkeys(_COUNTED, 0), {}, {}
    return counts, failed, positions


class Logs:
    """The failed logins by server and SQLSTATE, and the time of the last failure of each job of pg_cron.

    `logs` has the path, or the unit in systemd's journal, of each server's log.
    """

    def __init__(self, logs: Mapping[str, str], state: Path) -> None:
        self._counts, self.failed, positions = _kept(state)
        self._sources = {
            server: LogFile(Path(log), positions.get(server))
            if log.startswith("/")
            else Journal(log, state.with_name(server))
            for server, log in logs.items()
        }
        self._state, self._written, self._known = state, "", True

    def measure(self) -> dict[Sample, float]:
        """Return the counts.

        Raises:
            OSError: a log cannot be read.
            ValueError: the newest line of PostgreSQL has no SQLSTATE.
        """
        for server, source in self._sources.items():
            for chunk in source.chunks():
                if server == "pgbouncer":
                    self._counts["pgbouncer 28P01"] += len(_PGBOUNCER.findall(chunk))
                else:
                    self._count(chunk)
        self._keep()
        if not self._known:
            raise ValueError("the newest line of PostgreSQL has no SQLSTATE: its log_line_prefix was changed")
        return {
            ("storage_pg_auth_failures_total", tuple(zip(("server", "sqlstate"), key.split(), strict=True))): count
            for key, count in self._counts.items()
        }

    def _count(self, chunk: bytes) -> None:
        for moment, code, job in _POSTGRESQL.findall(chunk):
            state = code.decode(errors="replace")
            self._known = bool(_SQLSTATE.fullmatch(state))
            if (key := f"postgresql {state}") in self._counts:
                self._counts[key] += 1
            if job:
                self.failed[job.decode()] = calendar.timegm(time.strptime(moment.decode(), "%Y-%m-%d %H:%M:%S"))

    def _keep(self) -> None:
        positions = {server: source.position for server, source in self._sources.items() if source.position}
        text = json.dumps({"counts": self._counts, "failed": self.failed, "positions": positions})
        if text != self._written:
            partial = self._state.with_suffix(".partial")
            partial.write_text(text, encoding="utf-8")
            partial.replace(self._state)
            self._written = text


def exposition(queries: Iterable[Query]) -> str:
    """Return the series in Prometheus' text format."""
    found = sorted(sample for query in queries for sample in query.exposed())
    lines, last = [], ""
    for (metric, labels), value in found:
        if metric != last:
            lines.append(f"# TYPE {metric} {'counter' if metric.endswith('_total') else 'gauge'}")
            last = metric
        written = ",".join(f'{name}="{_escaped(text)}"' for name, text in labels)
        lines.append(f"{metric}{{{written}}} {value:.15g}")
    return "".join(f"{line}\n" for line in lines)


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


class Metrics(BaseHTTPRequestHandler):
    """The HTTP endpoint."""

    queries: Sequence[Query]
    timeout = CLIENT_S

    def do_GET(self) -> None:
        """Return the metrics, whatever the path."""
        body = exposition(self.queries).encode()
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the inherited name
        """Log nothing."""


class UnixServer(socketserver.ThreadingUnixStreamServer):
    """Handles each connection of a unix socket in a thread."""

    daemon_threads = True


class TcpServer(socketserver.ThreadingTCPServer):
    """Handles each connection of a port in a thread."""

    daemon_threads = allow_reuse_address = True


def serve(address: str, queries: Sequence[Query]) -> socketserver.BaseServer:
    """Return the server of the metrics, with its thread running, on a unix socket's path or `host:port`."""
    handler = type("Bound", (Metrics,), {"queries": queries})
    server: socketserver.BaseServer
    if address.startswith("/"):
        Path(address).unlink(missing_ok=True)
        server = UnixServer(address, handler)
    else:
        host, _, port = address.rpartition(":")
        server = TcpServer((host, int(port)), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def queries_of(monitor: Database, owner: Database, logs: Logs) -> tuple[Query, ...]:
    """Return the queries; the last one reads no database."""

    def monitored(sql: str) -> Callable[[], dict[Sample, float]]:
        return lambda: samples_of(*monitor.rows(sql))

    def scheduled(policies: str, stand_ins: str) -> Callable[[], dict[Sample, float]]:
        def run() -> dict[Sample, float]:
            if monitor.rows(_STANDS_IN)[1] == [(False,)]:
                return samples_of(*monitor.rows(policies))
            try:
                return samples_of(*owner.rows(stand_ins, {"failed": json.dumps(dict(logs.failed))}))
            finally:
                owner.close()

        return run

    return (
        Query(name="checksums", interval_s=FAST_S, run=monitored(_CHECKSUMS)),
        Query(name="plaintext_sessions", interval_s=FAST_S, run=monitored(_PLAINTEXT)),
        Query(name="jobs", interval_s=SLOW_S, run=scheduled(_JOBS, _CRON_JOBS)),
        Query(name="chunks", interval_s=SLOW_S, run=scheduled(_CHUNKS, _CRON_CHUNKS)),
        Query(name="aggregates", interval_s=SLOW_S, run=scheduled(_AGGREGATES, _CRON_AGGREGATES)),
        Query(name="auth_failures", interval_s=FAST_S, run=logs.measure),
    )


def repeat(queries: Sequence[Query]) -> NoReturn:
    """Run each query at its interval, for ever."""
    while True:
        for query in queries:
            if query.due <= time.monotonic():
                query.measure()
        time.sleep(max(0, min(query.due for query in queries) - time.monotonic()))


def main() -> None:
    """Measure for ever."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--database", required=True, help="connection string without a user")
    parser.add_argument("--monitor", required=True, help="role of the queries")
    parser.add_argument("--owner", required=True, help="role that owns the schema and the jobs of pg_cron")
    parser.add_argument("--log", action="append", required=True, help="SERVER=PATH, or SERVER=UNIT of the journal")
    parser.add_argument("--state", type=Path, required=True, help="file of the counts")
    parser.add_argument("--listen", required=True, help="path of a unix socket, or HOST:PORT")
    options = parser.parse_args()
    session = f"{options.database} connect_timeout={CONNECT_S} application_name=collector options='{SESSION_OPTIONS}'"
    monitor, owner = (Database(f"{session} user={role}") for role in (options.monitor, options.owner))
    logs = Logs(dict(log.split("=", 1) for log in options.log), options.state)
    queries = queries_of(monitor, owner, logs)
    with serve(options.listen, queries):
        threading.Thread(target=repeat, args=(queries[-1:],), daemon=True).start()
        repeat(queries[:-1])


if __name__ == "__main__":
    main()
