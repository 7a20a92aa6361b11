"""A recent backup is enough before migrations, and no file is compared twice, on a real repository."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, tzinfo
from typing import Self

import pytest

from observatory.backups import migration_backup
from observatory.backups.migration_backup import MigrationBackup
from observatory.backups.pgbackrest import PgBackRest
from observatory.backups.tool import BackupType
from observatory.backups.verified import RECORD
from observatory.database import BackupFailedError, make_backup, plan_backup
from observatory.nodes.programs.backup_repository import Report
from tests.backups.conftest import ArchivingServer
from tests.support.waiting import until

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def backed_up(server: ArchivingServer) -> tuple[ArchivingServer, str]:
    """A server and the label of its full backup."""
    server.tool.prepare()
    return server, server.tool.backup(BackupType.FULL, repository=1).label


@pytest.fixture
def comparisons(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The backups of which pgBackRest compares every file."""
    compared: list[str] = []

    class Counted(PgBackRest):
        def verify(self, repository: int, *, label: str | None = None, contents: bool = False) -> Report:
            if label and contents:
                compared.append(label)
            return super().verify(repository, label=label, contents=contents)

    monkeypatch.setattr(migration_backup, "PgBackRest", Counted)
    return compared


def test_a_retry_makes_and_compares_no_backup_again(
    backed_up: tuple[ArchivingServer, str], comparisons: list[str]
) -> None:
    server, full = backed_up
    server.sandbox.host_path(RECORD).unlink(missing_ok=True)
    backup, reports = MigrationBackup(server.sandbox, reuse_minutes=60), list[str]()

    planned = plan_backup(backup)
    assert (planned.kind, planned.label) == ("reuse", full)
    assert planned.why.startswith(f"{full} of ")
    assert "is younger than 60 minutes (backups.reuse_minutes)" in planned.why
    assert comparisons == []
    server.sql("CREATE TABLE written_after_the_backup ()")
    written = server.sql("SELECT pg_walfile_name(pg_current_wal_lsn())")
    assert [make_backup(backup, reports.append) for _ in range(2)] == [full, full]

    assert comparisons == [full]
    assert reports[0] == f"no new backup: {planned.why}"
    assert any(each.name.startswith(written) for each in server.segments())  # the WAL up to now is archived


def test_a_new_backup_on_a_compared_one_is_checked_without_reading_that_again(
    backed_up: tuple[ArchivingServer, str], comparisons: list[str]
) -> None:
    server, full = backed_up
    backup = MigrationBackup(server.sandbox, reuse_minutes=0)
    backup.verify(full)
    comparisons.clear()

    made = make_backup(backup, lambda _detail: None)
    assert made.startswith(f"{full}_")
    assert comparisons == []

    file = next(each for each in (server.repository / "backup/observatory" / full).rglob("*") if each.is_file())
    content = file.read_bytes()
    file.write_bytes(content)  # another time of change
    assert make_backup(backup, lambda _detail: None) == comparisons[0]


@pytest.mark.parametrize(("minutes", "age"), [(0, timedelta()), (60, timedelta(minutes=61))], ids=["never", "too old"])
def test_an_old_backup_or_the_setting_0_needs_a_new_one(
    backed_up: tuple[ArchivingServer, str], minutes: int, age: timedelta, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Later(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Self:
            return cls.fromtimestamp((datetime.now(UTC) + age).timestamp(), tz)

    monkeypatch.setattr(migration_backup, "datetime", Later)
    backup = MigrationBackup(backed_up[0].sandbox, reuse_minutes=minutes)
    assert backup.reusable() is None
    assert plan_backup(backup).kind == "incr"
    assert plan_backup(MigrationBackup(backed_up[0].sandbox, reuse_minutes=60), reuse=False).kind == "incr"


@pytest.mark.usefixtures("repository_kept")
def test_a_backup_without_its_wal_is_not_used_and_an_archive_that_fails_stops(
    backed_up: tuple[ArchivingServer, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, _ = backed_up
    backup = MigrationBackup(server.sandbox, reuse_minutes=60)
    server.archive_segments(2)
    assert backup.reusable() is not None
    server.segments()[-1].unlink()
    assert backup.reusable() is None

    server.sql("ALTER SYSTEM SET archive_command = 'false'")
    server.sql("SELECT pg_reload_conf()")
    until(lambda: server.sql("SHOW archive_command") == "false", "the server, and so its archiver, to have the command")
    monkeypatch.setattr("observatory.backups.pgbackrest.QUERY_TIMEOUT_S", 5)
    try:
        with pytest.raises(BackupFailedError, match="nothing was migrated: WAL segment"):
            backup.archive()
    finally:
        server.sql("ALTER SYSTEM RESET archive_command")
        server.sql("SELECT pg_reload_conf()")
        server.archive_segments(1)
