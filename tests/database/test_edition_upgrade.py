"""An Apache database becomes a community one: as if it had been made so, with its history."""

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from observatory.database import (
    UnsuitableServerError,
    deploy,
    edition_gaps,
    ensure_database,
    schedule_jobs,
    status,
    upgrade_edition,
    verify,
)
from tests.database.conftest import SHIPPED
from tests.support.postgres import SETTINGS, PostgresServer, community_server

DATABASE, OWNER = "observatory", "migrator"
AGGREGATES = ("llm_metrics_1min", "llm_metrics_1hour", "llm_metrics_1day", "llm_error_summary", "cost_analysis_hourly")
REFRESH = "CALL refresh_continuous_aggregate('llm_metrics_1day', now() - INTERVAL '7 days', now() - INTERVAL '1 day')"


@pytest.fixture
def server(rootfs: Path) -> Iterator[PostgresServer]:
    """A server that has the community edition's module but runs as the Apache edition, with pg_cron."""
    settings = {
        "shared_preload_libraries": SETTINGS["shared_preload_libraries"] + ",pg_cron",
        "cron.database_name": DATABASE,
        "cron.launch_active_jobs": "off",
        "timescaledb.license": "apache",
    }
    manager = community_server(rootfs, **settings)
    if manager is None:
        pytest.skip("needs TimescaleDB's community edition: OBSERVATORY_PG_PREFIX names no installation")
    with manager as server:
        ensure_database(server.conninfo(), name=DATABASE, owner=OWNER)
        yield server


def switch(server: PostgresServer) -> None:
    server.settings = {**server.settings, "timescaledb.license": "timescale"}
    server.restart()


def contents(connection: psycopg.Connection) -> dict[str, list[str]]:
    return {
        name: [row[0] for row in connection.execute(f"SELECT t::text FROM {name} t ORDER BY 1".encode()).fetchall()]
        for name in AGGREGATES
    }


@pytest.mark.community
def test_an_apache_database_becomes_a_community_one_with_its_history(server: PostgresServer) -> None:
    owner = server.conninfo(user=OWNER, dbname=DATABASE)
    deploy(owner, migrations=SHIPPED, actor="tester", deployment_id="before")
    schedule_jobs(owner)
    with psycopg.connect(owner, autocommit=True) as connection:
        connection.execute("""
            INSERT INTO llm_traces (ts, trace_id, span_id, span_name, provider, model, input_type, duration_ms,
                                    status_code, total_cost_usd, user_id)
            SELECT now() - make_interval(hours => n), 't' || n, 's', 'n', 'p', 'm', 'text', 60000, 'ERROR', 1, 'u' || n
            FROM generate_series(1, 800, 7) n  -- less than any retention
        """)
        for name in AGGREGATES:
            connection.execute("CALL observatory.refresh_aggregate(%s, now() - INTERVAL '90 days', now())", [name])
        # History outlives its raw rows.
        connection.execute("SELECT drop_chunks('llm_traces', older_than => INTERVAL '10 days')")
        before = contents(connection)
    with pytest.raises(UnsuitableServerError, match=r"Apache edition\. Install the community edition, set timescaledb"):
        upgrade_edition(owner, migrations=SHIPPED, actor="tester", deployment_id="upgrade")

    switch(server)
    unchanged = verify(owner, migrations=SHIPPED)
    assert {check.name for check in unchanged.problems} == {"reads as the service", "writes as the service"}
    assert unchanged.edition == "apache"  # it works as it was until it is upgraded
    changed = upgrade_edition(owner, migrations=SHIPPED, actor="tester", deployment_id="upgrade")
    again = upgrade_edition(owner, migrations=SHIPPED, actor="tester", deployment_id="upgrade")
    schedule_jobs(owner)

    assert (changed, again) == (("004_continuous_aggregates", "005_retention_policies"), ())
    upgraded = verify(owner, migrations=SHIPPED)
    assert {str(check) for check in upgraded.problems if check.verdict == "failed"} == set()
    assert (upgraded.edition, upgraded.version) == ("community", 6)
    assert edition_gaps(owner) == ()
    assert {entry.variant for entry in status(owner).applied} == {None, "community"}
    with psycopg.connect(owner, autocommit=True) as connection:
        assert connection.execute("SELECT count(*) FROM cron.job").fetchone() == (0,)
        assert contents(connection) == before
        assert all(before.values())
        connection.execute(REFRESH.encode())
        assert len(contents(connection)["llm_metrics_1day"]) == len(before["llm_metrics_1day"])
    assert deploy(owner, migrations=SHIPPED, actor="tester", deployment_id="after").applied == ()
