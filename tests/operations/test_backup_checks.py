"""The age of the newest backups, by the stack's schedule."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from observatory.backups.pgbackrest import PgBackRest
from observatory.backups.tool import Backup, BackupType
from observatory.nodes.prometheus import thresholds
from observatory.operations import backup_checks
from observatory.operations.backup_checks import BackupChecks
from observatory.operations.checks import CheckFailedError
from observatory.settings import LocalSettings
from observatory.settings.base import Schedule
from observatory.workspace import Workspace


def backup(*, age: timedelta) -> Backup:
    ended = datetime.now(UTC) - age
    return Backup(
        repository=1,
        label="20260101-000000F",
        type=BackupType.FULL,
        started=ended,
        ended=ended,
        database_bytes=1,
        repository_bytes=1,
        prior=None,
        wal_start="0",
        wal_stop="0",
        damaged=False,
    )


@pytest.mark.parametrize(
    ("schedule", "hours", "limit"),
    [
        ({}, 25, None),
        ({}, 27, "26 hours"),
        ({"backup_full": "0 1 * * sun", "backup_differential": "0 1 * * wed"}, 97, None),
        ({"backup_full": "0 1 * * sun", "backup_differential": "0 1 * * wed"}, 99, "98 hours"),
    ],
)
def test_the_newest_backup_may_be_as_old_as_the_schedule_lets_it_become(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, schedule: dict[str, str], hours: int, limit: str | None
) -> None:
    age = timedelta(seconds=thresholds(LocalSettings(schedule=Schedule(**schedule))).backup_age_seconds)
    monkeypatch.setattr(backup_checks, "list_backups", lambda *_args, **_options: [backup(age=timedelta(hours=hours))])
    monkeypatch.setattr(PgBackRest, "repositories", (1,))
    checks = BackupChecks(workspace=Workspace(root=tmp_path, stack="local"), newest_age=age)
    if limit is None:
        assert "20260101-000000F in repository 1 is " in checks.newest()
    else:
        with pytest.raises(CheckFailedError, match=f"hours old, the limit is {limit}"):
            checks.newest()
