"""The collector: its queries on a real server with pg_cron, its logs, and the program as a machine runs it."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from monitoring import JOBS
from observatory.database import deploy, ensure_database, schedule_jobs
from observatory.files.ownership import Owner
from observatory.nodes import Paths
from observatory.nodes.collector import collector, metrics_socket
from observatory.nodes.postgres import MONITOR_ROLE, OWNER_ROLE, node_parameters
from observatory.nodes.programs.collector import SESSION_OPTIONS, Database, Logs, Query, Sample, exposition, queries_of
from observatory.runtime import home_owners
from observatory.settings import LocalSettings, Ports
from observatory.waiting import wait_until
from tests.support.balancer import running_balancer
from tests.support.postgres import SETTINGS, PostgresServer, postgres_server
from tests.support.sandboxes import start_unit

pytestmark = pytest.mark.slow

MIGRATIONS = Path(__file__).resolve().parent.parent.parent / "migrations"
DATABASE = "observatory"
PATIENCE_S = 180
FAILED = "timescaledb_job_last_run_failed"
OVERDUE = "timescaledb_job_overdue_seconds"
CHUNKS = "timescaledb_chunks_overdue_compression"
LAG = "timescaledb_aggregate_lag_seconds"
LOGINS = "storage_pg_auth_failures_total"
REFUSED = "2026-11-29 04:13:49.296 UTC [17874] 28P01 app@observatory x FATAL:  password authentication failed\n"
POOLER = "2026-11-29 04:18:33.490 UTC [7] WARNING C-0x5: o/app@127.0.0.1:53 pooler error: SASL authentication failed\n"


class Session(Database):
    """Runs the statements over an open connection, as its role.

    `started` is the time of the server's start.
    """

    started = "pg_postmaster_start_time()"

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self.connection = connection

    def rows(self, sql: str, values: Mapping[str, str] | None = None) -> tuple[list[str], list[tuple[Any, ...]]]:
        cursor = self.connection.execute(sql.replace("pg_postmaster_start_time()", self.started).encode(), values)
        return [column.name for column in cursor.description or ()], cursor.fetchall()

    def close(self) -> None:
        """Keep it open."""


@pytest.fixture(scope="module")
def server(rootfs: Path) -> Iterator[PostgresServer]:
    """A server with pg_cron and the logging of a stack, a migrated database, and its scheduled jobs."""
    parameters = node_parameters(LocalSettings(), Paths())
    own = {name: str(value) for name, value in parameters.items() if name.startswith(("log_", "cron."))}
    own["shared_preload_libraries"] = SETTINGS["shared_preload_libraries"] + ",pg_cron"
    with pytest.MonkeyPatch.context() as patched:
        for name in ("log_statement", "log_line_prefix"):
            patched.setitem(SETTINGS, name, own[name])
        patched.setitem(SETTINGS, "shared_preload_libraries", own["shared_preload_libraries"])
        with postgres_server(rootfs, **own) as server:
            ensure_database(server.conninfo(), name=DATABASE, owner=OWNER_ROLE)
            owner = server.conninfo(user=OWNER_ROLE, dbname=DATABASE)
            deploy(owner, migrations=MIGRATIONS, actor="tester", deployment_id="test")
            schedule_jobs(owner)
            _refresh_aggregates(owner)
            with server.superuser() as connection:
                connection.execute(f"CREATE ROLE {MONITOR_ROLE} LOGIN; GRANT pg_monitor TO {MONITOR_ROLE}")
                connection.execute("CREATE ROLE app LOGIN PASSWORD 'right'; CREATE ROLE retired PASSWORD 'right'")
                connection.execute(f"GRANT CONNECT ON DATABASE {DATABASE} TO {MONITOR_ROLE}, app")
                launcher = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'pg_cron launcher'"
                assert wait_until(lambda: connection.execute(launcher).fetchone() == (1,), PATIENCE_S)
            yield server


def _refresh_aggregates(owner: str) -> None:
    """Refresh each aggregate for the first time, which notes its time.

    Where pg_cron's first refresh did so, it would wait for a test that has changed the row, and hold the lock that the
    test's own refresh then waits for.
    """
    with psycopg.connect(owner, autocommit=True) as connection:
        for (aggregate,) in connection.execute("SELECT name FROM observatory.aggregates ORDER BY name").fetchall():
            connection.execute("CALL observatory.refresh_aggregate(%s)", [aggregate])


@dataclass
class Bench:
    """The sessions of the collector, and its logs."""

    monitor: psycopg.Connection[Any]
    owner: psycopg.Connection[Any]
    logs: Logs

    def query(self, name: str) -> Query:
        """Run a query, and return it with its result."""
        queries = queries_of(Session(self.monitor), Session(self.owner), self.logs)
        query = next(each for each in queries if each.name == name)
        query.measure()
        return query

    def values(self, name: str, metric: str) -> dict[str, float]:
        """Run a query, and return the series of one of its metrics, by the values of their labels."""
        query = self.query(name)
        assert not query.error
        return values(query.samples, metric)


@pytest.fixture
def monitor(server: PostgresServer) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(server.conninfo(user=MONITOR_ROLE, dbname=DATABASE), autocommit=True) as connection:
        yield connection


@pytest.fixture
def owner(server: PostgresServer) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(server.conninfo(user=OWNER_ROLE, dbname=DATABASE), autocommit=True) as connection:
        yield connection


def opened(directory: Path) -> Logs:
    """Return the logs of a directory, which exist."""
    for name in ("patroni.log", "pgbouncer.log"):
        (directory / name).touch()
    paths = {"postgresql": directory / "patroni.log", "pgbouncer": directory / "pgbouncer.log"}
    logs = Logs({server: str(path) for server, path in paths.items()}, directory / "state.json")
    logs.measure()
    return logs


@pytest.fixture
def bench(monitor: psycopg.Connection[Any], owner: psycopg.Connection[Any], tmp_path: Path) -> Bench:
    return Bench(monitor=monitor, owner=owner, logs=opened(tmp_path))


def values(samples: Mapping[Sample, float], metric: str) -> dict[str, float]:
    """Return the series of a metric, by the values of their labels."""
    found = {labels: value for (name, labels), value in samples.items() if name == metric}
    return {"/".join(text for _, text in labels): value for labels, value in found.items()}


def counts(logs: Logs) -> dict[str, float]:
    return values(logs.measure(), LOGINS)


def test_checksums_of_every_database_and_of_the_shared_catalogue(bench: Bench) -> None:
    found = bench.values("checksums", "storage_pg_checksum_failures_total")
    assert found.keys() >= {"(shared)", DATABASE, "postgres"}
    assert set(found.values()) == {0}


def test_sessions_over_tcp_without_tls_are_counted(server: PostgresServer, bench: Bench) -> None:
    metric = "storage_pg_plaintext_sessions"
    assert bench.values("plaintext_sessions", metric) == {"": 0}
    with psycopg.connect(server.tcp_conninfo(user="app", password="right", dbname=DATABASE)):
        assert bench.values("plaintext_sessions", metric) == {"": 1}
    gone = "SELECT count(*) = 0 FROM pg_stat_activity WHERE usename = 'app'"
    assert wait_until(lambda: bench.monitor.execute(gone).fetchone() == (True,), PATIENCE_S)


def test_a_role_that_cannot_see_other_sessions_fails_instead_of_counting_none(
    server: PostgresServer, bench: Bench
) -> None:
    with psycopg.connect(server.conninfo(user="app", dbname=DATABASE)) as bench.monitor:
        query = bench.query("plaintext_sessions")
    assert (dict(query.samples), query.error) == ({}, "it returned nothing")


def test_jobs_of_pg_cron_stand_in_for_policies(bench: Bench) -> None:
    found = bench.values("jobs", OVERDUE)
    assert {name.partition("/")[2] for name in found} == {
        "purge job runs/",
        *(f"refresh {name}/{name}" for name in ("llm_metrics_1min", "llm_metrics_1hour", "llm_metrics_1day")),
        *(f"refresh {name}/{name}" for name in ("llm_error_summary", "cost_analysis_hourly")),
        *(f"retention of {name}/{name}" for name in ("llm_traces", "llm_metrics", "llm_logs")),
        *(f"retention of llm_metrics_{each}/observatory.llm_metrics_{each}" for each in ("1min", "1hour", "1day")),
        *(f"retention of {each}/observatory.{each}" for each in ("llm_error_summary", "cost_analysis_hourly")),
    }
    assert set(found.values()) == {0}


def test_a_run_that_does_not_end_is_overdue(bench: Bench) -> None:
    running = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'pg_cron' AND query LIKE '%pg_sleep%'"
    bench.owner.execute("SELECT cron.schedule('observatory: hangs', '1 second', 'SELECT pg_sleep(600)')")
    try:

        def overdue() -> float:
            return max(value for name, value in bench.values("jobs", OVERDUE).items() if "/hangs/" in name)

        assert wait_until(lambda: overdue() > 1, PATIENCE_S)
    finally:
        bench.owner.execute("SELECT cron.unschedule('observatory: hangs')")
        bench.owner.execute(f"SELECT pg_terminate_backend(pid) FROM ({running}) AS runs")


@pytest.mark.parametrize(
    ("schedule", "age_s", "failed"),
    [
        *(("30 seconds", 80, 1), ("30 seconds", 100, 0), ("* * * * *", 110, 1), ("*/5 * * * *", 350, 1)),
        *(("1-59/5 * * * *", 370, 0), ("7 * * * *", 3600, 1), ("7 * * * *", 3700, 0), ("7 2 * * *", 86_000, 1)),
    ],
)
def test_a_job_has_failed_until_its_next_run_succeeds(bench: Bench, schedule: str, age_s: int, failed: int) -> None:
    add = "SELECT cron.schedule('observatory: own', %s, 'SELECT 1'), extract(epoch FROM now())"
    with bench.owner.transaction(force_rollback=True):
        job, now = bench.owner.execute(add, [schedule]).fetchone() or ("", 0)
        bench.logs.failed = {str(job): float(now) - age_s}
        assert bench.values("jobs", FAILED)[f"{job}/own/"] == failed


def test_a_chunk_that_retention_has_left_is_overdue(bench: Bench) -> None:
    def overdue() -> float:
        return bench.values("chunks", CHUNKS)["llm_logs/retention"]

    with bench.owner.transaction(force_rollback=True):
        assert overdue() == 0
        bench.owner.execute(
            "INSERT INTO llm_logs (ts, log_level, message) VALUES (now() - INTERVAL '90 days', 'INFO', 'm')"
        )
        assert overdue() == 1
        bench.owner.execute("CALL observatory.drop_old_chunks('llm_logs', INTERVAL '37 days')")
        assert overdue() == 0


@pytest.fixture
def long_running(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the server have been started a year ago."""
    monkeypatch.setattr(Session, "started", "(now() - INTERVAL '1 year')")


