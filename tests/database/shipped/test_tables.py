"""Migrations 001 to 003: the tables, their limits and their indexes."""

from collections.abc import Iterator

import psycopg
import pytest
from psycopg import errors

from tests.database.conftest import SHIPPED, Deploy

TRACE: dict[str, object] = {
    "ts": "2026-01-01T00:00:00Z",
    "trace_id": "t",
    "span_id": "s",
    "span_name": "chat",
    "provider": "openai",
    "model": "gpt-4",
    "input_type": "text",
    "duration_ms": 5,
    "status_code": "OK",
}
METRIC: dict[str, object] = {
    "ts": "2026-01-01T00:00:00Z",
    "metric_name": "latency",
    "metric_type": "gauge",
    "provider": "openai",
    "model": "gpt-4",
    "value": 1.5,
}
LOG: dict[str, object] = {"ts": "2026-01-01T00:00:00Z", "log_level": "INFO", "message": "hello"}


@pytest.fixture
def connection(conninfo: str, run_deploy: Deploy) -> Iterator[psycopg.Connection]:
    run_deploy(migrations=SHIPPED, target=3)
    with psycopg.connect(conninfo, autocommit=True) as connection:
        yield connection


def insert(connection: psycopg.Connection, table: str, row: dict[str, object]) -> None:
    values = ", ".join(f"%({name})s" for name in row)
    connection.execute(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({values})".encode(), row)


def columns(connection: psycopg.Connection, table: str) -> dict[str, str]:
    query = (
        "SELECT attname, format_type(atttypid, atttypmod) || CASE WHEN attnotnull THEN '' ELSE '?' END "
        "FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 ORDER BY attnum"
    )
    return dict(connection.execute(query, [table]).fetchall())


def test_columns_are_the_public_contract(connection: psycopg.Connection) -> None:
    cost = "numeric(12,8)?"
    assert columns(connection, "llm_traces") == {
        "ts": "timestamp with time zone",
        **dict.fromkeys(["trace_id", "span_id"], "text"),
        "parent_span_id": "text?",
        **dict.fromkeys(["span_name", "span_kind", "provider", "model", "input_type"], "text"),
        "input_text": "text?",
        "input_messages": "jsonb?",
        **dict.fromkeys(["output_text", "finish_reason"], "text?"),
        **dict.fromkeys(["prompt_tokens", "completion_tokens", "total_tokens"], "integer?"),
        **dict.fromkeys(["prompt_cost_usd", "completion_cost_usd", "total_cost_usd"], cost),
        "duration_ms": "integer",
        "ttft_ms": "integer?",
        "status_code": "text",
        **dict.fromkeys(["error_message", "user_id", "session_id", "environment"], "text?"),
        "tags": "text[]?",
        "attributes": "jsonb?",
        "sampled": "boolean",
        "sample_rate": "real?",
        **dict.fromkeys(["resource_attributes", "events", "links"], "jsonb?"),
    }
    assert list(columns(connection, "llm_metrics")) == [
        *("ts", "metric_name", "metric_type", "provider", "model", "environment", "user_id", "value", "count"),
        *("sum", "min", "max", "tags"),
    ]
    assert list(columns(connection, "llm_logs")) == [
        *("ts", "trace_id", "span_id", "log_level", "message", "provider", "model", "environment", "attributes"),
    ]


def test_chunks_are_one_day(connection: psycopg.Connection) -> None:
    query = "SELECT hypertable_name, time_interval::text FROM timescaledb_information.dimensions"

    assert dict(connection.execute(query).fetchall()) == dict.fromkeys(
        ["llm_traces", "llm_metrics", "llm_logs"], "1 day"
    )


def test_defaults_fill_missing_columns(connection: psycopg.Connection) -> None:
    insert(connection, "llm_traces", TRACE)

    assert connection.execute("SELECT span_kind, sampled FROM llm_traces").fetchone() == ("internal", True)


def test_a_repeated_span_is_ignored_and_the_same_span_at_another_time_is_not(connection: psycopg.Connection) -> None:
    insert(connection, "llm_traces", TRACE)
    with pytest.raises(errors.UniqueViolation):
        insert(connection, "llm_traces", TRACE)

    insert(connection, "llm_traces", TRACE | {"ts": "2026-01-01T00:00:01Z"})


def test_metrics_and_logs_have_no_key(connection: psycopg.Connection) -> None:
    for table, row in (("llm_metrics", METRIC), ("llm_logs", LOG)):
        insert(connection, table, row)
        insert(connection, table, row)
        assert connection.execute(f"SELECT count(*) FROM {table}".encode()).fetchone() == (2,)


@pytest.mark.parametrize("column", ["input_text", "output_text", "error_message"])
def test_a_text_may_have_256_kib_and_no_more(connection: psycopg.Connection, column: str) -> None:
    insert(connection, "llm_traces", TRACE | {column: "é" * 131_072})

    with pytest.raises(errors.CheckViolation, match="llm_traces_text_bytes"):
        insert(connection, "llm_traces", TRACE | {"span_id": "2", column: "é" * 131_073})


@pytest.mark.parametrize("column", ["trace_id", "span_id", "provider", "model", "user_id", "session_id", "environment"])
def test_a_name_may_have_512_bytes_and_no_more(connection: psycopg.Connection, column: str) -> None:
    insert(connection, "llm_traces", TRACE | {column: "x" * 512})

    with pytest.raises(errors.CheckViolation, match="llm_traces_name_bytes"):
        insert(connection, "llm_traces", TRACE | {"span_name": "2", column: "x" * 513})


def test_the_longest_names_together_fit_every_index(connection: psycopg.Connection) -> None:
    # Random, so that the index cannot compress it.
    row = "gen_random_uuid()::text || repeat(md5(random()::text) || md5(random()::text), 7) || repeat('x', 28)"
    named = ["trace_id", "span_id", "provider", "model", "user_id", "session_id", "environment"]
    others = ["span_name", "input_type", "duration_ms", "status_code", "ts"]
    values = ", ".join([row] * len(named)) + ", 'n', 'text', 1, 'ERROR', now()"
    connection.execute(f"INSERT INTO llm_traces ({', '.join(named + others)}) SELECT {values}".encode())


def test_json_with_256_kib_of_text_fits_in_any_shape(connection: psycopg.Connection) -> None:
    numbers = "[" + ",".join(["1"] * 131_000) + "]"
    insert(connection, "llm_traces", TRACE | {"input_messages": numbers})

    with pytest.raises(errors.CheckViolation, match="llm_traces_json_bytes"):
        insert(connection, "llm_traces", TRACE | {"span_id": "2", "input_messages": '["' + "x" * 2_097_152 + '"]'})


@pytest.mark.parametrize(
    ("table", "row"),
    [
        ("llm_traces", TRACE | {"status_code": "WARN"}),
        ("llm_metrics", METRIC | {"metric_type": "summary"}),
        ("llm_logs", LOG | {"message": "x" * 262_145}),
        ("api_keys", {"key_hash": "not a hash", "key_prefix": "obs_", "name": "n"}),
    ],
)
def test_values_outside_the_contract_are_refused(
    connection: psycopg.Connection, table: str, row: dict[str, object]
) -> None:
    with pytest.raises(errors.CheckViolation):
        insert(connection, table, row)


@pytest.mark.parametrize(
    ("query", "index"),
    [
        ("SELECT * FROM llm_traces WHERE trace_id = 't'", "pkey"),
        ("SELECT * FROM llm_traces ORDER BY ts DESC LIMIT 10", "llm_traces_ts"),
        (
            "SELECT * FROM llm_traces WHERE provider = 'p' AND model = 'm' ORDER BY ts DESC LIMIT 10",
            "llm_traces_provider_model_ts",
        ),
        ("SELECT * FROM llm_traces WHERE user_id = 'u' ORDER BY ts DESC LIMIT 10", "llm_traces_user_ts"),
        ("SELECT * FROM llm_traces WHERE session_id = 's' ORDER BY ts DESC LIMIT 10", "llm_traces_session_ts"),
        ("SELECT * FROM llm_traces WHERE status_code = 'ERROR' ORDER BY ts DESC LIMIT 10", "llm_traces_errors_ts"),
        ("SELECT * FROM llm_logs WHERE trace_id = 't' ORDER BY ts", "llm_logs_trace_ts"),
    ],
)
def test_the_services_queries_use_an_index(connection: psycopg.Connection, query: str, index: str) -> None:
    spans = """
        INSERT INTO llm_traces (ts, trace_id, span_id, span_name, provider, model, input_type, duration_ms, status_code,
                                user_id, session_id)
        SELECT '2026-01-01'::timestamptz + n * interval '1 second', 't' || n, 's', 'chat', 'p' || n % 5, 'm' || n % 7,
               'text', n, CASE WHEN n % 100 = 0 THEN 'ERROR' ELSE 'OK' END, 'u' || n % 50, 's' || n % 90
        FROM generate_series(1, 5000) n
    """
    logs = """
        INSERT INTO llm_logs (ts, trace_id, log_level, message)
        SELECT '2026-01-01'::timestamptz + n * interval '1 second', 't' || n, 'INFO', 'x'
        FROM generate_series(1, 2000) n
    """
    for statement in (spans, logs, "ANALYZE llm_traces", "ANALYZE llm_logs"):
        connection.execute(statement.encode())

    plan = "\n".join(row[0] for row in connection.execute(f"EXPLAIN {query}".encode()).fetchall())

    assert index in plan
    assert "Seq Scan" not in plan


def test_keys_of_a_removed_user_are_removed(connection: psycopg.Connection) -> None:
    insert(connection, "users", {"id": "u", "email": "u@example.org"})
    insert(connection, "api_keys", {"key_hash": "0" * 64, "key_prefix": "obs_", "name": "n", "user_id": "u"})

    connection.execute("DELETE FROM users")

    assert connection.execute("SELECT count(*) FROM api_keys").fetchone() == (0,)
