"""An upgraded Apache database equals a new community one, and keeps its history."""

from collections.abc import Iterator
from datetime import datetime
from functools import partial
from pathlib import Path

import psycopg
import pytest

from observatory.database import (
    BackupFailedError,
    EditionRefusedError,
    LockTimeoutError,
    deploy,
    edition_gaps,
    ensure_database,
    plan_upgrade,
    schedule_jobs,
    status,
    upgrade_edition,
    verify,
)
from observatory.database.edition_upgrade import _Upgrade
from observatory.database.migration_session import MIGRATION_SETTINGS
from observatory.database.migrations.files import load_migrations
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


class Backups:
    """Backups that are made by name only."""

    def __init__(self) -> None:
        self.labels: list[str] = []

    def reusable(self) -> None:
        return None

    def archive(self) -> None:
        raise NotImplementedError

    def check_permitted(self) -> None:
        pass

    def latest_full(self) -> datetime | None:
        return None

    def create(self, _kind: str) -> str:
        self.labels.append(f"backup-{len(self.labels) + 1}")
        return self.labels[-1]

    def verify(self, label: str) -> None:
        assert label in self.labels


class NoBackup(Backups):
    """A repository that is full."""

    def create(self, _kind: str) -> str:
        raise BackupFailedError("no space")


def fill(owner: str) -> dict[str, list[str]]:
    """Compute aggregates, drop their old raw rows, add a job and a view of one's own; return the aggregates' rows."""
    with psycopg.connect(owner, autocommit=True) as connection:
        connection.execute("""
            INSERT INTO llm_traces (ts, trace_id, span_id, span_name, provider, model, input_type, duration_ms,
                                    status_code, total_cost_usd, user_id)
            SELECT now() - make_interval(hours => n), 't' || n, 's', 'n', 'p', 'm', 'text', 60000, 'ERROR', 1, 'u' || n
            FROM generate_series(1, 800, 7) n  -- less than any retention
        """)
        for name in AGGREGATES:
            connection.execute("CALL observatory.refresh_aggregate(%s, now() - INTERVAL '90 days', now())", [name])
        # The raw rows of the history no longer exist.
        connection.execute("SELECT drop_chunks('llm_traces', older_than => INTERVAL '10 days')")
        connection.execute("INSERT INTO observatory.jobs VALUES ('own', '7 * * * *', 'SELECT 1')")
        connection.execute("CREATE VIEW daily AS SELECT * FROM llm_metrics_1day")
        return contents(connection)


