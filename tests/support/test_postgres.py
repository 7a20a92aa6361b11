"""The server of the suite does nothing of its own in the databases of tests."""

from __future__ import annotations

from tests.support.postgres import PostgresServer
from tests.support.waiting import until


def test_no_job_of_timescaledb_runs_beside_a_test(postgres: PostgresServer) -> None:
    workers = "SELECT FROM pg_stat_activity WHERE backend_type LIKE 'TimescaleDB%'"
    with postgres.fresh_database(extensions=False) as name, postgres.superuser(name) as connection:
        connection.execute("CREATE EXTENSION timescaledb")
        until(lambda: connection.execute(workers).fetchone() is None, "the workers of TimescaleDB to be gone")
        assert connection.execute("SELECT count(*) FROM _timescaledb_internal.bgw_job_stat").fetchone() == (0,)
