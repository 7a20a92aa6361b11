"""Restores beside a running server: exact to the transaction, isolated, and refused before anything is touched."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from observatory.backups.cover import find_cover
from observatory.backups.repository_contents import UncoveredTargetError
from observatory.backups.restored import RestoredInstance, restored_instance
from observatory.backups.rollback.loss import _committed_since, _State
from observatory.backups.scratch import scratch_directories, scratch_directory
from observatory.backups.target import RecoveryTarget
from observatory.backups.tool import BackupType
from observatory.errors import REFUSED
from observatory.nodes.programs.backup_repository import Node
from tests.backups.conftest import DATA, ArchivingServer

pytestmark = pytest.mark.slow

ROWS = "SELECT coalesce(string_agg(n::text, ' ' ORDER BY n), '') FROM ledger"
CLOCK = "to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')"

NEXT = "SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint"
BEGUN_LATER = """
    SELECT count(*) FROM generate_series(%s, pg_snapshot_xmax(pg_current_snapshot())::text::bigint - 1) AS id
    WHERE pg_xact_status(id::text::xid8) = 'committed'
"""


class Ledger:
    """A table with one row for each transaction, and the time after each."""

    def __init__(self, server: ArchivingServer) -> None:
        self.server = server
        self.times: list[datetime] = []

    def commit(self) -> datetime:
        """Commit one more row; return a time after it, and before the next."""
        self.server.sql(f"INSERT INTO ledger VALUES ({len(self.times) + 1})")
        self.times.append(datetime.fromisoformat(self.server.sql(f"SELECT {CLOCK}")))
        return self.times[-1]

    def at(self, time: datetime) -> str:
        """Return the rows at a time."""
        return " ".join(str(number + 1) for number, each in enumerate(self.times) if each <= time)


@pytest.fixture(scope="module")
def ledger(server: ArchivingServer) -> Iterator[Ledger]:
    """A server with a full backup, transactions in three archived WAL segments, and one in the newest segment."""
    server.tool.prepare()
    server.sql("CREATE TABLE ledger (n int)")
    found = Ledger(server)
    found.commit()
    server.tool.backup(BackupType.FULL, repository=1)
    server.sql("SELECT pg_sleep(1.1)")  # pgBackRest has whole seconds
    for _ in range(3):
        found.commit()
        found.commit()
        server.archive_segments(1)
    server.sql("ALTER SYSTEM SET max_connections = 150")  # a standby needs as many, from here on in the WAL
    server.stop()
    server.start()
    found.commit()
    yield found
    assert scratch_directories(server.sandbox) == []


@pytest.fixture(scope="module")
def restored(ledger: Ledger) -> Iterator[RestoredInstance]:
    """An instance at the time of the third transaction."""
    sandbox = ledger.server.sandbox
    cover = find_cover(sandbox, RecoveryTarget.at_time(ledger.times[2]))
    with scratch_directory(sandbox, "test") as directory, restored_instance(cover, directory=directory) as instance:
        yield instance


def rows(instance: RestoredInstance) -> str:
    with instance.connect() as connection:
        [(found,)] = connection.execute(ROWS).fetchall()
    return str(found)


def test_a_recovery_pauses_exactly_at_its_target_and_goes_on(ledger: Ledger, restored: RestoredInstance) -> None:
    assert rows(restored) == ledger.at(ledger.times[2]) == "1 2 3"
    assert restored.replayed.lsn > restored.cover.stop  # the last transaction's record begins there
    last = restored.replayed.last_transaction
    assert last is not None
    assert last <= ledger.times[2]
    sandbox = ledger.server.sandbox
    restored.advance(find_cover(sandbox, RecoveryTarget.at_time(ledger.times[4])))
    assert rows(restored) == "1 2 3 4 5"
    restored.advance(find_cover(sandbox, RecoveryTarget.latest()))
    assert rows(restored) == "1 2 3 4 5 6 7 8"


def test_a_restored_instance_is_isolated_and_leaves_the_live_data_alone(
    ledger: Ledger, restored: RestoredInstance
) -> None:
    def output(*argv: str) -> str:
        done = restored.run(["/bin/sh", "-c", " ".join(argv)], check=False)
        return (done.stdout + done.stderr).strip()

    assert restored.run(["psql", "-XAtc", "SHOW archive_mode"]).stdout == "off\n"
    assert output("cat /proc/net/dev | wc -l") == "3"  # two lines of headings, and loopback
    assert output("ls -A /srv/run", DATA) == f"{DATA}:\n\n/srv/run:"
    assert "Read-only file system" in output("touch /srv/data/backups/x")
    assert "Read-only file system" in output("touch /srv/x")
    assert ledger.server.sql("SELECT count(*) FROM ledger") == "8"


@pytest.mark.parametrize("target", ["first", "future", "label", "lsn"])
def test_an_uncovered_target_is_refused_before_anything_is_touched(ledger: Ledger, target: str) -> None:
    targets = {
        "first": RecoveryTarget.at_time(ledger.times[0] - timedelta(hours=1)),
        "future": RecoveryTarget.at_time(datetime.now(UTC) + timedelta(hours=1)),
        "label": RecoveryTarget.of_backup("20200101-000000F"),
        "lsn": RecoveryTarget.at_lsn("FF/0"),
    }
    with pytest.raises(UncoveredTargetError) as caught:
        find_cover(ledger.server.sandbox, targets[target])
    assert caught.value.exit_code == REFUSED


def test_a_switch_of_another_session_does_not_hide_the_newest_segment(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by archive_timeout, just before: then there is no WAL in the next segment, and it is not archived."""
    query = Node.query

    def switched_before(node: Node, statement: str, database: str = "postgres") -> str:
        if "pg_switch_wal" in statement:
            query(node, "SELECT pg_switch_wal()")
        return query(node, statement, database)

    monkeypatch.setattr(Node, "query", switched_before)
    ledger.server.sql("CREATE TABLE newest ()")
    written = ledger.server.sql("SELECT pg_walfile_name(pg_current_wal_lsn())")
    assert find_cover(ledger.server.sandbox, RecoveryTarget.latest()).segments[-1] == written