def add_trace(bench: Bench, age: str, status: str) -> None:
    bench.owner.execute(
        "INSERT INTO llm_traces (ts, trace_id, span_id, span_name, provider, model, input_type, input_text,"
        " duration_ms, status_code) VALUES (date_trunc('minute', now()) - %s::interval, 't', 's', 'n', 'openai', 'm',"
        " 'text', 'i', 1, %s)",
        [age, status],
    )


@pytest.mark.usefixtures("long_running")
def test_an_aggregate_lags_from_when_a_refresh_should_have_computed_a_row(bench: Bench) -> None:
    def late() -> dict[str, float]:
        return {name: lag for name, lag in bench.values("aggregates", LAG).items() if lag}

    with bench.owner.transaction(force_rollback=True):
        bench.owner.execute(
            "UPDATE observatory.aggregates SET refreshed_at = now(), refreshed_until = now() - INTERVAL '8 days'"
        )
        assert late() == {}
        add_trace(bench, "10 minutes", "OK")
        lags = late()
        # Its minute ended 9 to 10 minutes ago; a refresh leaves the last minute out and runs each half minute.
        assert 540 - 60 - 30 <= lags["llm_metrics_1min"] <= 600 - 60 - 30
        assert lags.keys() <= {"llm_metrics_1min", "llm_metrics_1day"}  # shortly after midnight the day before is due
        bench.owner.execute("DELETE FROM llm_traces")  # an UPDATE cannot move a row to yesterday's chunk
        add_trace(bench, "250 minutes", "ERROR")
        due = ("llm_metrics_1min", "llm_metrics_1hour", "llm_error_summary", "cost_analysis_hourly")
        assert late().keys() >= {*due}
        for aggregate in (*due, "llm_metrics_1day"):
            bench.owner.execute("CALL observatory.refresh_aggregate(%s)", [aggregate])
        assert late() == {}