@pytest.mark.community
def test_an_apache_database_is_upgraded_to_the_community_edition_with_its_history(
    server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = server.conninfo(user=OWNER, dbname=DATABASE)
    deploy(owner, migrations=SHIPPED, actor="tester", deployment_id="before")
    schedule_jobs(owner)
    before = fill(owner)
    backup = Backups()
    upgrade = partial(
        upgrade_edition, owner, migrations=SHIPPED, actor="tester", deployment_id="upgrade", backup=backup
    )

    switch(server)
    unchanged = verify(owner, migrations=SHIPPED)
    assert {check.name for check in unchanged.problems} == {"reads as the service", "writes as the service"}
    assert unchanged.edition == "apache"  # unchanged until the upgrade
    planned = plan_upgrade(owner, migrations=SHIPPED, backup=backup)
    assert planned.migrations == ("004_continuous_aggregates", "005_retention_policies", "008_quiet_refresh")
    assert set(planned.aggregates) == set(AGGREGATES)
    assert all(size > 0 for size in planned.aggregates.values())
    assert planned.backup is not None
    assert planned.obstacles == (
        "view daily depends on view llm_metrics_1day. Drop it, and create it again after the move",
    )
    with pytest.raises(EditionRefusedError, match="view daily depends on view llm_metrics_1day"):
        upgrade()
    assert backup.labels == []  # only planned
    with psycopg.connect(owner) as connection:
        connection.execute("DROP VIEW daily")
    with psycopg.connect(owner) as reader:
        reader.execute("SELECT FROM llm_metrics_1day")
        # It waits for as long as a busy machine needs to look at who holds the lock.
        patient = {**MIGRATION_SETTINGS, "lock_timeout": "5s"}
        monkeypatch.setattr("observatory.database.edition_upgrade.MIGRATION_SETTINGS", patient)
        with pytest.raises(LockTimeoutError, match=rf"blocked by pid {reader.info.backend_pid} .*llm_metrics_1day"):
            upgrade(retry=0)
    assert {entry.variant for entry in status(owner).applied} == {None, "apache"}

    changed, again = upgrade(), upgrade()
    schedule_jobs(owner)

    assert (changed.applied, changed.backup_label, changed.version) == (planned.migrations, "backup-2", 8)
    assert (again.applied, again.backup_label, len(backup.labels)) == ((), None, 2)
    assert plan_upgrade(owner, migrations=SHIPPED, backup=backup).migrations == ()
    upgraded = verify(owner, migrations=SHIPPED)
    assert {str(check) for check in upgraded.problems if check.verdict == "failed"} == set()
    assert (upgraded.edition, upgraded.version) == ("community", 8)
    assert edition_gaps(owner) == ()
    moved = {entry.name: entry.backup_label for entry in status(owner).applied if entry.variant == "community"}
    assert moved == dict.fromkeys(planned.migrations, "backup-2")
    with psycopg.connect(owner, autocommit=True) as connection:
        assert connection.execute("SELECT name FROM observatory.jobs").fetchall() == [("own",)]
        assert connection.execute("SELECT jobname FROM cron.job").fetchall() == [("observatory: own",)]
        assert contents(connection) == before
        assert all(before.values())
        connection.execute(REFRESH.encode())
        assert len(contents(connection)["llm_metrics_1day"]) == len(before["llm_metrics_1day"])
    assert deploy(owner, migrations=SHIPPED, actor="tester", deployment_id="after").applied == ()


@pytest.mark.community
def test_an_upgrade_is_refused_without_a_backup_or_with_pending_migrations(server: PostgresServer) -> None:
    owner = server.conninfo(user=OWNER, dbname=DATABASE)
    deploy(owner, migrations=SHIPPED, target=5, actor="tester", deployment_id="before")
    switch(server)
    upgrade = partial(upgrade_edition, owner, migrations=SHIPPED, actor="tester", deployment_id="upgrade")

    with pytest.raises(EditionRefusedError, match="006_supporting_tables, 007_text_limits_and_read_indexes"):
        upgrade()
    with pytest.raises(BackupFailedError, match="no space"):
        upgrade(target=5, backup=NoBackup())
    assert {entry.variant for entry in status(owner).applied} == {None, "apache"}

    assert upgrade(target=5, backup=Backups()).version == 5


def test_a_server_of_the_apache_edition_is_refused_with_a_remedy(conninfo: str) -> None:
    deploy(conninfo, migrations=SHIPPED, target=4, actor="tester", deployment_id="before")

    for call in (plan_upgrade, partial(upgrade_edition, actor="tester", deployment_id="upgrade")):
        with pytest.raises(
            EditionRefusedError, match=r"Apache edition of TimescaleDB 2\.\d+\.\d+\. Install .* restart"
        ):
            call(conninfo, migrations=SHIPPED, target=4)


def test_a_move_that_would_stop_is_refused_with_names_before_its_backup(conninfo: str) -> None:
    """By what runs once the server has the community edition, on a server that does not."""
    deploy(conninfo, migrations=SHIPPED, actor="tester", deployment_id="before")
    with psycopg.connect(conninfo) as connection:
        connection.execute("CREATE VIEW daily AS SELECT * FROM llm_metrics_1day")
    files, backup = load_migrations(SHIPPED, "community"), Backups()
    move = _Upgrade(conninfo=conninfo, actor="tester", deployment_id="move", retry=0, on_event=None)

    with pytest.raises(EditionRefusedError, match=r"(?s)nothing was changed.*- view daily depends on view llm_metrics"):
        move.run(lambda: [file for file in files if file.variant], backup)
    assert backup.labels == []
