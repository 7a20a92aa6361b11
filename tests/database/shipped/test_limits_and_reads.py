"""Migration 007: texts up to the service's limit, and reads of one model or one provider."""

from pathlib import Path

import psycopg
import pytest
from psycopg import errors

from observatory.database import plan
from observatory.database.migrations.files import read_migrations
from observatory.database.migrations.statements import parse
from observatory.platforms.rehearsal import rehearsal_server
from tests.database.conftest import SHIPPED, Deploy
from tests.database.shipped.test_tables import LOG, METRIC, TRACE, insert

LONG = "é" * 1024 * 1024
SPANS = """
    INSERT INTO llm_traces (ts, trace_id, span_id, span_name, provider, model, input_type, duration_ms, status_code)
    SELECT '2026-01-01'::timestamptz + n * interval '10 seconds', 't' || n, 's', 'chat', 'p' || n % 50, 'm' || n % 50,
           'text', n, 'OK'
    FROM generate_series(1, 20000) n
"""


def test_the_plan_from_schema_6_is_rehearsed_and_adds_only(run_deploy: Deploy, conninfo: str, rootfs: Path) -> None:
    run_deploy(migrations=SHIPPED, target=6)

    planned = plan(conninfo, migrations=SHIPPED, throwaway=rehearsal_server(rootfs))

    assert (planned.version, planned.rehearsal, planned.would_succeed) == (6, "passed", True)
    file = planned.pending[0]
    assert (file.name, file.transactional, file.findings) == ("007_text_limits_and_read_indexes", False, ())
    assert parse(next(each for each in read_migrations(SHIPPED) if each.version == 7)).phase == "expand"


def test_existing_rows_stay_and_longer_texts_are_stored(run_deploy: Deploy, conninfo: str) -> None:
    run_deploy(migrations=SHIPPED, target=6)
    with psycopg.connect(conninfo, autocommit=True) as connection:
        insert(connection, "llm_traces", TRACE)
        with pytest.raises(errors.CheckViolation, match="llm_traces_text_bytes"):
            insert(connection, "llm_traces", TRACE | {"span_id": "long", "input_text": LONG})

        run_deploy(migrations=SHIPPED)

        insert(connection, "llm_traces", TRACE | {"span_id": "text", "input_text": LONG, "output_text": LONG})
        as_json = f'["{LONG}"]'
        insert(connection, "llm_traces", TRACE | {"span_id": "json", "input_messages": as_json, "events": as_json})
        insert(connection, "llm_metrics", METRIC | {"tags": as_json})
        insert(connection, "llm_logs", LOG | {"message": LONG, "attributes": as_json})
        spans = connection.execute("SELECT span_id FROM llm_traces ORDER BY 1").fetchall()
        assert spans == [("json",), ("s",), ("text",)]
        with pytest.raises(errors.CheckViolation, match="llm_traces_name_bytes"):
            insert(connection, "llm_traces", TRACE | {"span_id": "name", "user_id": "x" * 513})


@pytest.mark.parametrize("column", ["model", "provider"])
def test_reads_of_one_model_or_provider_use_an_index_in_every_chunk(
    run_deploy: Deploy, conninfo: str, column: str
) -> None:
    run_deploy(migrations=SHIPPED, target=6)
    with psycopg.connect(conninfo, autocommit=True) as connection:
        connection.execute(SPANS.encode())
        run_deploy(migrations=SHIPPED)
        connection.execute("ANALYZE llm_traces")
        query = f"EXPLAIN SELECT * FROM llm_traces WHERE {column} = '{column[0]}7' ORDER BY ts DESC LIMIT 100"
        steps = [row[0] for row in connection.execute(query.encode()).fetchall()]

    scans = [step for step in steps if " Scan using " in step]
    assert len(scans) == 3  # the days of the rows
    assert all(f"llm_traces_{column}_ts" in step for step in scans)