@pytest.mark.usefixtures("long_running")
def test_an_idle_aggregate_whose_refresh_has_stopped_is_late_after_a_day(bench: Bench) -> None:
    with bench.owner.transaction(force_rollback=True):
        bench.owner.execute("UPDATE observatory.aggregates SET refreshed_at = now() - INTERVAL '25 hours'")
        assert bench.values("aggregates", LAG)["llm_metrics_1min"] == pytest.approx(3570)


def test_no_aggregate_is_late_before_its_first_refresh_after_a_start(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    with bench.owner.transaction(force_rollback=True):
        bench.owner.execute("UPDATE observatory.aggregates SET refreshed_at = now() - INTERVAL '60 hours'")
        for minutes, late in ((0, 0.0), (59, 0.0), (61, 60.0)):  # it is refreshed each hour
            monkeypatch.setattr(Session, "started", f"(now() - INTERVAL '{minutes} minutes')")
            assert bench.values("aggregates", LAG)["llm_metrics_1day"] == pytest.approx(late)


@pytest.fixture
def policies(postgres: PostgresServer, fresh_database: str) -> Iterator[psycopg.Connection[Any]]:
    """A session in a database with a hypertable and a policy of the community edition, in an open transaction."""
    with postgres.superuser(fresh_database) as connection, connection.transaction(force_rollback=True):
        connection.execute("CREATE TABLE rows (ts timestamptz NOT NULL)")
        connection.execute("SELECT create_hypertable('rows', by_range('ts', INTERVAL '1 day'))")
        connection.execute("INSERT INTO rows VALUES (now()), (now() - INTERVAL '20 days'), (now() - INTERVAL '8 days')")
        # Only the community edition has functions that add them.
        connection.execute(
            "INSERT INTO _timescaledb_config.bgw_job SELECT 1001, 'Columnstore Policy [1001]', '12 hours', '0', -1,"
            " '1 hour', '_timescaledb_functions', 'policy_compression', 'postgres', true, false, NULL, id,"
            """ '{"compress_after": "7 days"}', NULL, NULL, NULL FROM _timescaledb_catalog.hypertable"""
        )
        yield connection


def test_policies_of_the_community_edition(policies: psycopg.Connection[Any], tmp_path: Path) -> None:
    bench, job = Bench(monitor=policies, owner=policies, logs=opened(tmp_path)), "1001/Columnstore Policy [1001]/rows"

    def state() -> tuple[float, float]:
        return bench.values("jobs", FAILED)[job], bench.values("jobs", OVERDUE)[job]

    assert state() == (0, 0)  # it has not run yet
    assert bench.values("chunks", CHUNKS) == {"rows/compression": 1}
    policies.execute(
        "INSERT INTO _timescaledb_internal.bgw_job_stat (job_id, last_start, last_finish, next_start,"
        " last_successful_finish, last_run_success, total_runs, total_duration, total_duration_failures,"
        " total_successes, total_failures, total_crashes, consecutive_failures, consecutive_crashes)"
        " SELECT 1001, now() - INTERVAL '1 day', now() - INTERVAL '1 day', now() - INTERVAL '1 hour', '-infinity',"
        " false, 1, '1 s', '1 s', 0, 1, 0, 1, 0"
    )
    assert state() == (1, 3600)
    policies.execute("UPDATE _timescaledb_internal.bgw_job_stat SET next_start = '-infinity'")  # it runs
    assert state() == (1, 12 * 3600)
    policies.execute("UPDATE _timescaledb_config.bgw_job SET scheduled = false")  # paused
    assert state() == (1, 0)
    assert bench.values("chunks", CHUNKS) == {"rows/compression": 1}
    assert bench.query("aggregates").error == "it returned nothing"  # and no wrong name


def test_failed_logins_are_counted_by_server_and_sqlstate(tmp_path: Path) -> None:
    (tmp_path / "patroni.log").write_text(REFUSED)
    logs = opened(tmp_path)
    assert counts(logs) == {"postgresql/28P01": 0, "postgresql/28000": 0, "pgbouncer/28P01": 0}  # from its start on
    with (tmp_path / "patroni.log").open("a") as log:
        log.write(REFUSED + REFUSED.replace("28P01", "28000") + REFUSED.replace("28P01", "00000"))
        log.write("2026-11-29 04:12:48,713 INFO: no action. I am (node1), the leader with the lock\n\t28P01\n")
        log.write(REFUSED.rstrip())  # not whole yet
    (tmp_path / "pgbouncer.log").write_text(
        POOLER + POOLER.replace("SASL", "password") + "28P01 authentication failed\n"
    )
    assert counts(logs) == {"postgresql/28P01": 1, "postgresql/28000": 1, "pgbouncer/28P01": 2}
    with (tmp_path / "patroni.log").open("a") as log:
        log.write("\n")
    assert counts(logs)["postgresql/28P01"] == 2


def test_no_line_is_lost_or_counted_twice_by_a_rotation(tmp_path: Path) -> None:
    logs, path = opened(tmp_path), tmp_path / "patroni.log"
    with path.open("a") as writer:
        writer.write(REFUSED)
        writer.flush()
        assert counts(logs)["postgresql/28P01"] == 1
        path.rename(tmp_path / "patroni.log-20261129T041300")
        writer.write(REFUSED)  # before it opens the new file
        writer.flush()
        assert counts(logs)["postgresql/28P01"] == 2
        writer.write(REFUSED)
        writer.flush()
        path.write_text(REFUSED)
    assert counts(logs)["postgresql/28P01"] == 4
    path.write_text("")  # truncated
    assert counts(logs)["postgresql/28P01"] == 4
    path.write_text(REFUSED)
    assert counts(logs)["postgresql/28P01"] == 5


def test_a_restart_continues_where_the_last_collector_ended_also_in_the_renamed_log(tmp_path: Path) -> None:
    path = tmp_path / "patroni.log"
    first = opened(tmp_path)
    path.write_text(REFUSED)
    assert counts(first)["postgresql/28P01"] == 1
    with path.open("a") as log:
        log.write(REFUSED + REFUSED.replace("28P01 app@observatory x FATAL:  ", "00000 LOG:  cron job 7: ERROR: "))
    path.rename(tmp_path / "patroni.log-20261129T041300")
    path.write_text(REFUSED)
    second = opened(tmp_path)
    assert counts(second)["postgresql/28P01"] == 3
    assert second.failed == {"7": 1795925629}


@pytest.mark.parametrize(
    "state",
    [
        *(b"", b"{", b"[]", b"7", b"\xff", b'{"counts": 7}', b'{"counts": {"postgresql 28P01": "x"}}'),
        *(b'{"positions": {"postgresql": [1]}}', b'{"positions": {"postgresql": ["a", null]}}', b'{"failed": [1]}'),
    ],
)
def test_a_damaged_state_does_not_stop_it(tmp_path: Path, state: bytes) -> None:
    (tmp_path / "state.json").write_bytes(state)
    (tmp_path / "patroni.log").write_text(REFUSED)
    logs = opened(tmp_path)
    assert counts(logs)["postgresql/28P01"] == 0
    with (tmp_path / "patroni.log").open("a") as log:
        log.write(REFUSED)
    assert counts(logs)["postgresql/28P01"] == 1


def test_a_log_of_garbage_is_read_in_bounded_pieces(tmp_path: Path) -> None:
    logs = opened(tmp_path)
    garbage = bytes(range(128, 256)) * 20_000  # no line ends
    (tmp_path / "patroni.log").write_bytes(garbage + b"\n" + REFUSED.encode() * 2)
    assert counts(logs)["postgresql/28P01"] == 2


def test_lines_without_a_sqlstate_are_a_failure_and_not_no_failed_logins(tmp_path: Path) -> None:
    logs, path = opened(tmp_path), tmp_path / "patroni.log"
    query = Query(name="auth_failures", interval_s=5, run=logs.measure)
    path.write_text("2026-11-29 04:12:41.624 UTC [9] app@observatory FATAL:  password authentication failed\n")
    query.measure()
    assert (dict(query.samples), query.error.partition(":")[0]) == ({}, "ValueError")
    query.measure()
    assert query.error
    with path.open("a") as log:
        log.write(REFUSED)
    query.measure()
    assert not query.error


def test_a_log_that_is_not_there_is_a_failure(tmp_path: Path) -> None:
    logs = Logs({"postgresql": str(tmp_path / "none.log")}, tmp_path / "state.json")
    query = Query(name="auth_failures", interval_s=5, run=logs.measure)
    query.measure()
    assert 'storage_collector_success{query="auth_failures"} 0\n' in exposition([query])


def test_a_query_that_does_not_end_has_failed_and_shows_no_old_values() -> None:
    sample: Sample = ("storage_pg_plaintext_sessions", ())
    query = Query(name="stuck", interval_s=5, run=lambda: {sample: 1})
    query.measure()
    assert "storage_pg_plaintext_sessions{} 1\n" in exposition([query])
    query.ended -= 26
    assert "storage_pg_plaintext_sessions" not in (text := exposition([query]))
    assert 'storage_collector_success{query="stuck"} 0\n' in text


def test_labels_are_escaped() -> None:
    query = Query(name="q", interval_s=5, run=lambda: {("timescaledb_x", (("a", 'back\\slash "quoted"\nline'),)): 1})
    query.measure()
    assert r'timescaledb_x{a="back\\slash \"quoted\"\nline"} 1' in exposition([query])


def test_prometheus_gets_it_through_the_balancer_also_while_postgresql_is_down(rootfs: Path, tmp_path: Path) -> None:
    [job] = [job for job in JOBS if job.name == "collector"]
    with running_balancer(rootfs, tmp_path, {"blue": 1, "green": 1}) as balancer:
        start_unit(balancer.sandbox, collector(LocalSettings(ports=balancer.ports), Paths()))
        url = f"https://127.0.0.1:{balancer.ports.balancer_stats}{job.path}"
        shown = httpx.get(url, verify=balancer.client.context()).raise_for_status().text.splitlines()
    successes = {line for line in shown if line.startswith("storage_collector_success")}
    names = ("aggregates", "auth_failures", "checksums", "chunks", "jobs", "plaintext_sessions")
    assert successes == {f'storage_collector_success{{query="{name}"}} 0' for name in names}


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=PATIENCE_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(PATIENCE_S)
        self.sock.connect(str(self._path))


class Program:
    """The program in the sandbox of a server, with that server's log."""

    def __init__(self, server: PostgresServer) -> None:
        self._server, paths = server, Paths(data="/srv/run", log="/srv/run")
        unit = collector(LocalSettings(ports=Ports(postgres=server.port)), paths)
        self._socket = self._at(metrics_socket(paths))
        self._command = [word.replace(paths.postgres_socket, paths.run) for word in unit.command]
        for path, text in unit.files.items():
            self._at(path).parent.mkdir(parents=True, exist_ok=True)
            self._at(path).write_text(text)
        for directory in unit.directories:
            self._at(directory).mkdir(exist_ok=True)
            status = self._at(paths.run).stat()
            home_owners.give(str(self._at(directory)), Owner(uid=status.st_uid, gid=status.st_gid))
        self._at("/srv/run/pgbouncer.log").touch()
        with contextlib.suppress(FileExistsError):
            os.link(server.log_file, self._at("/srv/run/patroni.log"))

    def _at(self, path: str) -> Path:
        return self._server.directory / Path(path).relative_to("/srv")

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        command = self._server.sandboxed(self._command)
        # A group of its own: root's sandbox ends with all of its group, which would have the server in it.
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True) as process:
            try:
                yield
            finally:
                process.kill()

    def metrics(self) -> dict[str, float]:
        """Return each series; none while it does not listen."""
        with contextlib.closing(UnixConnection(self._socket)) as connection:
            try:
                connection.request("GET", "/collector")
                lines = connection.getresponse().read().decode().splitlines()
            except OSError:
                return {}
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}

    def values(self, metric: str) -> list[float]:
        """Return the values of a metric's series."""
        return [value for name, value in self.metrics().items() if name.startswith(f"{metric}{{")]

    def shows(self, **expected: float) -> bool:
        """Return whether it shows these successes, by query."""
        shown = {f'storage_collector_success{{query="{query}"}}': value for query, value in expected.items()}
        return shown.items() <= self.metrics().items()


