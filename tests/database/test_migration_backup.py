"""The backup before a migration: when it is made, which kind, and that nothing changes without it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from observatory.database import BackupFailedError, plan, plan_backup, status
from observatory.database.errors import DrillRequiredError
from observatory.database.migration_backup import Kind, ReusableBackup
from observatory.database.migrations.events import Event
from tests.database.conftest import Deploy, WriteMigrations

NOW = datetime(2026, 11, 23, tzinfo=UTC)


@dataclass
class Backups:
    """Records its calls, and returns or raises what the test sets."""

    full: datetime | None = None
    recent: ReusableBackup | None = None
    calls: list[str] = field(default_factory=list)
    at_create: Callable[[], None] = lambda: None
    at_verify: Callable[[], None] = lambda: None
    at_check: Callable[[], None] = lambda: None

    def check_permitted(self) -> None:
        self.at_check()

    def reusable(self) -> ReusableBackup | None:
        return self.recent

    def archive(self) -> None:
        self.calls.append("archive")

    def latest_full(self) -> datetime | None:
        return self.full

    def create(self, kind: Kind) -> str:
        self.calls.append(f"create {kind}")
        self.at_create()
        return "20261123-230000F"

    def verify(self, label: str) -> None:
        self.calls.append(f"verify {label}")
        self.at_verify()


def fail() -> None:
    raise BackupFailedError("no room")


def test_an_empty_database_needs_no_backup(run_deploy: Deploy, write_migrations: WriteMigrations) -> None:
    backups = Backups()

    done = run_deploy(migrations=write_migrations(_001_a="CREATE TABLE a ();"), backup=backups)

    assert (done.backup_label, backups.calls) == (None, [])


def test_a_backup_is_made_and_verified_before_the_first_file_and_its_label_is_kept(
    run_deploy: Deploy, conninfo: str, write_migrations: WriteMigrations
) -> None:
    directory = write_migrations(_001_a="CREATE TABLE a ();")
    run_deploy(migrations=directory)
    write_migrations(_002_b="CREATE TABLE b ();", _003_c="-- transaction: false\nSELECT 1;\nVACUUM a;")
    events: list[Event] = []
    backups = Backups(at_create=lambda: seen.append(status(conninfo).version))
    seen: list[int] = []

    done = run_deploy(migrations=directory, backup=backups, on_event=events.append)

    assert backups.calls == ["create full", "verify 20261123-230000F"]
    assert seen == [1]
    assert done.backup_label == "20261123-230000F"
    assert [entry.backup_label for entry in status(conninfo).applied] == [None, *["20261123-230000F"] * 2]
    assert [event.kind for event in events][:3] == ["backup", "backup", "applying"]


def refuse() -> None:
    raise DrillRequiredError("no drill", remedy="Run one.")


def test_without_the_drill_that_is_required_no_backup_is_made_and_nothing_migrated(
    run_deploy: Deploy, conninfo: str, write_migrations: WriteMigrations
) -> None:
    backups = Backups(at_check=refuse)
    directory = write_migrations(_001_a="CREATE TABLE a ();")
    run_deploy(migrations=directory, backup=backups)  # an empty database has nothing to lose
    write_migrations(_002_b="CREATE TABLE b ();")

    planned = plan(conninfo, migrations=directory, backup=backups)
    with pytest.raises(DrillRequiredError, match="no drill") as raised:
        run_deploy(migrations=directory, backup=backups)

    assert planned.refusals == ("no drill\nRun one.",)
    assert not planned.would_succeed
    assert (raised.value.exit_code, backups.calls, status(conninfo).version) == (3, [], 1)
    assert run_deploy(migrations=directory, backup=Backups()).applied == ("002_b",)
    assert plan(conninfo, migrations=directory, backup=backups).refusals == ()  # nothing is pending


def test_nothing_pending_needs_no_backup(run_deploy: Deploy, write_migrations: WriteMigrations) -> None:
    directory = write_migrations(_001_a="CREATE TABLE a ();")
    run_deploy(migrations=directory)
    backups = Backups()

    run_deploy(migrations=directory, backup=backups)

    assert backups.calls == []


def test_tables_without_a_ledger_are_backed_up_too(
    run_deploy: Deploy, conninfo: str, write_migrations: WriteMigrations
) -> None:
    with psycopg.connect(conninfo) as connection:
        connection.execute("CREATE TABLE precious ()")
    backups = Backups()

    run_deploy(migrations=write_migrations(_001_a="CREATE TABLE a ();"), backup=backups)

    assert backups.calls[0] == "create full"


@pytest.mark.parametrize("backups", [Backups(at_create=fail), Backups(at_verify=fail)], ids=["make", "verify"])
def test_a_backup_that_cannot_be_made_or_verified_stops_the_migration(
    run_deploy: Deploy, conninfo: str, write_migrations: WriteMigrations, backups: Backups
) -> None:
    directory = write_migrations(_001_a="CREATE TABLE a ();")
    run_deploy(migrations=directory)
    write_migrations(_002_b="CREATE TABLE b ();")

    with pytest.raises(BackupFailedError, match="no room"):
        run_deploy(migrations=directory, backup=backups)

    assert status(conninfo).version == 1
    assert run_deploy(migrations=directory).applied == ("002_b",)


@pytest.mark.parametrize(
    ("age", "kind", "why"),
    [
        (None, "full", "no full backup yet"),
        (timedelta(days=9), "full", "9 days old"),
        (timedelta(days=7), "incr", "ended at 2026-11-16 00:00 UTC"),
    ],
)
def test_an_incremental_backup_builds_on_a_recent_full_one(age: timedelta | None, kind: str, why: str) -> None:
    planned = plan_backup(Backups(full=None if age is None else NOW - age), now=NOW)

    assert planned.kind == kind
    assert why in planned.why


def test_a_recent_backup_is_enough_once_the_wal_up_to_now_is_archived(
    run_deploy: Deploy, conninfo: str, write_migrations: WriteMigrations
) -> None:
    directory = write_migrations(_001_a="CREATE TABLE a ();")
    run_deploy(migrations=directory)
    write_migrations(_002_b="CREATE TABLE b ();")
    backups = Backups(full=NOW, recent=ReusableBackup(label="20261123-220000F", ended=NOW, minutes=60))

    planned = plan(conninfo, migrations=directory, backup=backups)
    assert planned.backup is not None
    assert (planned.backup.kind, planned.backup.label, backups.calls) == ("reuse", "20261123-220000F", [])
    assert "20261123-220000F of 2026-11-23 00:00 UTC is younger than 60 minutes" in planned.backup.why
    assert (
        "`observatory rollback --method database --to-time TIME`, from the backup 20261123-220000F" in planned.way_back
    )

    assert run_deploy(migrations=directory, backup=backups).backup_label == "20261123-220000F"
    assert backups.calls == ["archive", "verify 20261123-220000F"]
