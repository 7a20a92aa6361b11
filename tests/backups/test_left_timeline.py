"""A state of a timeline that a rollback left, from a backup that was made after the time to which it went back."""

from __future__ import annotations

from datetime import datetime

import pytest

from observatory.backups.cover import find_cover
from observatory.backups.pgbackrest import databases_in
from observatory.backups.restored import restored_instance
from observatory.backups.scratch import scratch_directory
from observatory.backups.target import RecoveryTarget
from observatory.backups.tool import BackupType
from tests.backups.conftest import ArchivingServer

pytestmark = pytest.mark.slow
NOW = "to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')"


def test_a_backup_of_a_timeline_that_was_left_can_be_restored(server: ArchivingServer) -> None:
    server.tool.prepare()
    server.sql("CREATE TABLE ledger AS SELECT 1 AS n")
    first = server.tool.backup(BackupType.FULL, repository=1)
    server.sql("INSERT INTO ledger VALUES (2)")
    before = server.sql("SELECT pg_current_wal_lsn()")
    server.archive_segments(1)
    second = server.tool.backup(BackupType.FULL, repository=1)
    server.sql("SELECT pg_sleep(1.1)")  # pgBackRest has whole seconds
    server.sql("INSERT INTO ledger VALUES (3)")
    time = datetime.fromisoformat(server.sql(f"SELECT {NOW}"))
    server.sql("INSERT INTO ledger VALUES (4)")
    server.archive_segments(1)
    server.roll_back(first.label, before)
    assert server.sql("SELECT string_agg(n::text, ' ' ORDER BY n) FROM ledger") == "1 2"

    cover = find_cover(server.sandbox, RecoveryTarget.at_time(time))
    assert cover.label == second.label
    own = int(server.sql("SELECT oid FROM pg_database WHERE datname = 'postgres'"))
    assert databases_in(server.tool.node(cover.repository), cover.label)[own] == "postgres"
    with (
        scratch_directory(server.sandbox, "test") as directory,
        restored_instance(cover, directory=directory) as instance,
        instance.connect() as connection,
    ):
        assert connection.execute("SELECT string_agg(n::text, ' ' ORDER BY n) FROM ledger").fetchone() == ("1 2 3",)
        assert "recovery" not in (directory.host / "postgres/postgresql.auto.conf").read_text().lower()
