"""Migration 004: the aggregates equal a query of the raw rows, and outlive the raw rows."""

import itertools
import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from psycopg import errors
from psycopg.rows import dict_row

from tests.database.conftest import SHIPPED, Deploy

Trace = dict[str, Any]
Connection = psycopg.Connection[dict[str, Any]]

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
MIDNIGHT = datetime(2026, 1, 15, tzinfo=UTC)
BUCKETS = {
    "llm_metrics_1min": timedelta(minutes=1),
    "llm_metrics_1hour": HOUR,
    "llm_metrics_1day": DAY,
    "llm_error_summary": HOUR,
    "cost_analysis_hourly": HOUR,
}
KEYS = {
    "llm_metrics_1min": ("provider", "model", "status_code"),
    "llm_metrics_1hour": ("provider", "model", "environment"),
    "llm_metrics_1day": ("provider", "model"),
    "llm_error_summary": ("provider", "model", "status_code", "environment"),
    "cost_analysis_hourly": ("provider", "model", "environment", "user_id"),
}
AGGREGATES = tuple(BUCKETS)

_numbers = itertools.count()


@pytest.fixture
def connection(conninfo: str, run_deploy: Deploy) -> Iterator[Connection]:
    run_deploy(migrations=SHIPPED)
    with psycopg.connect(conninfo, autocommit=True, row_factory=dict_row) as connection:
        yield connection


def trace(ts: datetime, **fields: Any) -> Trace:
    return {
        "ts": ts,
        "trace_id": f"t{next(_numbers)}",
        "span_id": "s",
        "span_name": "chat",
        "provider": "openai",
        "model": "gpt-4",
        "input_type": "text",
        "duration_ms": 5,
        "status_code": "OK",
        **fields,
    }


def insert(connection: Connection, *traces: Trace) -> None:
    columns = sorted({column for row in traces for column in row})
    values = ", ".join(f"%({column})s" for column in columns)
    statement = f"INSERT INTO llm_traces ({', '.join(columns)}) VALUES ({values})"
    with connection.cursor() as cursor:
        cursor.executemany(statement.encode(), [dict.fromkeys(columns) | row for row in traces])


def random_traces(count: int) -> list[Trace]:
    """Traces over two days in few groups, with everything null that may be."""
    draw = random.Random(4)  # noqa: S311 - not a secret

    def maybe(value: Any) -> Any:
        return None if draw.random() < 0.2 else value

    return [
        trace(
            MIDNIGHT + timedelta(microseconds=draw.randrange(2 * 86_400_000_000)),
            provider=draw.choice(["openai", "anthropic"]),
            model=draw.choice(["small", "large"]),
            status_code=draw.choice(["OK", "OK", "ERROR", "UNSET"]),
            environment=maybe(draw.choice(["production", "staging"])),
            user_id=maybe(f"u{draw.randrange(4)}"),
            session_id=maybe(f"s{draw.randrange(9)}"),
            duration_ms=draw.choice([0, 850, 46_341, 2**31 - 1]),
            prompt_tokens=maybe(draw.randrange(4000)),
            completion_tokens=maybe(draw.randrange(4000)),
            total_tokens=maybe(draw.randrange(8000)),
            prompt_cost_usd=maybe(Decimal(draw.randrange(10**9)) / 10**8),
            completion_cost_usd=maybe(Decimal(draw.randrange(10**9)) / 10**8),
            total_cost_usd=maybe(Decimal(draw.randrange(10**9)) / 10**8),
            error_message=maybe(draw.choice(["timed out", "refused", "é" * 2000])),
        )
        for _ in range(count)
    ]


def known(traces: list[Trace], column: str) -> list[Any]:
    return [row[column] for row in traces if row.get(column) is not None]


def total(column: str) -> Callable[[list[Trace]], Any]:
    return lambda traces: sum(known(traces, column)) if known(traces, column) else None


def mean(column: str) -> Callable[[list[Trace]], Any]:
    def of(traces: list[Trace]) -> Any:
        values = known(traces, column)
        return pytest.approx(Decimal(sum(values)) / len(values), rel=Decimal("1e-12")) if values else None

    return of


