"""Extensions are updated to the versions of the server's files, TimescaleDB too, whose old library is gone."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest

from components.access import DatabaseAccessProvider
from observatory.database import (
    BackupFailedError,
    UnsuitableServerError,
    deploy,
    ensure_database,
    plan,
    scram_verifier,
    status,
)
from observatory.database.errors import DatabaseDroppedError
from observatory.database.presence import Presence, presence_of
from observatory.database.roles.extension_updates import pending_extension_updates, update_extensions
from tests.database.conftest import SHIPPED
from tests.support.postgres import SETTINGS, PostgresServer, postgres_server

DATABASE, OWNER = "observatory", "migrator"
OLD = "2.19.2"  # has an update path, and no library on this server


class Backups:
    """A backup that is made by name only, or fails."""

    def __init__(self, *, fails: bool = False) -> None:
        self.fails, self.calls = fails, list[str]()

    def reusable(self) -> None:
        return None

    def archive(self) -> None:
        raise NotImplementedError

    def check_permitted(self) -> None:
        pass

    def latest_full(self) -> datetime | None:
        return datetime.now(UTC)

    def create(self, kind: str) -> str:
        self.calls.append(f"create {kind}")
        if self.fails:
            raise BackupFailedError("no space")
        return "label"

    def verify(self, label: str) -> None:
        self.calls.append(f"verify {label}")


@pytest.fixture(scope="module")
def server(rootfs: Path) -> Iterator[PostgresServer]:
    """A server as the stack configures it, with the database of a stack."""
    settings = {
        "shared_preload_libraries": SETTINGS["shared_preload_libraries"] + ",pg_cron",
        "cron.database_name": DATABASE,
    }
    with postgres_server(rootfs, **settings) as server:
        ensure_database(server.conninfo(), name=DATABASE, owner=OWNER)
        deploy(server.conninfo(user=OWNER, dbname=DATABASE), migrations=SHIPPED, actor="tester", deployment_id="test")
        yield server


def versions(server: PostgresServer) -> dict[str, str]:
    with psycopg.connect(server.conninfo(dbname=DATABASE), options="-c timescaledb.disable_load=on") as connection:
        return dict(connection.execute("SELECT extname, extversion FROM pg_extension").fetchall())


def make_old(server: PostgresServer, *, timescaledb: str = OLD) -> None:
    """Give the database older versions: PostgreSQL's and pg_cron's real ones, and TimescaleDB's number.

    Debian has one library of TimescaleDB, as after an upgrade of its package. The update runs its script from 2.19.2.
    """
    with psycopg.connect(server.conninfo(dbname=DATABASE), autocommit=True) as connection:
        connection.execute("DROP EXTENSION pg_stat_statements; CREATE EXTENSION pg_stat_statements VERSION '1.9'")
        version = "UPDATE _timescaledb_catalog.metadata SET value = %s WHERE key = 'timescaledb_version'"
        connection.execute(version.encode(), [timescaledb])
        connection.execute("UPDATE pg_extension SET extversion = %s WHERE extname = 'timescaledb'", [timescaledb])


def test_a_current_database_has_no_update(server: PostgresServer) -> None:
    backup = Backups()
    assert pending_extension_updates(server.conninfo(dbname=DATABASE)) == ()
    assert update_extensions(server.conninfo(dbname=DATABASE), backup=backup) == ()
    assert backup.calls == []


def test_up_updates_extensions_after_a_backup_and_the_plan_names_them(server: PostgresServer) -> None:
    current, owner = versions(server), server.conninfo(user=OWNER, dbname=DATABASE)
    make_old(server)
    expected = [f"timescaledb {OLD} to {current['timescaledb']}", "pg_stat_statements 1.9 to 1.11"]
    with pytest.raises(UnsuitableServerError, match=r"library of TimescaleDB .* Run `observatory up`"):
        status(owner)  # as every session, until the update
    assert [str(each) for each in pending_extension_updates(owner)] == expected

    failing = Backups(fails=True)
    with pytest.raises(BackupFailedError, match="no space"):
        ensure_database(server.conninfo(), name=DATABASE, owner=OWNER, backup=failing)
    assert versions(server)["timescaledb"] == OLD

    backup, reports = Backups(), list[str]()
    ensure_database(server.conninfo(), name=DATABASE, owner=OWNER, backup=backup, report=reports.append)

    assert versions(server) == current
    assert backup.calls == ["create incr", "verify label"]
    assert [each for each in reports if each.startswith("update of")] == [f"update of extension {e}" for e in expected]
    assert status(owner).version == len({file.name[:3] for file in SHIPPED.glob("*.sql")})
    with psycopg.connect(owner) as connection:
        connection.execute("SELECT count(*) FROM llm_traces")
    ensure_database(server.conninfo(), name=DATABASE, owner=OWNER, backup=backup)
    assert backup.calls == ["create incr", "verify label"]


def test_the_plan_names_an_update_that_up_would_make(server: PostgresServer) -> None:
    owner = server.conninfo(user=OWNER, dbname=DATABASE)
    with psycopg.connect(server.conninfo(dbname=DATABASE), autocommit=True) as connection:
        connection.execute("DROP EXTENSION pg_stat_statements; CREATE EXTENSION pg_stat_statements VERSION '1.10'")
    assert [str(each) for each in plan(owner, migrations=SHIPPED).extension_updates] == [
        "pg_stat_statements 1.10 to 1.11"
    ]
    update_extensions(server.conninfo(dbname=DATABASE))
    assert plan(owner, migrations=SHIPPED).extension_updates == ()


def test_a_preview_shows_the_update_and_up_makes_it(server: PostgresServer, capsys: pytest.CaptureFixture[str]) -> None:
    provider = DatabaseAccessProvider()
    props = {
        "admin_url": server.conninfo(),
        "database": DATABASE,
        "owner": OWNER,
        "verifier": scram_verifier("a-password"),
        "libraries": "timescaledb",
        "revision": 1,
        "server": "/rootfs",
    }
    provider.create(props)
    assert not provider.diff("access", props, props).changes
    assert provider.diff("access", props, {**props, "server": "/another"}).changes
    with psycopg.connect(server.conninfo(dbname=DATABASE), autocommit=True) as connection:
        connection.execute("DROP EXTENSION pg_stat_statements; CREATE EXTENSION pg_stat_statements VERSION '1.10'")

    assert provider.diff("access", props, props).changes
    assert "database: extension pg_stat_statements 1.10 to 1.11 is to be updated" in capsys.readouterr().err
    provider.update("access", props, props)
    assert versions(server)["pg_stat_statements"] == "1.11"
    assert not provider.diff("access", props, props).changes


def test_up_does_not_create_a_database_that_is_gone_and_only_a_new_stack_gets_one(server: PostgresServer) -> None:
    props = {"admin_url": server.conninfo(), "database": "gone", "owner": OWNER, "verifier": scram_verifier("a")}
    with pytest.raises(DatabaseDroppedError, match=f"'gone' does not exist .*\n.*rollback .*'{DATABASE}' has a ledger"):
        DatabaseAccessProvider().update("gone", props, props)
    assert presence_of(server.conninfo(), "gone") is Presence.DROPPED
    DatabaseAccessProvider().create(props)
    assert presence_of(server.conninfo(), "gone") is Presence.EMPTIED
    DatabaseAccessProvider().update("gone", props, props)  # of a first `up` that ended before the migrations
    server.drop_database("gone")


def test_files_of_another_timescaledb_are_refused_with_its_version(server: PostgresServer) -> None:
    current = versions(server)["timescaledb"]
    make_old(server, timescaledb="9.0.0")
    try:
        with pytest.raises(UnsuitableServerError, match=r"has TimescaleDB 9\.0\.0.*Install TimescaleDB 9\.0\.0 or"):
            update_extensions(server.conninfo(dbname=DATABASE))
    finally:
        with psycopg.connect(server.conninfo(dbname=DATABASE), options="-c timescaledb.disable_load=on") as connection:
            connection.execute("UPDATE pg_extension SET extversion = %s WHERE extname = 'timescaledb'", [current])
        with psycopg.connect(server.conninfo(dbname=DATABASE), autocommit=True) as connection:
            version = "UPDATE _timescaledb_catalog.metadata SET value = %s WHERE key = 'timescaledb_version'"
            connection.execute(version.encode(), [current])
