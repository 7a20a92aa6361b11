"""Migrations 005 and 006: retention, prices and projects."""

from collections.abc import Iterator

import psycopg
import pytest
from psycopg import errors

from tests.database.conftest import SHIPPED, Deploy

KEPT_DAYS = {
    "public.llm_traces": 90,
    "public.llm_metrics": 37,
    "public.llm_logs": 37,
    "observatory.llm_metrics_1min": 37,
    "observatory.llm_metrics_1hour": 210,
    "observatory.llm_metrics_1day": 1095,
    "observatory.llm_error_summary": 210,
    "observatory.cost_analysis_hourly": 210,
}
ROW = {
    "public.llm_traces": "ts, trace_id, span_id, span_name, provider, model, input_type, duration_ms, status_code",
    "public.llm_metrics": "ts, metric_name, metric_type, provider, model, value",
    "public.llm_logs": "ts, log_level, message",
}
VALUES = {
    "public.llm_traces": "gen_random_uuid(), 's', 'chat', 'openai', 'gpt-4', 'text', 1, 'OK'",
    "public.llm_metrics": "'latency', 'gauge', 'openai', 'gpt-4', 1",
    "public.llm_logs": "'INFO', 'hello'",
}
LONGEST_CHUNK_DAYS = 30
PRICE = (
    "INSERT INTO model_pricing (effective_date, provider, model, prompt_cost_per_1k, completion_cost_per_1k) VALUES "
)


@pytest.fixture
def connection(conninfo: str, run_deploy: Deploy) -> Iterator[psycopg.Connection]:
    run_deploy(migrations=SHIPPED)
    with psycopg.connect(conninfo, autocommit=True) as connection:
        yield connection


def insert(connection: psycopg.Connection, table: str, *, days_ago: int) -> None:
    row, values = ROW.get(table, "bucket"), VALUES.get(table)
    more = f", {values}" if values else ""
    connection.execute(f"INSERT INTO {table} ({row}) SELECT now() - interval '{days_ago} days'{more}".encode())


def ages(connection: psycopg.Connection, table: str) -> list[int]:
    column = "ts" if table in ROW else "bucket"
    query = f"SELECT extract(days FROM now() - {column})::int FROM {table} ORDER BY 1"
    return [row[0] for row in connection.execute(query.encode()).fetchall()]


@pytest.mark.parametrize(("table", "kept"), KEPT_DAYS.items())
def test_retention_drops_only_older_chunks(connection: psycopg.Connection, table: str, kept: int) -> None:
    older = kept + LONGEST_CHUNK_DAYS + 1
    for days_ago in (0, kept - 1, older):
        insert(connection, table, days_ago=days_ago)
    job = f"retention of {table.partition('.')[2]}"
    row = connection.execute("SELECT command FROM observatory.jobs WHERE name = %s", [job]).fetchone()
    assert row is not None

    for _ in range(2):
        connection.execute(row[0])
        assert ages(connection, table) == [0, kept - 1]


def test_every_hypertable_has_a_retention_job(connection: psycopg.Connection) -> None:
    query = "SELECT hypertable_schema || '.' || hypertable_name FROM timescaledb_information.hypertables"
    assert {row[0] for row in connection.execute(query).fetchall()} == set(KEPT_DAYS)

    jobs = connection.execute("SELECT name FROM observatory.jobs").fetchall()
    assert {f"retention of {table.partition('.')[2]}" for table in KEPT_DAYS} <= {name for (name,) in jobs}


def test_a_drop_times_out_while_a_session_reads_the_chunk(connection: psycopg.Connection, conninfo: str) -> None:
    insert(connection, "public.llm_logs", days_ago=60)
    # The function sets 5 s, which is too long for a test.
    connection.execute("ALTER PROCEDURE observatory.drop_old_chunks SET lock_timeout = '50ms'")
    with psycopg.connect(conninfo) as reader:
        reader.execute("SELECT count(*) FROM llm_logs")

        with pytest.raises(errors.LockNotAvailable):
            connection.execute("CALL observatory.drop_old_chunks('llm_logs', INTERVAL '37 days')")

    assert ages(connection, "public.llm_logs") == [60]


def test_a_model_has_one_price_at_a_time(connection: psycopg.Connection) -> None:
    connection.execute(f"{PRICE} ('2026-01-01', 'openai', 'gpt-4', 0.03, 0.06)".encode())
    connection.execute(f"{PRICE} ('2026-02-01', 'openai', 'gpt-4', 0.02, 0.04)".encode())

    with pytest.raises(errors.UniqueViolation):
        connection.execute(f"{PRICE} ('2026-01-01', 'openai', 'gpt-4', 0.01, 0.01)".encode())
    with pytest.raises(errors.CheckViolation, match="model_pricing_costs"):
        connection.execute(f"{PRICE} ('2026-03-01', 'openai', 'gpt-4', -0.01, 0.01)".encode())


def test_a_project_has_an_owner_and_a_unique_slug(connection: psycopg.Connection) -> None:
    project = "INSERT INTO projects (name, slug, owner_id) VALUES ('Chat', %s, %s)"
    with pytest.raises(errors.ForeignKeyViolation):
        connection.execute(project, ["chat", "u"])
    connection.execute("INSERT INTO users (id) VALUES ('u')")
    connection.execute(project, ["chat", "u"])

    with pytest.raises(errors.UniqueViolation):
        connection.execute(project, ["chat", "u"])
    with pytest.raises(errors.CheckViolation, match="projects_slug"):
        connection.execute(project, ["Chat Bot", "u"])
    with pytest.raises(errors.ForeignKeyViolation):
        connection.execute("DELETE FROM users")
