"""Sessions of a database that end at once, as in a failover."""

from __future__ import annotations

import time

from observatory.database.connection import connect


def terminate_others(conninfo: str) -> None:
    """End every other session of the database, and wait until they are gone."""
    others = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    with connect(conninfo, purpose="test") as connection:
        connection.execute(f"SELECT pg_terminate_backend(pid) {others}")
        while connection.execute(f"SELECT count(*) {others} AND backend_type = 'client backend'").fetchone() != (0,):
            time.sleep(0.01)