def distinct(column: str) -> Callable[[list[Trace]], Any]:
    return lambda traces: len(set(known(traces, column)))


def with_status(status: str) -> Callable[[list[Trace]], Any]:
    return lambda traces: sum(row["status_code"] == status for row in traces)


def sample_error(traces: list[Trace]) -> str | None:
    return min((message[:1000] for message in known(traces, "error_message")), default=None)


COSTS = {column: total(column) for column in ("total_cost_usd", "prompt_cost_usd", "completion_cost_usd")}
TOKENS = {
    "total_tokens": total("total_tokens"),
    "total_prompt_tokens": total("prompt_tokens"),
    "total_completion_tokens": total("completion_tokens"),
}
BASE = {
    "request_count": len,
    "total_tokens": total("total_tokens"),
    "total_cost_usd": total("total_cost_usd"),
    "avg_duration_ms": mean("duration_ms"),
    "min_duration_ms": lambda traces: min(known(traces, "duration_ms")),
    "max_duration_ms": lambda traces: max(known(traces, "duration_ms")),
    "sum_duration_ms_squared": lambda traces: sum(value**2 for value in known(traces, "duration_ms")),
    "avg_prompt_tokens": mean("prompt_tokens"),
    "avg_completion_tokens": mean("completion_tokens"),
}
VALUES: dict[str, dict[str, Callable[[list[Trace]], Any]]] = {
    "llm_metrics_1min": BASE,
    "llm_metrics_1hour": BASE
    | TOKENS
    | COSTS
    | {"error_count": with_status("ERROR"), "success_count": with_status("OK")},
    "llm_metrics_1day": BASE
    | TOKENS
    | COSTS
    | {
        "unique_users": distinct("user_id"),
        "unique_sessions": distinct("session_id"),
        "avg_cost_per_request": mean("total_cost_usd"),
    },
    "llm_error_summary": {
        "error_count": len,
        "sample_error_message": sample_error,
        "avg_duration_ms": mean("duration_ms"),
        "total_cost_usd": total("total_cost_usd"),
        "affected_users": distinct("user_id"),
        "affected_sessions": distinct("session_id"),
    },
    "cost_analysis_hourly": COSTS | {"request_count": len, "total_tokens": total("total_tokens")},
}


def expected(name: str, traces: list[Trace]) -> list[dict[str, Any]]:
    """What the aggregate should hold, computed without a database."""
    groups = defaultdict(list)
    for row in traces:
        if name != "llm_error_summary" or row["status_code"] != "OK":
            bucket = row["ts"] - (row["ts"] - MIDNIGHT) % BUCKETS[name]
            groups[(bucket, *(row.get(key) for key in KEYS[name]))].append(row)
    return [
        dict(zip(("bucket", *KEYS[name]), key, strict=True))
        | {column: value(members) for column, value in VALUES[name].items()}
        for key, members in sorted(groups.items(), key=lambda group: sortable(group[0]))
    ]