def test_a_repository_that_does_not_exist_is_refused(ledger: Ledger) -> None:
    with pytest.raises(UncoveredTargetError, match="there is no repository 7"):
        find_cover(ledger.server.sandbox, RecoveryTarget.latest(), repository=7)


def test_a_time_before_a_database_was_dropped_has_its_files(ledger: Ledger) -> None:
    """They are removed by a record of their own, before the transaction that drops the database ends."""
    server = ledger.server
    server.sql("CREATE DATABASE dropped")
    server.sql_in("dropped", "CREATE TABLE kept AS SELECT 7 AS n")
    time = datetime.fromisoformat(server.sql(f"SELECT {CLOCK}"))
    server.sql("DROP DATABASE dropped")
    cover = find_cover(server.sandbox, RecoveryTarget.at_time(time))
    with (
        scratch_directory(server.sandbox, "test") as directory,
        restored_instance(cover, directory=directory) as instance,
        instance.connect("dropped") as connection,
    ):
        assert connection.execute("SELECT n FROM kept").fetchall() == [(7,)]


def test_a_transaction_that_was_running_at_the_time_is_lost_if_it_committed_later(ledger: Ledger) -> None:
    """The snapshot of a standby does not list what is running."""
    server = ledger.server
    live = make_conninfo(host="127.0.0.1", port=server.port, user="postgres", dbname="postgres")
    with psycopg.connect(live) as running, psycopg.connect(live) as undone:
        running.execute("INSERT INTO ledger VALUES (-1)")
        undone.execute("INSERT INTO ledger VALUES (-2)")
        server.sql("INSERT INTO ledger VALUES (-3)")
        time = datetime.fromisoformat(server.sql(f"SELECT {CLOCK}"))
        undone.rollback()
    server.sql("DELETE FROM ledger WHERE n < 0")
    cover = find_cover(server.sandbox, RecoveryTarget.at_time(time))
    with (
        scratch_directory(server.sandbox, "test") as directory,
        restored_instance(cover, directory=directory) as instance,
        psycopg.connect(live) as now,
        instance.connect() as then,
    ):
        now.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")  # one snapshot for both
        [(begun_later,)] = now.execute(BEGUN_LATER, then.execute(NEXT).fetchone()).fetchall()
        live_state = _State(connection=now, leaves={}, is_live=True)
        restored_state = _State(connection=then, leaves={}, is_live=False)
        assert _committed_since(live_state, restored_state) == begun_later + 1