def test_the_sessions_of_the_program_are_read_only(server: PostgresServer) -> None:
    settings = f"options='{SESSION_OPTIONS}'"
    with psycopg.connect(f"{server.conninfo(user=OWNER_ROLE, dbname=DATABASE)} {settings}", autocommit=True) as session:
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            session.execute("CREATE TABLE own ()")
        with pytest.raises(psycopg.errors.QueryCanceled):
            session.execute("SELECT pg_sleep(60)")


def test_the_program_measures_shows_and_recovers(server: PostgresServer) -> None:
    every = dict.fromkeys(("checksums", "plaintext_sessions", "jobs", "chunks", "aggregates", "auth_failures"), 1.0)
    refused = f'{LOGINS}{{server="postgresql",sqlstate="28P01"}}'
    barred = f'{LOGINS}{{server="postgresql",sqlstate="28000"}}'
    program = Program(server)
    with program.running():
        assert wait_until(lambda: program.shows(**every), PATIENCE_S), program.metrics()
        for user, password in (("app", "wrong"), ("nobody", "wrong"), ("retired", "right")):
            with pytest.raises(psycopg.OperationalError):
                psycopg.connect(server.tcp_conninfo(user=user, password=password, dbname=DATABASE))
        with psycopg.connect(server.conninfo(user=OWNER_ROLE, dbname=DATABASE), autocommit=True) as owner:
            owner.execute("SELECT cron.schedule('observatory: fails', '1 second', 'SELECT 1/0')")
        assert wait_until(lambda: (program.metrics().get(refused), program.metrics().get(barred)) == (2, 1), PATIENCE_S)
    with program.running():
        assert wait_until(lambda: program.metrics().get(refused) == 2, PATIENCE_S), program.metrics()
        assert wait_until(lambda: 1 in program.values(FAILED), PATIENCE_S), program.metrics()
        server.stop()
        try:
            down = dict.fromkeys(("checksums", "plaintext_sessions"), 0.0)
            assert wait_until(lambda: program.shows(**down, auth_failures=1.0), PATIENCE_S), program.metrics()
        finally:
            server.start()
        assert wait_until(lambda: program.shows(**every), PATIENCE_S), program.metrics()
    with psycopg.connect(server.conninfo(user=OWNER_ROLE, dbname=DATABASE), autocommit=True) as owner:
        owner.execute("SELECT cron.unschedule('observatory: fails')")