def sortable(key: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple((part is None, part or "") for part in key)


def stored(connection: Connection, name: str) -> list[dict[str, Any]]:
    order = ", ".join(("bucket", *KEYS[name]))
    return connection.execute(f"SELECT * FROM {name} ORDER BY {order}".encode()).fetchall()


def refresh(connection: Connection, name: str, start: datetime | None = None, end: datetime | None = None) -> None:
    connection.execute("CALL observatory.refresh_aggregate(%s, %s, %s)", [name, start, end])


def now(connection: Connection) -> datetime:
    row = connection.execute("SELECT now() AS now").fetchone()
    assert row is not None
    return row["now"].astimezone(UTC)  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", AGGREGATES)
def test_an_aggregate_equals_a_query_of_the_raw_rows(connection: Connection, name: str) -> None:
    traces = random_traces(400)
    insert(connection, *traces)

    refresh(connection, name, MIDNIGHT, MIDNIGHT + 2 * DAY)

    assert stored(connection, name) == expected(name, traces)


@pytest.mark.parametrize("name", AGGREGATES)
def test_a_second_refresh_writes_nothing(connection: Connection, name: str) -> None:
    insert(connection, *random_traces(50))
    versions = f"SELECT tableoid, ctid, xmin FROM observatory.{name} ORDER BY 1, 2"
    refresh(connection, name, MIDNIGHT, MIDNIGHT + 2 * DAY)
    before = connection.execute(versions.encode()).fetchall()

    refresh(connection, name, MIDNIGHT, MIDNIGHT + 2 * DAY)

    assert before
    assert connection.execute(versions.encode()).fetchall() == before


@pytest.mark.parametrize("name", AGGREGATES)
def test_a_refresh_adds_late_rows_and_removes_empty_groups(connection: Connection, name: str) -> None:
    first = [trace(MIDNIGHT + n * HOUR, status_code="ERROR", model=f"m{n % 3}") for n in range(48)]
    insert(connection, *first)
    refresh(connection, name, MIDNIGHT, MIDNIGHT + 2 * DAY)
    late = [trace(MIDNIGHT + timedelta(minutes=7), status_code="ERROR", model="late"), trace(MIDNIGHT + 5 * HOUR)]
    insert(connection, *late)
    connection.execute("DELETE FROM llm_traces WHERE model = 'm1'")

    refresh(connection, name, MIDNIGHT, MIDNIGHT + 2 * DAY)

    assert stored(connection, name) == expected(name, [row for row in first + late if row["model"] != "m1"])


@pytest.mark.parametrize("name", AGGREGATES)
def test_history_outlives_the_raw_rows(connection: Connection, name: str) -> None:
    traces = [trace(MIDNIGHT + n * DAY, status_code="ERROR") for n in range(4)]
    insert(connection, *traces)
    refresh(connection, name, MIDNIGHT, MIDNIGHT + 4 * DAY)
    history = stored(connection, name)

    connection.execute("SELECT drop_chunks('llm_traces', %s)", [MIDNIGHT + 2 * DAY])
    refresh(connection, name, MIDNIGHT, MIDNIGHT + 4 * DAY)
    assert stored(connection, name) == history

    connection.execute("SELECT drop_chunks('llm_traces', %s)", [MIDNIGHT + 4 * DAY])
    refresh(connection, name, MIDNIGHT, MIDNIGHT + 4 * DAY)
    refresh(connection, name)
    assert stored(connection, name) == history
    assert len(history) == 4


@pytest.mark.parametrize(
    ("name", "start", "end"),
    [
        ("llm_metrics_1min", HOUR, timedelta(minutes=1)),
        ("llm_metrics_1hour", DAY, HOUR),
        ("llm_metrics_1day", 7 * DAY, DAY),
        ("llm_error_summary", DAY, HOUR),
        ("cost_analysis_hourly", DAY, HOUR),
    ],
)
def test_a_scheduled_refresh_computes_the_whole_buckets_of_its_window(
    connection: Connection, name: str, start: timedelta, end: timedelta
) -> None:
    bucket, instant = BUCKETS[name], now(connection)
    this_bucket = instant - (instant - MIDNIGHT) % bucket
    traces = [trace(this_bucket - n * bucket, status_code="ERROR") for n in range(start // bucket + 3)]
    insert(connection, *traces)

    before = now(connection)
    refresh(connection, name)
    after = now(connection)

    times = {row["bucket"] for row in stored(connection, name)}
    # A bucket that starts or ends between the two instants may be included or not.
    surely_in = {row["ts"] for row in traces if row["ts"] >= after - start and row["ts"] + bucket <= before - end}
    surely_out = {row["ts"] for row in traces if row["ts"] < before - start or row["ts"] + bucket > after - end}
    assert surely_in <= times
    assert not surely_out & times
    assert len(surely_in) >= start // bucket - 3


def test_a_manual_refresh_computes_only_whole_buckets_of_its_window(connection: Connection) -> None:
    insert(connection, *(trace(MIDNIGHT + n * HOUR) for n in range(5)))

    refresh(
        connection, "llm_metrics_1hour", MIDNIGHT + timedelta(minutes=1), MIDNIGHT + 4 * HOUR - timedelta(minutes=1)
    )

    assert [row["bucket"] for row in stored(connection, "llm_metrics_1hour")] == [MIDNIGHT + HOUR, MIDNIGHT + 2 * HOUR]


def test_a_refresh_continues_where_the_last_one_ended(connection: Connection) -> None:
    refresh(connection, "llm_metrics_1min")
    instant = now(connection)
    insert(connection, *(trace(instant - n * HOUR) for n in (2, 4, 6)))
    connection.execute("UPDATE observatory.aggregates SET refreshed_until = %s", [instant - 5 * HOUR])

    refresh(connection, "llm_metrics_1min")

    assert len(stored(connection, "llm_metrics_1min")) == 2


@pytest.mark.parametrize("name", AGGREGATES)
def test_a_refresh_without_traces_only_records_itself(connection: Connection, name: str) -> None:
    refresh(connection, name)

    assert stored(connection, name) == []
    policy = connection.execute("SELECT * FROM observatory.aggregates WHERE name = %s", [name]).fetchone()
    assert policy is not None
    assert policy["refreshed_at"] is not None
    assert policy["refreshed_until"] <= now(connection) - policy["refresh_to"]


@pytest.mark.parametrize("name", AGGREGATES)
def test_a_refresh_without_new_traces_writes_nothing(connection: Connection, name: str) -> None:
    """No transaction id is assigned, so nothing reaches the WAL; after a day the refresh records itself."""
    insert(connection, trace(now(connection) - 8 * DAY), trace(now(connection)))
    refresh(connection, name)
    with connection.transaction():
        refresh(connection, name)
        assigned = connection.execute("SELECT pg_current_xact_id_if_assigned() AS id").fetchone()
    assert assigned == {"id": None}

    connection.execute("UPDATE observatory.aggregates SET refreshed_at = refreshed_at - INTERVAL '25 hours'")
    refresh(connection, name)
    recorded = connection.execute(
        "SELECT now() - refreshed_at AS age FROM observatory.aggregates WHERE name = %s", [name]
    )
    assert all(row["age"] < HOUR for row in recorded)


def test_concurrent_refreshes_write_each_row_once(connection: Connection, conninfo: str) -> None:
    traces = random_traces(100)

    def add_and_refresh(part: list[Trace]) -> None:
        with psycopg.connect(conninfo, autocommit=True, row_factory=dict_row) as own:
            for start in range(0, len(part), 5):
                insert(own, *part[start : start + 5])
                refresh(own, "cost_analysis_hourly", MIDNIGHT, MIDNIGHT + 2 * DAY)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(add_and_refresh, [traces[n::4] for n in range(4)]))

    assert stored(connection, "cost_analysis_hourly") == expected("cost_analysis_hourly", traces)


def test_an_unknown_aggregate_is_refused(connection: Connection) -> None:
    with pytest.raises(errors.UndefinedObject, match="no aggregate 'llm_traces'"):
        refresh(connection, "llm_traces")


@pytest.mark.parametrize("name", AGGREGATES)
def test_columns_are_the_public_contract(connection: Connection, name: str) -> None:
    query = (
        "SELECT attname, format_type(atttypid, atttypmod) AS type "
        "FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0"
    )
    columns = {row["attname"]: row["type"] for row in connection.execute(query, [name]).fetchall()}

    assert set(columns) == {"bucket", *KEYS[name], *VALUES[name]}
    assert columns.pop("bucket") == "timestamp with time zone"
    assert {columns[key] for key in KEYS[name]} == {"text"}
    assert {columns[column] for column in columns if column.endswith("_count")} <= {"bigint"}
    assert {columns[column] for column in columns if column.endswith("_usd")} == ({"numeric"})


def test_a_query_of_a_model_over_time_uses_an_index(connection: Connection) -> None:
    insert(connection, *(trace(MIDNIGHT + n * timedelta(minutes=1), model=f"m{n % 50}") for n in range(1000)))
    refresh(connection, "llm_metrics_1min", MIDNIGHT, MIDNIGHT + DAY)
    connection.execute("ANALYZE observatory.llm_metrics_1min")

    query = b"EXPLAIN SELECT * FROM llm_metrics_1min WHERE provider = 'openai' AND model = 'm7' ORDER BY bucket DESC"
    plan = "\n".join(row["QUERY PLAN"] for row in connection.execute(query).fetchall())

    assert "llm_metrics_1min_model_bucket" in plan
